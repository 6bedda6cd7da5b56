#!/usr/bin/env bash
# Subscribes one region's Cloud Run service to the Pub/Sub topic. Running it again updates the subscription.
#
#   pubsub-create-sub.sh ENDPOINT [SUBSCRIPTION] [TOPIC] [PROJECT]
#
# ENDPOINT is the URL that create-cloudrun.sh printed, to the letter: it is also the audience of the pushes' tokens, which
# `serve` was told to expect. Defaults: us-central1, warming_urls and gcloud's current project.
set -euo pipefail

endpoint=${1:-}
subscription=${2:-us-central1}
topic=${3:-warming_urls}
project=${4:-$(gcloud config get project)}
[[ $endpoint == https://* ]] || { echo "ENDPOINT must be the service's https URL, not '$endpoint'." >&2; exit 2; }
[[ -n $project ]] || { echo "No project: name one, or run gcloud config set project." >&2; exit 2; }
number=$(gcloud projects describe "$project" --format='value(projectNumber)')

echo "Subscribing $endpoint to $topic in $project as $subscription."

# A topic may be idle for months: without --expiration-period=never its subscriptions would be deleted after 31 days.
# The ack deadline is also how long Pub/Sub waits for the answer to a push; 600 seconds is the longest it takes.
# `serve` ends a message at its 5th delivery; the dead-letter topic takes those of which it never heard.
settings=(
    --push-endpoint="$endpoint"
    --push-auth-service-account="cloudrun-pubsub-invoker@$project.iam.gserviceaccount.com"
    --push-auth-token-audience="$endpoint"
    --ack-deadline=600
    --expiration-period=never
    --message-retention-duration=7d
    --min-retry-delay=10s
    --max-retry-delay=600s
    --dead-letter-topic="$topic-dead-letter"
    --max-delivery-attempts=5
)

if gcloud pubsub subscriptions describe "$subscription" --project="$project" >/dev/null 2>&1; then
    gcloud pubsub subscriptions update "$subscription" --project="$project" "${settings[@]}"
else
    # Messages for other regions alone are not delivered here. A filter is given once: it cannot be changed later.
    if [[ $endpoint =~ -$number\.([a-z0-9-]+)\.run\.app$ ]]; then
        settings+=(--message-filter="NOT attributes:\"warm-region-filtered\" OR attributes:\"warm-region-${BASH_REMATCH[1]}\"")
    fi
    gcloud pubsub subscriptions create "$subscription" --project="$project" --topic="$topic" "${settings[@]}"
fi

gcloud pubsub subscriptions add-iam-policy-binding "$subscription" --project="$project" \
    --member="serviceAccount:service-$number@gcp-sa-pubsub.iam.gserviceaccount.com" \
    --role=roles/pubsub.subscriber --quiet
