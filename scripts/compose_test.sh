#!/usr/bin/env bash
# Tests nico-rewrap in containers: the run-book, network faults, and the sidecar of nico-api: `make compose-test`.
#
# With FAULTS=no, the script runs only the tests that depend on the compose tool. CI uses this for another COMPOSE.
#
# Needs the images nico-rewrap:latest and nico-rewrap-runner:latest (scripts/image.sh, scripts/runner_image.sh), and
# postgres:15. REWRAP_IMAGE, RUNNER_IMAGE and POSTGRES_IMAGE name other images. The test has its own compose project,
# publishes no port, and removes its containers and volumes at the end.
set -euo pipefail

# shellcheck source=scripts/compose_faults.sh
source "$(dirname "${BASH_SOURCE[0]}")/compose_faults.sh"

step "A site in containers"
make_site
compose up -d postgres nico-rewrap runner >>compose.log 2>&1 || fail "compose up: $(tail -n 5 compose.log)"
database=$(container postgres) service=$(container nico-rewrap) runner=$(container runner)
wait_until 60 healthy "$service"
note "postgres $(sql 'SHOW server_version'), nico-rewrap (its health check succeeds), a runner with grpcurl; project $project"
seeded=$(in_runner seed --config /etc/nico-rewrap/site.toml --config /etc/nico-rewrap/rewrap.toml \
    --key-id kv1 --organizations "$ORGANIZATIONS")
secrets=${seeded##*secrets=}
sql 'CREATE TABLE saved AS TABLE tenant_identity_config' >/dev/null
digest=$(digest)
check 'secrets by key' "$(by_key)" "kv1 $secrets"

step "The image"
check 'version' "$(label "$service" version)" "$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -n 1)"
check 'licence' "$(label "$service" licenses)" Apache-2.0
docker build --quiet --no-cache --target prebuilt --build-arg BINARY=target/image/nico-rewrap \
    --iidfile image.id "$root" >build.log 2>&1 || fail "docker build: $(cat build.log)"
check 'layers of a second build' "$(layers "$(cat image.id)")" "$(layers "$(image_of "$service")")"
docker rmi "$(cat image.id)" >/dev/null

step "Restrictions of the containers"
check 'user of the service' "$(docker inspect -f '{{.Config.User}}' "$service")" 65532:65532
check 'read-only root file system' "$(docker inspect -f '{{.HostConfig.ReadonlyRootfs}}' "$service")" true
check 'capabilities' "$(status_of_service CapEff)" 0000000000000000
check 'no new privileges' "$(status_of_service NoNewPrivs)" 1
check 'a shell in the image' "$(docker exec "$service" /bin/sh -c true >/dev/null 2>&1 && echo yes || echo no)" no
check 'a client in the container, without a certificate' \
    "$(docker exec "$service" /nico-rewrap status >/dev/null && echo yes)" yes
check 'ports published' \
    "$(docker ps --filter "label=com.docker.compose.project=$project" --format '{{.Ports}}' | grep -c -e '->' || true)" 0
check 'database role of the service' "$(sql "SELECT DISTINCT usename FROM pg_stat_activity
    WHERE application_name = 'nico-rewrap'")" nico_rewrap

step "TLS to Postgres"
check 'clients with TLS, and without' "$(sql "SELECT count(*) FILTER (WHERE ssl) > 0, count(*) FILTER (WHERE NOT ssl)
    FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE client_addr IS NOT NULL")" 't 0'
check 'a client without TLS' "$(in_runner psql -qX -d "${owner_url%%\?*}?sslmode=disable" -c '' 2>&1 |
    grep -c 'no encryption')" 1
check 'users who can read the key' "$(docker exec "$database" stat -c '%a %U' /tmp/postgres.key)" '600 postgres'

step "The commands of docs/install/postgres.md for the database role"
hash_before=$(role_hash)
"$root/scripts/doc_commands.sh" install/postgres "Database role" >role.commands
run_role_commands || fail "the commands of the page: $(cat role.log)"
check 'the password hash has changed' "$([ "$(role_hash)" != "$hash_before" ] && echo yes)" yes

step "The run-book"
dry_run kv2 "$ORGANIZATIONS" 0 "$secrets" 0
check 'secrets by key after the dry run' "$(by_key)" "kv1 $secrets"
rewrap false "$service" || fail 'apply'
report 'apply' kv2 "$ORGANIZATIONS" 0 "$secrets" 0
check 'secrets by key' "$(by_key)" "kv2 $secrets"
check 'digest of the decrypted secrets' "$(digest)" "$digest"
dry_run kv2 0 "$ORGANIZATIONS" 0 "$secrets"

[ "${FAULTS:-yes}" = no ] || fault_client_cut_off
fault_two_replicas
[ "${FAULTS:-yes}" = no ] || fault_database_killed
[ "${FAULTS:-yes}" = no ] || fault_database_cut_off
sidecar_of_nico_api
[ "${FAULTS:-yes}" = no ] || fault_rolling_replacement

step "The database stops"
docker stop -t 5 "$database" >/dev/null
check 'a call without a database' "$(call_outcome)" UNAVAILABLE
check 'the service is alive' "$(docker exec "$service" /nico-rewrap healthcheck --live >/dev/null && echo yes)" yes

good "Done in $SECONDS s."
printf '%s passed, 0 failed\n' "$passed"
