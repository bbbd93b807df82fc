#!/usr/bin/env bash
# Makes sure that public base images exist locally. Existing images are not changed. Missing images are pulled from the
# registry. If no registry can be reached, the script builds a stand-in with the same name from Debian's packages:
#
#   scripts/base-images.sh IMAGE...      IMAGE: debian:bookworm-slim debian:trixie-slim postgres:15 postgres:17
#                                         rust:1.95-slim-bookworm
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '%s\n' "base-images: $*" >&2; }
is_there() { docker image inspect "$1" >/dev/null 2>&1; }
as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }

scripts/tools.sh docker >/dev/null
work=$(mktemp -d)
trap 'rm -rf "$work" 2>/dev/null || as_root rm -rf "$work"' EXIT

# debian SUITE IMAGE
debian() {
    local debootstrap
    debootstrap=$(scripts/tools.sh debootstrap)
    as_root "$debootstrap" --variant=minbase "$1" "$work/root" >"$work/log" 2>&1 || {
        tail -n 20 "$work/log" >&2
        exit 1
    }
    as_root rm -rf "$work/root/var/cache/apt/archives" "$work/root/var/lib/apt/lists" \
        "$work/root/usr/share/doc" "$work/root/usr/share/man" "$work/root/usr/share/locale"
    as_root mkdir -p "$work/root/var/cache/apt/archives/partial" "$work/root/var/lib/apt/lists/partial"
    as_root tar -C "$work/root" --exclude './dev/*' --exclude './proc/*' --exclude './sys/*' -c . |
        docker import --change 'CMD ["bash"]' - "$2" >/dev/null
    as_root rm -rf "$work/root"
}

# postgres VERSION SUITE : VERSION must be the version in the suite.
postgres() {
    "$0" "debian:$2-slim"
    docker build --quiet --build-arg "BASE=debian:$2-slim" --build-arg "VERSION=$1" --tag "postgres:$1" \
        scripts/base-images/postgres >/dev/null
}

# The toolchain of this machine without its documentation, which is half of the size.
rust() {
    mkdir -p "$work/rust"
    cp -a "$(rustc --print sysroot)" "$work/rust/toolchain"
    rm -rf "$work/rust/toolchain/share"
    cp /etc/ssl/certs/ca-certificates.crt "$work/rust/certificates.crt"
    cp scripts/base-images/rust/Dockerfile "$work/rust/"
    docker build --quiet --tag "$1" "$work/rust" >/dev/null
}

for image in "$@"; do
    if is_there "$image" || docker pull --quiet "$image" >/dev/null 2>&1; then continue; fi
    say "making a stand-in for $image"
    case $image in
    debian:bookworm-slim) debian bookworm "$image" ;;
    debian:trixie-slim) debian trixie "$image" ;;
    postgres:15) postgres 15 bookworm ;;
    postgres:17) postgres 17 trixie ;;
    rust:*-slim-bookworm)
        "$0" debian:bookworm-slim
        rust "$image"
        ;;
    *)
        say "no stand-in is known for $image"
        exit 1
        ;;
    esac
done
