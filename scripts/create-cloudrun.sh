#!/usr/bin/env bash
# Deploys `cdnwarm serve` as a private Cloud Run service in one region, and prints the service's URL.
#
#   create-cloudrun.sh [SERVICE] [REGION] [IMAGE] [PROJECT]
#
# Defaults: cdn-prewarm-REGION, us-central1, the image that cloudbuild.yaml pushes, and gcloud's current project.
# Run pubsub-setup.sh once before: it makes the accounts. Running this again updates the service.
# `cdnwarm setup` does the same for every region at once, and shows the difference first.
set -euo pipefail

region=${2:-us-central1}
service=${1:-cdn-prewarm-$region}
project=${4:-$(gcloud config get project)}
[[ -n $project ]] || { echo "No project: name one, or run gcloud config set project." >&2; exit 2; }
image=${3:-us-central1-docker.pkg.dev/$project/registry-docker/cdn-prewarm-pubsub}
# An image without a tag or a digest is the latest.
[[ ${image##*/} == *[:@]* ]] || image=$image:latest

# Of the service's two URLs the one that is known before it exists. Pushes go to it, and their tokens name it.
number=$(gcloud projects describe "$project" --format='value(projectNumber)')
url=https://$service-$number.$region.run.app
label=$service-$number
((${#label} <= 63)) || { echo "$label is longer than 63 characters: choose a shorter name than $service." >&2; exit 2; }
invoker=cloudrun-pubsub-invoker@$project.iam.gserviceaccount.com

echo "Deploying $image as $service in $region of $project."

# Private: Cloud Run's front end lets only accounts with roles/run.invoker in. It checks the signature of their tokens and
# removes it, so `serve` is told to trust that, and checks that the token is Pub/Sub's and for this service. Ingress is
# internal, which lets the Pub/Sub of the same project in, and nobody from the internet.
#
# One instance waits with its CPU on: the first push after a quiet hour is warmed at once, and between pushes the key set,
# the log and kept connections are looked after. --timeout is below the limit of one request (600 s, as long as an
# acknowledgement may take), so that it is `serve` that answers; --max-in-flight (1000) is above the concurrency, so that
# Cloud Run adds instances before `serve` answers 429.
gcloud run deploy "$service" \
    --project="$project" \
    --region="$region" \
    --image="$image" \
    --service-account="cdnwarm-serve@$project.iam.gserviceaccount.com" \
    --args="serve,--trust-platform-auth,--push-audience,$url,--push-service-account,$invoker,--region,$region,--malformed,ack,--timeout,570" \
    --no-allow-unauthenticated \
    --ingress=internal \
    --add-custom-audiences="$url" \
    --use-http2 \
    --port=8080 \
    --cpu=1 \
    --memory=512Mi \
    --concurrency=250 \
    --min-instances=1 \
    --no-cpu-throttling \
    --cpu-boost \
    --timeout=600 \
    --startup-probe=httpGet.path=/ready,httpGet.port=8080,periodSeconds=1,timeoutSeconds=1,failureThreshold=60 \
    --liveness-probe=httpGet.path=/health,httpGet.port=8080,periodSeconds=10,timeoutSeconds=5,failureThreshold=3 \
    --quiet

# On this service alone, not on the whole project.
gcloud run services add-iam-policy-binding "$service" \
    --project="$project" \
    --region="$region" \
    --member="serviceAccount:$invoker" \
    --role=roles/run.invoker \
    --quiet

echo "$url"
