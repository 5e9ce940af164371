# For another architecture: docker build --build-arg ARCH=arm64 .
ARG RUST_VERSION=1.95
ARG ARCH=amd64

FROM --platform=linux/${ARCH} rust:${RUST_VERSION}-slim-bookworm AS build
# jemalloc is built from source.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*
ARG RINGEST_BRANCH=""
ARG RINGEST_REVISION=""
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin ringest && mkdir /empty

FROM --platform=linux/${ARCH} gcr.io/distroless/cc-debian12
COPY --from=build /src/target/release/ringest /bin/ringest
# The user of Thanos' image, so that volumes keep their owner. Without flags the data directory is
# ./data.
COPY --from=build --chown=1001:1001 /empty /var/ringest
WORKDIR /var/ringest
USER 1001
EXPOSE 10901 10902 19291
ENTRYPOINT ["/bin/ringest"]
