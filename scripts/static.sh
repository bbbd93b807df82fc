#!/usr/bin/env bash
# Static binaries for container images, in target/image:
#
#   scripts/static.sh nico-rewrap [EXAMPLE...]
#
# They are built for a named target: RUSTFLAGS then leave build scripts and macros alone, and the build of `make build`
# is not disturbed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/tools.sh rust cc >/dev/null
target=$(rustc -vV | sed -n 's/^host: //p')
what=()
for name in "$@"; do
    if [ -f "examples/$name.rs" ]; then what+=(--example "$name"); else what+=(--bin "$name"); fi
done
RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --locked --target "$target" "${what[@]}"

out=${CARGO_TARGET_DIR:-target}/$target/release
mkdir -p target/image
for name in "$@"; do
    [ -f "examples/$name.rs" ] && from=$out/examples/$name || from=$out/$name
    # The same binary is the same layer, whenever it was built.
    install -m 0755 "$from" "target/image/$name"
    touch -d @0 "target/image/$name"
done
