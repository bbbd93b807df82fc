#!/usr/bin/env bash
# Builds nico-rewrap-runner:latest, the runner image of the container tests, on the base image POSTGRES_IMAGE.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/static.sh seed nico_api
install -m 0755 "$(scripts/tools.sh grpcurl)" target/image/grpcurl
docker build --quiet --build-arg "POSTGRES_IMAGE=${POSTGRES_IMAGE:-postgres:15}" --tag nico-rewrap-runner:latest \
    --file deploy/compose/runner.Dockerfile target/image >/dev/null
