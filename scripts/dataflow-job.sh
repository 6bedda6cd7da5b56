#!/usr/bin/env bash
# Starts, shows or drains a Dataflow job that moves a Kafka topic to a Pub/Sub topic, in place of `cdnwarm bridge`.
#
#   dataflow-job.sh launch TEMPLATE REGION PROJECT [NAME=VALUE]...   TEMPLATE is the gs:// path of your flex template
#   dataflow-job.sh status REGION PROJECT                            jobs that this script started, and their state
#   dataflow-job.sh drain REGION PROJECT JOB_ID                      reads no more, finishes what it has, ends
#
# NAME=VALUE are the template's own parameters: topics, brokers, and the Secret Manager version with the credentials; none
# is a password, since whoever may see the job sees its parameters. The job is a streaming one on Dataflow Prime, stages its
# files in gs://PROJECT/, and runs as the compute account, or as the account named by DATAFLOW_ACCOUNT, which needs
# roles/dataflow.worker on the project, roles/storage.objectAdmin on the bucket, roles/pubsub.publisher on the topic, and
# roles/secretmanager.secretAccessor on the secret.
set -euo pipefail

prefix=kafka-mirror-cdnwarm

usage() {
    sed -n '4,6s/^# \{0,3\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

launch() {
    (($# >= 3)) || usage
    local template=$1 region=$2 project=$3 parameter parameters=
    shift 3
    [[ $template == gs://* ]] || { echo "TEMPLATE must be a gs:// path, not '$template'." >&2; exit 2; }
    # docs/migrate.md has the details.
    if [[ $template == gs://dataflow-templates*/Kafka_to_Pub[Ss]ub* ]]; then
        echo "Google's own template $template knows SASL/SCRAM with a password from HashiCorp Vault, not SASL/PLAIN, and drops" \
            "Kafka's headers: use cdnwarm bridge, or a template of your own." >&2
        exit 2
    fi
    for parameter in "$@"; do
        [[ $parameter == *=* ]] || { echo "'$parameter' is not NAME=VALUE." >&2; exit 2; }
        # Values may hold commas, so gcloud is given another separator.
        parameters+=${parameters:+"~"}$parameter
    done
    gcloud dataflow flex-template run "$prefix-$(date -u +%Y%m%d-%H%M%S)" \
        --project="$project" \
        --region="$region" \
        --template-file-gcs-location="$template" \
        --staging-location="gs://$project/staging" \
        --temp-location="gs://$project/temp" \
        --enable-streaming-engine \
        --additional-experiments=enable_prime \
        --additional-user-labels=managed-by=cdnwarm-script \
        ${DATAFLOW_ACCOUNT:+--service-account-email="$DATAFLOW_ACCOUNT"} \
        ${parameters:+--parameters="^~^$parameters"}
}

status() {
    (($# == 2)) || usage
    gcloud dataflow jobs list --region="$1" --project="$2" --status=active --filter="name:$prefix-*"
}

drain() {
    (($# == 3)) || usage
    gcloud dataflow jobs drain "$3" --region="$1" --project="$2"
}

case ${1:-} in
    launch | status | drain) "$@" ;;
    *) usage ;;
esac
