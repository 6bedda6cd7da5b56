#!/usr/bin/env bash
# Makes the Pub/Sub topic and the service account with which Pub/Sub invokes Cloud Run. Run it once; again does no harm.
#
#   pubsub-setup.sh [TOPIC] [PROJECT] [POLICY_REGION]
#
# Defaults: warming_urls and gcloud's current project. POLICY_REGION, if given, is the only region in which Pub/Sub may
# keep the topic's messages.
set -euo pipefail

topic=${1:-warming_urls}
project=${2:-$(gcloud config get project)}
policy_region=${3:-}
[[ -n $project ]] || { echo "No project: name one, or run gcloud config set project." >&2; exit 2; }
number=$(gcloud projects describe "$project" --format='value(projectNumber)')
invoker=cloudrun-pubsub-invoker@$project.iam.gserviceaccount.com

echo "Setting up topic $topic in $project ($number)."

if ! gcloud pubsub topics describe "$topic" --project="$project" >/dev/null 2>&1; then
    gcloud pubsub topics create "$topic" --project="$project" \
        ${policy_region:+--message-storage-policy-allowed-regions="$policy_region"}
fi

if ! gcloud iam service-accounts describe "$invoker" --project="$project" >/dev/null 2>&1; then
    gcloud iam service-accounts create cloudrun-pubsub-invoker --project="$project" \
        --display-name='Cloud Run Pub/Sub Invoker'
fi

# `bridge` publishes, by default as the project's compute account, and needs to on this topic only.
gcloud pubsub topics add-iam-policy-binding "$topic" --project="$project" \
    --member="serviceAccount:$number-compute@developer.gserviceaccount.com" \
    --role=roles/pubsub.publisher --quiet

# Pub/Sub's own agent makes the tokens that its pushes carry, for this one account.
gcloud iam service-accounts add-iam-policy-binding "$invoker" --project="$project" \
    --member="serviceAccount:service-$number@gcp-sa-pubsub.iam.gserviceaccount.com" \
    --role=roles/iam.serviceAccountTokenCreator --quiet
