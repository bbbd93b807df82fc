#!/usr/bin/env bash
# Builds static binaries for container images, in target/image:
#
#   scripts/static.sh nico-rewrap [EXAMPLE...]
#
# Only the final link is static. Build scripts and macros are unaffected, and the dependencies are those of `make build`.
# The static binary replaces the one of `make build` in target/release until the next `make build`, which only links.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/tools.sh rust cc >/dev/null
out=${CARGO_TARGET_DIR:-target}/release
mkdir -p target/image
for name in "$@"; do
    if [ -f "examples/$name.rs" ]; then
        kind=example from=$out/examples/$name
    else
        kind=bin from=$out/$name
    fi
    cargo rustc --release --locked "--$kind" "$name" -- -C target-feature=+crt-static
    # A fixed time, so that the same binary always gives the same layer.
    install -m 0755 "$from" "target/image/$name"
    touch -d @0 "target/image/$name"
done
