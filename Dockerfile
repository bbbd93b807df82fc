# The image of nico-rewrap: one static binary and nothing else, no shell, no libraries, no package manager. Two targets,
# for today's BuildKit and for the classic builder (see docs/install/compose.md):
#
#   docker build .                                                          compiles in here
#   docker build --target prebuilt --build-arg BINARY=target/image/… .      takes a binary that was built outside
#
# The second needs no registry and no crate index. The classic builder builds every stage above its target, hence the
# order of the stages.

ARG RUST_IMAGE=rust:1.95-slim-bookworm

# ---- what both have in common ----------------------------------------------------------------------------------------

FROM scratch AS runtime
ARG VERSION=unknown
ARG REVISION=unknown
ARG SOURCE=
LABEL org.opencontainers.image.title="nico-rewrap" \
      org.opencontainers.image.description="Re-wraps NICo's machine-identity secrets when a site changes its master key" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# A number, as there is no /etc/passwd, and so that Kubernetes can tell that it is not root.
USER 65532:65532
EXPOSE 1179 1180
ENTRYPOINT ["/nico-rewrap"]
CMD ["serve", "--config", "/etc/nico-rewrap/site.toml", "--config", "/etc/nico-rewrap/rewrap.toml"]
# Give it the same --config as the command, where that is another one.
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s --retries=3 \
    CMD ["/nico-rewrap", "healthcheck", "--config", "/etc/nico-rewrap/site.toml", "--config", "/etc/nico-rewrap/rewrap.toml"]

# ---- a binary from outside -------------------------------------------------------------------------------------------

FROM runtime AS prebuilt
# A static one. Below the directory of the build: what is there by default is there for the classic builder's sake,
# which comes by on its way to the stages below, and ends up nowhere.
ARG BINARY=Cargo.toml
COPY ${BINARY} /nico-rewrap

# ---- compiled in here ------------------------------------------------------------------------------------------------

FROM ${RUST_IMAGE} AS dependencies
WORKDIR /src

# The dependencies, under empty sources of ours: built again only when they change.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src benches tests \
    && for file in src/main.rs build.rs benches/field.rs tests/main.rs; do echo 'fn main() {}' >"$file"; done \
    && touch src/lib.rs README.md \
    && cargo build --release --locked --bin nico-rewrap

FROM dependencies AS build
COPY build.rs ./
COPY proto proto
COPY migrations migrations
COPY src src
ARG REVISION=unknown
# Sources keep their times when they are copied, which may be older than those of the empty ones. The binary's own time
# would make every layer another one. Static, so that it runs on scratch, as in scripts/static.sh.
RUN touch build.rs src/main.rs src/lib.rs \
    && NICO_REWRAP_REVISION="${REVISION}" cargo rustc --release --locked --bin nico-rewrap -- -C target-feature=+crt-static \
    && install -m 0755 target/release/nico-rewrap /nico-rewrap \
    && touch -d @0 /nico-rewrap

FROM runtime AS compiled
COPY --from=build /nico-rewrap /nico-rewrap
