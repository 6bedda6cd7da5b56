# One image for every role: `docker run IMAGE serve`, `docker run IMAGE bridge kafka-env urls projects/P/topics/T`.
# BASE is any Debian with a Rust toolchain on its PATH. cloudbuild.yaml passes the digest that the tag has at that moment,
# and it is kept in the image's labels; to build from the very same base again, pass that.
ARG BASE=rust:1.95-bookworm

FROM ${BASE} AS build
# librdkafka and OpenSSL are built from vendored sources, which takes make, a C compiler and perl.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential ca-certificates perl \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /project

# The dependencies take most of the time and change least, so they are a layer of their own, built around nothing.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src \
    && echo 'fn main() {}' >src/main.rs \
    && echo '//! Nothing yet.' >src/lib.rs \
    && cargo build --release --locked \
    && rm -r src

COPY . .
# cargo compares times, and what was copied may be older than what was built around nothing.
RUN touch src/main.rs src/lib.rs && cargo build --release --locked

# Just what the binary needs: itself, the C libraries it is linked to, the certificate authorities, and a place for
# temporary files. Running it there shows that nothing is missing.
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN mkdir -p /image/etc/ssl/certs \
    && mkdir -m 1777 /image/tmp \
    && cp target/release/cdnwarm /image/cdnwarm \
    && ldd /image/cdnwarm | grep -o '/[^ ]*' | sort -u | xargs cp --parents --dereference --target-directory=/image \
    && cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt \
    && echo 'hosts: files dns' >/image/etc/nsswitch.conf \
    && chroot /image /cdnwarm --version

FROM scratch
ARG BASE
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="cdnwarm" \
    org.opencontainers.image.description="Warms every CDN edge: from a Kafka record, through Pub/Sub, to a GET in each region" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.base.name="${BASE}"
COPY --from=build /image /
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/cdnwarm"]
