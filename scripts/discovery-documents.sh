#!/usr/bin/env bash
# Fetches Google's discovery documents, which describe its APIs to the letter, for the tests of `cdnwarm setup`.
#
#   discovery-documents.sh FOLDER
#
# They are Google's and not kept here: they come with google-api-python-client, pinned by version and checksum in
# .ci/discovery-requirements.txt. Then: CDNWARM_DISCOVERY=FOLDER cargo test --test it setup_ -- --ignored
set -euo pipefail

folder=${1:-}
[[ -n $folder ]] || { sed -n '4s/^# *//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" download --quiet --no-deps --only-binary :all: --require-hashes \
    --dest "$work" --requirement "$root/.ci/discovery-requirements.txt"
mkdir -p "$folder"
python3 - "$work"/*.whl "$folder" <<'PYTHON'
import sys, zipfile

names = """artifactregistry.v1 cloudbuild.v1 cloudresourcemanager.v3 dataflow.v1b3 iam.v1 logging.v2 monitoring.v1
monitoring.v3 pubsub.v1 run.v2 secretmanager.v1 serviceusage.v1 serviceusage.v1beta1""".split()
wheel, folder = sys.argv[1:]
with zipfile.ZipFile(wheel) as package:
    for name in names:
        document = package.read(f"googleapiclient/discovery_cache/documents/{name}.json")
        with open(f"{folder}/{name}.json", "wb") as file:
            file.write(document)
print(f"{folder} has {len(names)} documents")
PYTHON
