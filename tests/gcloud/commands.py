#!/usr/bin/env python3
"""Holds every gcloud command of the scripts and documents against what the installed gcloud says of itself.

    commands.py [--cache FOLDER] [FILE...]

Without files: all that git tracks. A command must exist, in the release track it names; each of its flags must be one of
its own, with a value or without as the help shows it, and a value that the help lists, where it lists them. Then the
scripts are run against a stand-in gcloud, in a project with nothing in it and in one with everything, and each command
that they really give is held against the help in the same way. Nothing is asked of any project.
"""

import argparse
import functools
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What a command in a document may stand for without being one.
PLACEHOLDER = re.compile(r"\.\.\.$|^…$")
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Help:
    """The help texts of one gcloud, each asked for once; a folder keeps them for the next time."""

    def __init__(self, cache: Path):
        version = subprocess.run(["gcloud", "version"], capture_output=True, text=True, check=True).stdout
        self.version = version.splitlines()[0]
        self.cache = cache / hashlib.sha256(version.encode()).hexdigest()[:16]
        self.cache.mkdir(parents=True, exist_ok=True)

    @functools.cache
    def of(self, path: tuple[str, ...]) -> str | None:
        """The text of `gcloud PATH --help`, None where there is no such command."""
        file = self.cache / "-".join(("gcloud",) + path)
        if not file.exists():
            asked = subprocess.run(
                ["gcloud", *path, "--help"],
                capture_output=True, text=True, stdin=subprocess.DEVNULL,
                env={**os.environ, "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"},
            )
            if asked.returncode != 0 and "Invalid choice" not in asked.stderr:
                raise SystemExit(f"gcloud {' '.join(path)} --help: {asked.stderr}")
            text = ANSI.sub("", asked.stdout) if asked.returncode == 0 else ""
            # Whole or not at all: another run may read it.
            written = file.with_name(f"{file.name}.{os.getpid()}")
            written.write_text(text)
            written.rename(file)
        return file.read_text() or None

    @functools.cache
    def flags(self, path: tuple[str, ...]) -> dict[str, dict]:
        """Each flag with whether it takes a value, and the values it may have (None: any)."""
        text = self.of(path)
        flags = {}
        entry = re.compile(r"^ {3,}(?:(-\w)(?:[ =]\S+)?, )?--(\[no-\])?([a-z][a-z0-9-]*)(=\S.*)?(, -\w.*)?$")
        lines = text.splitlines()
        for number, line in enumerate(lines):
            found = entry.match(line)
            if not found or found.group(3) in flags:
                continue
            _, no, name, value, _ = found.groups()
            takes_value = bool(value) and value.startswith("=")
            choices = self._choices(lines, number) if takes_value else None
            flags[name] = {"value": takes_value, "choices": choices}
            if no:
                flags[f"no-{name}"] = {"value": False, "choices": None}
        wide = re.search(r"^GCLOUD WIDE FLAGS\n(.*?)\n\n", text, re.DOTALL | re.MULTILINE)
        for name in re.findall(r"--([a-z-]+)", wide.group(1)) if wide else []:
            flags.setdefault(name, {"value": name not in ("quiet", "help", "log-http"), "choices": None, "wide": True})
        return flags

    @staticmethod
    def _choices(lines: list[str], number: int) -> set[str] | None:
        """What follows `must be one of:`, in either of the two forms that the help has."""
        indent = len(lines[number]) - len(lines[number].lstrip())
        block = []
        for line in lines[number + 1:]:
            if line.strip() and len(line) - len(line.lstrip()) <= indent:
                break
            block.append(line)
        text = "\n".join(block)
        found = re.search(r"[A-Z_]+\s+must\s+be\s+(?:\(only\s+one\s+value\s+is\s+supported\)|one\s+of):?\s*(.*)", text, re.DOTALL)
        if not found:
            return None
        rest = found.group(1)
        if re.match(r"\n", found.group(0)[found.start(1) - found.start(0) - 1:]) or "\n" in rest and ", " not in rest.split("\n")[0]:
            # One a line, each with its own explanation below it.
            entries = [line for line in rest.splitlines() if line.strip()]
            least = min((len(line) - len(line.lstrip()) for line in entries[1:]), default=0)
            return {entries[0].strip()} | {
                line.strip() for line in entries[1:] if len(line) - len(line.lstrip()) == least and " " not in line.strip()
            }
        listed = re.split(r"\.(?:\s|$)", " ".join(rest.split()))[0]
        return {word.strip() for word in listed.split(",")}

    def command(self, words: list[str]) -> tuple[str, ...]:
        """The longest beginning of `words` that is a command or a group."""
        path: tuple[str, ...] = ()
        for word in words:
            if not re.fullmatch(r"[a-z][a-z0-9-]*", word) or not self._has_child(path, word):
                break
            path += (word,)
        return path

    def _has_child(self, path: tuple[str, ...], word: str) -> bool:
        text = self.of(path)
        groups = re.search(r"^(GROUPS|COMMANDS)\n.*", text, re.DOTALL | re.MULTILINE)
        return bool(groups and re.search(rf"^ {{4,6}}{re.escape(word)}$", groups.group(0), re.MULTILINE))

    def is_command(self, path: tuple[str, ...]) -> bool:
        return bool(path) and not re.search(r"^SYNOPSIS\n +gcloud [a-z0-9 -]*(GROUP|COMMAND)\b", self.of(path), re.MULTILINE)


def problems(help_: Help, words: list[str]) -> list[str]:
    """What is wrong with the command `gcloud WORDS`."""
    given = [word for word in words if not word.startswith("-")]
    path = help_.command(given)
    if not path or not help_.is_command(path):
        wrong = " ".join(given[: len(path) + 1])
        return [f"there is no command gcloud {wrong}"]
    flags = help_.flags(path)
    found = []
    rest = words[len(path):]
    while rest:
        word = rest.pop(0)
        if word == "--":
            break
        if not word.startswith("--"):
            continue
        name, equals, value = word[2:].partition("=")
        if name not in flags:
            found.append(f"gcloud {' '.join(path)} has no flag --{name}")
            continue
        flag = flags[name]
        if flag["value"] and not equals:
            if not rest or rest[0].startswith("--"):
                # A document may name a flag alone.
                if not flag.get("wide"):
                    found.append(f"gcloud {' '.join(path)} --{name} takes a value")
                continue
            value = rest.pop(0)
        elif not flag["value"] and equals:
            found.append(f"gcloud {' '.join(path)} --{name} takes no value")
        if flag["choices"] and value and not is_variable(value) and value not in flag["choices"]:
            found.append(f"gcloud {' '.join(path)} --{name} may not be {value}, but {', '.join(sorted(flag['choices']))}")
    return found


def is_variable(value: str) -> bool:
    """A shell variable, or a placeholder for whoever reads."""
    return "$" in value or value.isupper()


def commands_in(text: str, is_shell: bool, is_prose: bool = False):
    """Each gcloud command in a text, with its line: of prose only those in code."""
    if is_shell:
        text = re.sub(r"(?m)^\s*#.*$", "", text)
    joined = text.replace("\\\n", " \x00")
    line, fenced = 1, False
    for part in re.split(r"(\n)", joined):
        if part == "\n":
            line += 1
            continue
        fenced ^= part.startswith("```")
        for found in re.finditer(r"(?<![\w./-])gcloud +(?=[a-z])", part):
            rest = part[found.end():]
            before = part[: found.start()]
            if is_prose and not fenced and before.count("`") % 2 == 0:
                continue
            # Quoted in a sentence, or in a program's text.
            for quote in () if is_shell else ("`", '"'):
                if before.count(quote) % 2 == 1:
                    rest = rest.split(quote)[0]
            yield line, words_of(rest.replace("\x00", ""))
        line += part.count("\x00")


def words_of(text: str) -> list[str]:
    """The words up to where the shell ends a command. Substitutions inside are one word, whatever is in them."""
    text = re.sub(r"\$\([^()]*(?:\([^()]*\)[^()]*)*\)", "$SUBSTITUTION", text)
    text = re.sub(r"\$\{[^{}]*\}", "$VARIABLE", text)
    lexer = shlex.shlex(text, posix=True, punctuation_chars="();|&<>")
    lexer.whitespace_split = True
    lexer.commenters = ""
    words = []
    try:
        for word in lexer:
            if re.fullmatch(r"[();|&<>]+", word):
                if words and word.startswith((">", "<")) and words[-1].isdigit():
                    words.pop()
                break
            words.append(word.rstrip(",:`").rstrip(".") if word.endswith(("`", ",", ":", ".")) else word)
    except ValueError:
        # A quotation that ends on another line, or an apostrophe of the text around.
        words = text.split()
    return [word for word in words if not PLACEHOLDER.search(word)]


def documents() -> list[Path]:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    kept = [ROOT / name for name in tracked if name.endswith((".md", ".sh", ".yaml", ".rs", ".toml", ".example", ".txt", "run"))]
    return [file for file in kept if file.is_file() and "gcloud" in file.read_text(errors="replace")]


def is_shell(file: Path) -> bool:
    return file.suffix == ".sh" or file.read_text(errors="replace").startswith("#!/usr/bin/env bash")


# The scripts, with arguments, and what each must have asked for.
RUNS = [
    (["pubsub-setup.sh", "urls", "example-project", "unused", "europe-west1"], [
        "pubsub topics create urls",
        "pubsub topics create urls-dead-letter",
        "--message-storage-policy-allowed-regions=europe-west1",
        "--expiration-period=never",
        "iam service-accounts create cloudrun-pubsub-invoker",
        "--role=roles/iam.serviceAccountTokenCreator",
        "--role=roles/pubsub.publisher",
    ]),
    (["create-cloudrun.sh", "warm", "europe-west1", "registry.example/image", "example-project"], [
        "--image=registry.example/image:latest",
        "--trust-platform-auth",
        "--push-audience,https://warm-123456789012.europe-west1.run.app",
        "--no-allow-unauthenticated",
        "--ingress=internal",
        "--min-instances=1",
        "--no-cpu-throttling",
        "--cpu-boost",
        "--use-http2",
        "--role=roles/run.invoker",
    ]),
    (["pubsub-create-sub.sh", "https://warm-123456789012.europe-west1.run.app", "warm-eu", "urls", "example-project"], [
        "--push-auth-token-audience=https://warm-123456789012.europe-west1.run.app",
        "--push-auth-service-account=cloudrun-pubsub-invoker@example-project.iam.gserviceaccount.com",
        "--ack-deadline=600",
        "--expiration-period=never",
        "--dead-letter-topic=urls-dead-letter",
        "--min-retry-delay=10s",
        "--role=roles/pubsub.subscriber",
    ]),
    (["dataflow-job.sh", "launch", "gs://bucket/template.json", "europe-west1", "example-project", "a=1,2", "b=3"], [
        "--parameters=^~^a=1,2~b=3",
        "--additional-experiments=enable_prime",
        "--enable-streaming-engine",
        "--staging-location=gs://example-project/staging",
    ]),
    (["dataflow-job.sh", "status", "europe-west1", "example-project"], ["dataflow jobs list"]),
    (["dataflow-job.sh", "drain", "europe-west1", "example-project", "2026-11-23_id"], ["dataflow jobs drain 2026-11-23_id"]),
]
# What a script must say where nothing is there yet, and where all of it is.
NEW_ONLY = ["topics create", "service-accounts create", "subscriptions create", "--message-filter="]
REFUSED = [
    ["pubsub-create-sub.sh", "http://warm.example"],
    ["dataflow-job.sh"],
    ["dataflow-job.sh", "launch", "gs://dataflow-templates-us-central1/latest/flex/Kafka_to_PubSub", "us-central1", "p"],
    ["dataflow-job.sh", "launch", "gs://b/t", "us-central1", "p", "password"],
    ["create-cloudrun.sh", "n" * 60, "us-central1", "image", "p"],
]
STAND_IN = """#!/bin/sh
printf '%s\\0' "$@" >>"$GCLOUD_LOG"
printf '\\n' >>"$GCLOUD_LOG"
case "$*" in
*describe*projectNumber*) echo 123456789012 ;;
*describe*) exit "$GCLOUD_MISSING" ;;
esac
"""


def run_scripts(help_: Help) -> list[str]:
    """Runs each script twice against a gcloud that only writes down what it was asked."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        stand_in = Path(folder) / "gcloud"
        stand_in.write_text(STAND_IN)
        stand_in.chmod(0o755)
        log = Path(folder) / "log"

        def asked(arguments: list[str], missing: str) -> tuple[int, list[list[str]]]:
            log.write_text("")
            environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "GCLOUD_LOG": str(log), "GCLOUD_MISSING": missing}
            ended = subprocess.run([ROOT / "scripts" / arguments[0], *arguments[1:]], env=environment,
                                   capture_output=True, text=True, stdin=subprocess.DEVNULL)
            return ended.returncode, [line.split("\0")[:-1] for line in log.read_text().splitlines()]

        for arguments, wanted in RUNS:
            for missing in ("1", "0"):
                status, commands = asked(arguments, missing)
                shown = f"{' '.join(arguments)} ({'nothing' if missing == '1' else 'everything'} there)"
                if status != 0:
                    found.append(f"{shown}: status {status}")
                for command in commands:
                    found += [f"{shown}: {problem}" for problem in problems(help_, command)]
                said = "\n".join(" ".join(command) for command in commands)
                creates = [text for text in NEW_ONLY if text in said]
                if missing == "1":
                    found += [f"{shown}: no {text}" for text in wanted if text not in said]
                elif creates:
                    found.append(f"{shown}: {creates[0]} once more")
                print(f"{shown}: {len(commands)} commands")
        filtered = asked(RUNS[2][0], "1")[1]
        wanted = '--message-filter=NOT attributes:"warm-region-filtered" OR attributes:"warm-region-europe-west1"'
        if not any(wanted in command for command in filtered):
            found.append(f"pubsub-create-sub.sh: no {wanted}")
        for arguments in REFUSED:
            status, commands = asked(arguments, "1")
            if status != 2 or any("describe" not in command and "config" not in command for command in commands):
                found.append(f"{' '.join(arguments)}: status {status}, not refused before anything was changed")
    return found


def self_check(help_: Help) -> list[str]:
    """The check itself must see what is wrong."""
    wrong = {
        "run deploy x --no-such-flag": "has no flag",
        "run deploy x --ingress=everybody": "may not be",
        "run deploy x --cpu-boost=yes": "takes no value",
        "run deploy x --image --quiet": "takes a value",
        "run worker-pools deploy x": "there is no command",
        "pubsub subscriptions": "there is no command",
        "pubsub topics create t --push-endpoint=https://x": "has no flag",
    }
    right = ["run deploy x --ingress internal --no-cpu-boost --timeout=600", "beta run worker-pools deploy x --image=i"]
    missed = [command for command, text in wrong.items() if not any(text in p for p in problems(help_, command.split()))]
    missed += [f"{command}: {problems(help_, command.split())}" for command in right if problems(help_, command.split())]
    return [f"the check is blind: {command}" for command in missed]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cdnwarm-gcloud-help")
    parser.add_argument("files", nargs="*", type=Path)
    arguments = parser.parse_args()
    help_ = Help(arguments.cache)
    print(help_.version)
    found = self_check(help_)
    count = 0
    for file in arguments.files or documents():
        for line, words in commands_in(file.read_text(errors="replace"), is_shell(file), file.suffix == ".md"):
            count += 1
            shown = file.resolve().relative_to(ROOT) if file.resolve().is_relative_to(ROOT) else file
            found += [f"{shown}:{line}: {problem}" for problem in problems(help_, words)]
    if not arguments.files:
        found += run_scripts(help_)
    for problem in found:
        print(problem, file=sys.stderr)
    print(f"{count} commands in files, {len(found)} problems")
    sys.exit(1 if found or not count else 0)


if __name__ == "__main__":
    main()
