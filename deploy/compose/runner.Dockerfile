# An operator's tools for the container tests: grpcurl, psql, the example `seed`, and the stand-in for nico-api. The
# directory of the build is target/image, where scripts/runner_image.sh puts them.
ARG POSTGRES_IMAGE=postgres:15
FROM ${POSTGRES_IMAGE}
COPY grpcurl seed nico_api /usr/local/bin/
USER 65532:65532
ENTRYPOINT []
CMD ["sleep", "infinity"]
