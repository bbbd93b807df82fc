#!/usr/bin/env bash
# Builds the container image, nico-rewrap:VERSION and nico-rewrap:latest:
#
#   scripts/image.sh           with a static binary compiled on this machine; needs no registry
#   scripts/image.sh inside    with a binary compiled in the image RUST_IMAGE (see Dockerfile); needs a crate index
#
# IMAGE_SOURCE, a URL, becomes the label org.opencontainers.image.source. IMAGE_NAME replaces the name nico-rewrap.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
revision=${NICO_REWRAP_REVISION:-$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)}
name=${IMAGE_NAME:-nico-rewrap}
build=(docker build --quiet --build-arg "VERSION=$version" --build-arg "REVISION=$revision"
    --build-arg "SOURCE=${IMAGE_SOURCE:-}"
    --tag "$name:$version" --tag "$name:latest")

if [ "${1:-}" = inside ]; then
    "${build[@]}" ${RUST_IMAGE:+--build-arg "RUST_IMAGE=$RUST_IMAGE"} .
else
    scripts/static.sh nico-rewrap
    "${build[@]}" --target prebuilt --build-arg BINARY=target/image/nico-rewrap .
fi
docker image inspect --format \
    "$name:$version, revision $revision: {{.Size}} bytes in {{len .RootFS.Layers}} layer(s)" "$name:$version"
