# The architecture is the builder's own, or one given by either of
#   docker build --build-arg ARCH=arm64 .
#   docker buildx build --platform linux/amd64,linux/arm64 .
ARG RUST_VERSION=1.95
ARG ARCH=${TARGETARCH:-amd64}

FROM --platform=linux/${ARCH} rust:${RUST_VERSION}-slim-bookworm AS build
# jemalloc is built from source.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
ARG RINGEST_BRANCH=""
ARG RINGEST_REVISION=""
# Kernels for arm64 have pages of 4, 16 or 64 KiB. jemalloc aborts where they are larger than it was
# built for, and takes smaller ones. Function names stay, for backtraces.
RUN if [ "$(uname -m)" = aarch64 ]; then export JEMALLOC_SYS_WITH_LG_PAGE=16; fi \
    && CARGO_PROFILE_RELEASE_STRIP=debuginfo cargo build --release --locked --bin ringest \
    && mkdir /empty

FROM --platform=linux/${ARCH} gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/release/ringest /bin/ringest
# The user of Thanos' image, so that volumes keep their owner. Without flags the data directory is
# ./data.
COPY --from=build --chown=1001:1001 /empty /var/ringest
WORKDIR /var/ringest
USER 1001:1001
EXPOSE 10901 10902 19291 19391
ENTRYPOINT ["/bin/ringest"]
