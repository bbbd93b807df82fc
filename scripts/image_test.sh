#!/usr/bin/env bash
# Builds the image from its sources with BuildKit, and checks the result: `make image-test`. The image has a separate name
# and is removed at the end; layers stay in the builder's cache. `make image` and `make compose-test` cover the other
# build target, with the default builder of `docker build`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export IMAGE_NAME=nico-rewrap-image-test
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
image=$IMAGE_NAME:$version
docker=$(scripts/tools.sh buildkit)
export DOCKER_BUILDKIT=1 PATH=${docker%/*}:$PATH
work=$(mktemp -d)
before=''
trap 'rm -rf "$work"; docker rmi -f "$image" "$IMAGE_NAME:latest" $before >/dev/null 2>&1 || true' EXIT
die() {
    printf '%s\n' "image-test: FAILED: $*" >&2
    exit 1
}
# check WHAT GOT WANTED
check() {
    [ "$2" = "$3" ] || die "$1: got '$2', expected '$3'"
    printf '%s\n' "image-test: ok: $1: $2"
}
in_image() { docker run --rm --network none --read-only --cap-drop ALL "$@"; }
exit_code() { "$@" >/dev/null 2>&1 && echo 0 || echo $?; }

# A copy, because the test changes files.
cp -a Dockerfile .dockerignore Cargo.toml Cargo.lock build.rs proto migrations src scripts "$work"
# Without optimization, because it takes most of the build time and this test does not depend on it.
sed -i 's/^\[profile\.release\]$/&\nopt-level = 0/' "$work/Cargo.toml"
grep -q '^opt-level = 0$' "$work/Cargo.toml" || die "Cargo.toml has no [profile.release]"
export NICO_REWRAP_REVISION=0123456789ab
"$work/scripts/image.sh" inside

check "its version and revision" "$(in_image "$image" --version)" "nico-rewrap $version (0123456789ab)"
label() { docker image inspect -f "{{index .Config.Labels \"org.opencontainers.image.$1\"}}" "$image"; }
check "its label of the revision" "$(label revision)" 0123456789ab
check "its layers" "$(docker image inspect -f '{{len .RootFS.Layers}}' "$image")" 1
check "its user" "$(docker image inspect -f '{{.Config.User}}' "$image")" 65532:65532
check "its health check" "$(docker image inspect -f '{{index .Config.Healthcheck.Test 1}} {{index .Config.Healthcheck.Test 2}}' "$image")" \
    "/nico-rewrap healthcheck"
check "the health check without a service" "$(exit_code in_image "$image" healthcheck --live)" 1
check "a start without a site's files" "$(exit_code in_image "$image")" 78

# A change of the project's sources must not rebuild the dependencies.
dependencies() {
    docker build --quiet --target dependencies ${RUST_IMAGE:+--build-arg "RUST_IMAGE=$RUST_IMAGE"} "$work"
}
before=$(dependencies)
echo '// changed' >>"$work/src/lib.rs"
check "the layers of the dependencies after a change of the sources" "$(dependencies)" "$before"
