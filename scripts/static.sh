#!/usr/bin/env bash
# Static binaries for container images, in target/image:
#
#   scripts/static.sh nico-rewrap [EXAMPLE...]
#
# Only what is linked last is told to be static: build scripts and macros are left alone, and everything below is that of
# `make build`, whose binary in target/release this one replaces until the next build, a matter of a second.
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
    # The same binary is the same layer, whenever it was built.
    install -m 0755 "$from" "target/image/$name"
    touch -d @0 "target/image/$name"
done
