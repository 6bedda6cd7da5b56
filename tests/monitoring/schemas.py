#!/usr/bin/env python3
"""Holds monitoring/ and cloudbuild.yaml against Google's own descriptions of its APIs, and against each other.

    schemas.py DOCUMENTS

DOCUMENTS is the folder googleapiclient/discovery_cache/documents of the PyPI package google-api-python-client. A field that
the schema does not have, another type than it says, or a value that is not among its own is an error; so is a log-based
metric, a label or a placeholder that something names and nothing makes.
"""

import copy
import json
import re
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "monitoring"
# Whoever creates these resources puts the project's own names in their place; monitoring/README.md lists them.
PLACEHOLDERS = {"PROJECT_ID", "TOPIC_ID", "DEAD_LETTER_TOPIC_ID", "SERVICE_NAMES"}


class Schemas:
    """The types of one API."""

    def __init__(self, documents: Path, name: str):
        self.types = json.loads((documents / f"{name}.json").read_text())["schemas"]

    def problems(self, value, type_: str) -> list[str]:
        return self._check(value, {"$ref": type_}, type_)

    def _check(self, value, schema: dict, at: str) -> list[str]:
        if "$ref" in schema:
            schema = self.types[schema["$ref"]]
        if schema.get("readOnly"):
            return [f"{at} is the API's to say"]
        kind = schema["type"]
        if kind == "object":
            return self._check_object(value, schema, at)
        if kind == "array":
            if not isinstance(value, list):
                return [f"{at} is no list"]
            return [p for number, item in enumerate(value) for p in self._check(item, schema["items"], f"{at}[{number}]")]
        if kind == "any":
            return []
        # 64-bit numbers are text.
        wanted = {"string": str, "boolean": bool, "integer": int, "number": (int, float)}[kind]
        if not isinstance(value, wanted) or isinstance(value, bool) != (kind == "boolean"):
            return [f"{at} is {json.dumps(value)}, no {kind}"]
        if "enum" in schema and value not in schema["enum"]:
            return [f"{at} is {value}, not one of {', '.join(schema['enum'])}"]
        if schema.get("format") == "google-duration" and not re.fullmatch(r"\d+(\.\d+)?s", value):
            return [f"{at} is {value}, no duration"]
        return []

    def _check_object(self, value, schema: dict, at: str) -> list[str]:
        if not isinstance(value, dict):
            return [f"{at} is no object"]
        found = []
        for name, item in value.items():
            inner = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
            found += self._check(item, inner, f"{at}.{name}") if inner else [f"{at} has no field {name}"]
        return found


def filters(value):
    """Each text under a key that is a filter, and what its series are grouped by."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in ("filter", "denominatorFilter") and isinstance(item, str):
                groups = value.get("aggregations", [value.get("aggregation", {})])
                yield item, [field for group in groups for field in group.get("groupByFields", [])]
            yield from filters(item)
    elif isinstance(value, list):
        for item in value:
            yield from filters(item)


def reference_problems(files: dict[str, dict]) -> list[str]:
    """What is named must be made, and what is made must be named."""
    found = []
    metrics = {content["name"]: content for name, content in files.items() if name.startswith("log-metrics/")}
    named = set()
    for file, content in files.items():
        if file.startswith("log-metrics/"):
            labels = {label["key"] for label in content["metricDescriptor"].get("labels", [])}
            if labels != set(content.get("labelExtractors", {})):
                found.append(f"{file}: labels {labels} and their extractors differ")
            if (content["metricDescriptor"]["valueType"] == "DISTRIBUTION") != ("valueExtractor" in content):
                found.append(f"{file}: a distribution needs a valueExtractor, and only it has one")
            continue
        for text, groups in filters(content):
            metric = re.search(r'metric\.type = "logging\.googleapis\.com/user/([^"]*)"', text)
            if file != "dashboard.json" or "metric.type" in text:
                if len(re.findall(r"metric\.type = ", text)) != 1 or len(re.findall(r"resource\.type = ", text)) != 1:
                    found.append(f"{file}: not one metric and one resource type in {text}")
            if not metric:
                continue
            named.add(metric.group(1))
            if metric.group(1) not in metrics:
                found.append(f"{file}: nothing makes the metric {metric.group(1)}")
                continue
            for label in re.findall(r"metric\.labels?\.(\w+)", " ".join([text, *groups])):
                if label not in metrics[metric.group(1)]["labelExtractors"]:
                    found.append(f"{file}: {metric.group(1)} has no label {label}")
        words = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)*_(?:ID|NAMES|NAME|NUMBER)\b", json.dumps(content)))
        found += [f"{file}: unknown placeholder {word}" for word in sorted(words - PLACEHOLDERS)]
    found += [f"nobody reads the metric {name}" for name in sorted(set(metrics) - named)]
    readme = (MONITORING / "README.md").read_text()
    found += [f"monitoring/README.md does not name {name}" for name in sorted(PLACEHOLDERS) if name not in readme]
    return found


def build_problems(build: dict) -> list[str]:
    """cloudbuild.yaml: what it pushes it built, what it substitutes it declares, and no shell variable is left to Cloud Build."""
    text = json.dumps(build)
    found = []
    declared = set(build["substitutions"])
    used = set(re.findall(r"(?<!\$)\$\{?(_[A-Z_]+)", text.replace("$$", "")))
    if declared != used:
        found.append(f"declares {sorted(declared)}, uses {sorted(used)}")
    known = {"PROJECT_ID", "SHORT_SHA"} | declared
    scripts = "\n".join(str(argument) for step in build["steps"] for argument in step["args"])
    for name in re.findall(r"(?<!\$)\$\{?([A-Za-z_]\w*)", scripts):
        if name not in known:
            found.append(f"${name} is the shell's: write $${name}")
    for image in build["images"]:
        if f'--tag=\\"{image}\\"' not in text or f'docker push --quiet \\"{image}\\"' not in text:
            found.append(f"{image} is not built and pushed")
    return found


def main():
    documents = Path(sys.argv[1])
    files = {str(file.relative_to(MONITORING)): json.loads(file.read_text())
             for file in sorted(MONITORING.rglob("*.json")) if file.name != "grafana.json"}
    build = yaml.safe_load((ROOT / "cloudbuild.yaml").read_text())
    types = {
        "dashboard.json": ("monitoring.v1", "Dashboard"),
        "alerts/": ("monitoring.v3", "AlertPolicy"),
        "log-metrics/": ("logging.v2", "LogMetric"),
    }
    apis = {name: Schemas(documents, name) for name in ("monitoring.v1", "monitoring.v3", "logging.v2", "cloudbuild.v1")}

    def problems_of(name, content):
        api, type_ = next(types[start] for start in types if name.startswith(start))
        return apis[api].problems(content, type_)

    found = []
    for name, content in files.items():
        found += [f"{name}: {problem}" for problem in problems_of(name, content)]
        # The check itself must see what is wrong.
        wrong = copy.deepcopy(content)
        wrong["noSuchField"] = 1
        if not problems_of(name, wrong):
            found.append(f"{name}: the check is blind")
    found += reference_problems(files)
    found += [f"cloudbuild.yaml: {problem}" for problem in apis["cloudbuild.v1"].problems(build, "Build") + build_problems(build)]
    for problem in found:
        print(problem, file=sys.stderr)
    print(f"{len(files)} files of monitoring/ and cloudbuild.yaml, {len(found)} problems")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
