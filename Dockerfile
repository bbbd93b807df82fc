# The image of nico-rewrap: one static binary, no shell, no libraries, no package manager. There are two build targets. Both
# work with BuildKit and with the classic builder (see docs/install/compose.md):
#
#   docker build .                                                          compiles the binary in the image
#   docker build --target prebuilt --build-arg BINARY=target/image/… .      copies a binary from this machine
#
# The second target needs no registry and no crate index. The classic builder builds every stage above its target, so
# `prebuilt` comes before the stages that compile.

ARG RUST_IMAGE=rust:1.95-slim-bookworm

# ---- shared by both targets ------------------------------------------------------------------------------------------

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
# A number, because the image has no /etc/passwd. Kubernetes also needs a number to check that the user is not root.
USER 65532:65532
EXPOSE 1179 1180
ENTRYPOINT ["/nico-rewrap"]
CMD ["serve", "--config", "/etc/nico-rewrap/site.toml", "--config", "/etc/nico-rewrap/rewrap.toml"]
# If you change the --config arguments of the command, change them here too.
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s --retries=3 \
    CMD ["/nico-rewrap", "healthcheck", "--config", "/etc/nico-rewrap/site.toml", "--config", "/etc/nico-rewrap/rewrap.toml"]

# ---- a binary from this machine --------------------------------------------------------------------------------------

FROM runtime AS prebuilt
# The path of a static binary in the build context. The classic builder also builds this stage on its way to the stages
# below. It then copies the default file, and the result is in no image.
ARG BINARY=Cargo.toml
COPY ${BINARY} /nico-rewrap

# ---- compiled in the image -------------------------------------------------------------------------------------------

FROM ${RUST_IMAGE} AS dependencies
WORKDIR /src

# Builds the dependencies with empty sources, so that this layer changes only with the dependencies.
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
# The first touch: copied sources keep their times, which can be older than those of the empty sources. The last touch: with
# its own time, the same binary would give a different layer. The binary is static, as in scripts/static.sh.
RUN touch build.rs src/main.rs src/lib.rs \
    && NICO_REWRAP_REVISION="${REVISION}" cargo rustc --release --locked --bin nico-rewrap -- -C target-feature=+crt-static \
    && install -m 0755 target/release/nico-rewrap /nico-rewrap \
    && touch -d @0 /nico-rewrap

FROM runtime AS compiled
COPY --from=build /nico-rewrap /nico-rewrap
