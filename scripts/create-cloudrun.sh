#!/usr/bin/env bash
# Deploys `cdnwarm serve` as a private Cloud Run service in one region, and prints the service's URL.
#
#   create-cloudrun.sh [SERVICE] [REGION] [IMAGE] [PROJECT]
#
# Defaults: cdn-prewarm-REGION, us-central1, the image that cloudbuild.yaml pushes, and gcloud's current project.
# Run pubsub-setup.sh once before: it makes the account that may invoke the service. Running this again updates it.
set -euo pipefail

region=${2:-us-central1}
service=${1:-cdn-prewarm-$region}
project=${4:-$(gcloud config get project)}
image=${3:-us-central1-docker.pkg.dev/$project/registry-docker/cdn-prewarm-pubsub}
# An image without a tag or a digest is the latest.
[[ ${image##*/} == *[:@]* ]] || image=$image:latest
[[ -n $project ]] || { echo "No project: name one, or run gcloud config set project." >&2; exit 2; }

# Of the service's two URLs the one that is known before it exists. Pushes go to it, and their tokens name it.
number=$(gcloud projects describe "$project" --format='value(projectNumber)')
url=https://$service-$number.$region.run.app
label=$service-$number
((${#label} <= 63)) || { echo "$label is longer than 63 characters: choose a shorter name than $service." >&2; exit 2; }
invoker=cloudrun-pubsub-invoker@$project.iam.gserviceaccount.com

echo "Deploying $image as $service in $region of $project."

# Private: Cloud Run's front end lets only accounts with roles/run.invoker in. It checks the signature of their tokens and
# removes it, so `serve` is told to trust that, and checks that the token is Pub/Sub's and for this service.
# A push is answered after its URL is warmed, so the service needs its CPU during requests only, and it starts in a
# fraction of a second, so none needs to be kept waiting.
gcloud run deploy "$service" \
    --project="$project" \
    --region="$region" \
    --image="$image" \
    --args="serve,--trust-platform-auth,--push-audience,$url,--push-service-account,$invoker,--region,$region" \
    --no-allow-unauthenticated \
    --add-custom-audiences="$url" \
    --timeout=600 \
    --cpu-boost \
    --quiet

# On this service alone, not on the whole project.
gcloud run services add-iam-policy-binding "$service" \
    --project="$project" \
    --region="$region" \
    --member="serviceAccount:$invoker" \
    --role=roles/run.invoker \
    --quiet

echo "$url"
