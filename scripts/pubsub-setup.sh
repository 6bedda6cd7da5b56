#!/usr/bin/env bash
# Makes the Pub/Sub topics and the service accounts of serve and of its pushes. Run it once; again does no harm.
#
#   pubsub-setup.sh [TOPIC] [PROJECT] [SERVICE] [POLICY_REGION]
#
# Defaults: warming_urls and gcloud's current project. SERVICE is not used: create-cloudrun.sh gives the right to push for
# each service. POLICY_REGION, if given, is the only region in which Pub/Sub may keep the topic's messages.
set -euo pipefail

topic=${1:-warming_urls}
project=${2:-$(gcloud config get project)}
policy_region=${4:-}
[[ -n $project ]] || { echo "No project: name one, or run gcloud config set project." >&2; exit 2; }
number=$(gcloud projects describe "$project" --format='value(projectNumber)')
invoker=cloudrun-pubsub-invoker@$project.iam.gserviceaccount.com
agent=serviceAccount:service-$number@gcp-sa-pubsub.iam.gserviceaccount.com
dead_letters=$topic-dead-letter

echo "Setting up topic $topic in $project ($number)."

create_topic() {
    gcloud pubsub topics describe "$1" --project="$project" >/dev/null 2>&1 ||
        gcloud pubsub topics create "$1" --project="$project" \
            ${policy_region:+--message-storage-policy-allowed-regions="$policy_region"}
}

create_account() {
    gcloud iam service-accounts describe "$1@$project.iam.gserviceaccount.com" --project="$project" >/dev/null 2>&1 ||
        gcloud iam service-accounts create "$1" --project="$project" --display-name="$2"
}

create_topic "$topic"
create_topic "$dead_letters"

# What is sent to a topic without a subscription is gone. This one never expires, however quiet it is.
gcloud pubsub subscriptions describe "$dead_letters" --project="$project" >/dev/null 2>&1 ||
    gcloud pubsub subscriptions create "$dead_letters" --project="$project" --topic="$dead_letters" \
        --expiration-period=never --message-retention-duration=31d

create_account cloudrun-pubsub-invoker 'Cloud Run Pub/Sub Invoker'
# What serve runs as. It needs no role at all, and has none.
create_account cdnwarm-serve 'cdnwarm serve'

# The Dataflow job publishes, by default as the project's compute account, and needs to on this topic only.
gcloud pubsub topics add-iam-policy-binding "$topic" --project="$project" \
    --member="serviceAccount:$number-compute@developer.gserviceaccount.com" \
    --role=roles/pubsub.publisher --quiet

# Pub/Sub's own agent sends dead letters; it needs roles/pubsub.subscriber on each subscription, too.
gcloud pubsub topics add-iam-policy-binding "$dead_letters" --project="$project" \
    --member="$agent" --role=roles/pubsub.publisher --quiet

# It makes the tokens that its pushes carry, for this one account.
gcloud iam service-accounts add-iam-policy-binding "$invoker" --project="$project" \
    --member="$agent" --role=roles/iam.serviceAccountTokenCreator --quiet
