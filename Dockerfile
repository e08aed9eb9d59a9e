# graspd, all roles in one image: https://docs.docker.com/reference/dockerfile/
#
#   docker build -t graspd .
#
# Where no registry can be reached, from a base made here and an executable built outside
# (docs/operating.md tells how):
#
#   docker build -t graspd --target prebuilt --build-arg BASE_IMAGE=local -f Dockerfile DIRECTORY
#
# What is built from nothing stands last: the older builder makes every stage above the one that is
# asked for, and `prebuilt` must not need a toolchain.

ARG BASE_IMAGE=debian:bookworm-slim
ARG RUST_IMAGE=rust:1.90-bookworm

FROM ${BASE_IMAGE} AS runtime
# A base that has them already is left as it is, so that this step needs no network there.
RUN if ! { command -v git && command -v tini && [ -s /etc/ssl/certs/ca-certificates.crt ]; } >/dev/null; then \
        apt-get update -q \
        && apt-get install -qy --no-install-recommends git tini ca-certificates \
        && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log /var/cache/*; \
    fi
# By number, so that an orchestrator can see that it is not root. The directories belong to it, and
# so does every new volume that is mounted over one of them.
RUN echo 'graspd:x:10001:10001::/nonexistent:/usr/sbin/nologin' >> /etc/passwd \
    && echo 'graspd:x:10001:' >> /etc/group \
    && for directory in git relay tokens worker-token; do \
        mkdir -p -m 0750 "/var/lib/graspd/$directory" && chown 10001:10001 "/var/lib/graspd/$directory" || exit; \
    done
ENV NGIT_BIND_ADDRESS=0.0.0.0:7334 \
    NGIT_GIT_DATA_PATH=/var/lib/graspd/git \
    NGIT_RELAY_DATA_PATH=/var/lib/graspd/relay
WORKDIR /var/lib/graspd
USER 10001:10001
EXPOSE 7334
STOPSIGNAL SIGTERM
# Of the relay, or of the whole service; other roles are given their own where they are started.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["graspd", "health"]
ENTRYPOINT ["tini", "--", "graspd"]
CMD ["serve"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="graspd" \
      org.opencontainers.image.description="A GRASP server: a Nostr relay and a Git smart-HTTP server behind one address" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM runtime AS prebuilt
COPY graspd /usr/local/bin/graspd

FROM ${RUST_IMAGE} AS build
WORKDIR /src
COPY . .
RUN cargo fetch --locked && cargo build --release --locked --offline --bin graspd

FROM runtime
COPY --from=build /src/target/release/graspd /usr/local/bin/graspd
