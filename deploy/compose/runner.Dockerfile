# The tools of an operator for the container tests: grpcurl, psql, the example `seed`, and the stand-in for nico-api. The
# build context is target/image, where scripts/runner_image.sh puts the tools.
ARG POSTGRES_IMAGE=postgres:15
FROM ${POSTGRES_IMAGE}
COPY grpcurl seed nico_api /usr/local/bin/
USER 65532:65532
ENTRYPOINT []
CMD ["sleep", "infinity"]
