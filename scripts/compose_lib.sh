# shellcheck shell=bash
# Functions with which compose_test.sh controls and checks containers. lib.sh makes the certificates and keys, as for the
# demo.

DATABASE_URL=none
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

ORGANIZATIONS=600
passed=0
project=nico-rewrap-test-$$
database='' service='' runner='' secrets='' digest='' owner_url=''

read -r -a compose_command <<<"$("$root/scripts/tools.sh" compose)"
compose() { "${compose_command[@]}" -p "$project" -f "$root/deploy/compose/docker-compose.yml" "$@"; }

at_end() {
    docker network connect "$(network)" "$database" >/dev/null 2>&1 || true
    compose --profile sidecar down -v --remove-orphans -t 2 >>compose.log 2>&1 || cat compose.log >&2
}

fail() {
    printf '\n%s%s failed: %s%s\n' "$red" "$what" "$*" "$plain" >&2
    printf 'the last lines of the containers:\n' >&2
    compose logs --no-color --tail 30 >&2 2>&1 || true
    # Print it again, because the log of a CI run can be cut to its last lines.
    printf '%s%s failed: %s%s\n' "$red" "$what" "$*" "$plain" >&2
    printf '%s passed, 1 failed\n' "$passed"
    exit 1
}

# check NAME GOT WANTED
check() {
    [ "$2" = "$3" ] || fail "$1: got '$2', expected '$3'"
    passed=$((passed + 1))
    printf '  %-44s %s  %sok%s\n' "$1" "${2//$'\n'/, }" "$green" "$plain"
}

# wait_until SECONDS COMMAND...
wait_until() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$deadline" ] || fail "timed out while waiting for: $*"
        sleep 0.1
    done
}

# ---- the site --------------------------------------------------------------------------------------------------------

make_site() {
    make_certificates
    make_keys
    kv3=$(openssl rand -base64 32)
    write_secrets "kv1=$kv1" "kv2=$kv2" "kv3=$kv3"
    mkdir site site/etc site/pki site/postgres
    cp "$root"/deploy/compose/{site,rewrap}.toml secrets.json pki/{server.pem,server.key,service-ca.pem,admin-root.pem} \
        site/etc/
    cp pki/{service-ca.pem,admin-chain.pem,admin.key,server.pem,server.key} site/pki/
    cp pki/postgres.{pem,key} site/postgres/
    # The users in the containers must be able to read the files. On this machine, the parent directory is not accessible
    # to others.
    chmod -R a+rX site
    export SITE=$work/site
    POSTGRES_PASSWORD=$(openssl rand -hex 16) OWNER_PASSWORD=$(openssl rand -hex 16) ROLE_PASSWORD=$(openssl rand -hex 16)
    owner_url="postgres://nico:$OWNER_PASSWORD@postgres/nico?sslmode=verify-full&sslrootcert=/etc/nico-rewrap/service-ca.pem"
    export POSTGRES_PASSWORD OWNER_PASSWORD ROLE_PASSWORD
}

# target KEY_ID : sets the target key for services that start later.
target() { sed -i "s/^current_encryption_key_id = .*/current_encryption_key_id = \"$1\"/" site/etc/site.toml; }

container() { compose ps -q "$1"; }
network() { echo "${project}_site"; }
address() { docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$1"; }
image_of() { docker inspect -f '{{.Image}}' "$1"; }
layers() { docker image inspect -f '{{json .RootFS.Layers}}' "$1"; }
label() { docker inspect -f "{{index .Config.Labels \"org.opencontainers.image.$2\"}}" "$1"; }
healthy() { [ "$(docker inspect -f '{{.State.Health.Status}}' "$1")" = healthy ]; }
status_of_service() { sed -n "s/^$1:[[:space:]]*//p" "/proc/$(docker inspect -f '{{.State.Pid}}' "$service")/status"; }
in_runner() { docker exec "$runner" "$@"; }

# Over the Unix socket, so that it works without the network.
sql() { docker exec -u postgres "$database" psql -qXAt -F ' ' -v ON_ERROR_STOP=1 -U postgres -d nico -c "$1"; }

role_hash() { sql "SELECT rolpassword FROM pg_authid WHERE rolname = 'nico_rewrap'"; }

# Runs the commands of docs/install/postgres.md as a superuser, in the directory of role.sql. The password comes from standard
# input, because there is no terminal.
run_role_commands() {
    docker exec -i -u postgres "$database" sh -c 'cat >/tmp/role.sql' <"$root/deploy/postgres/role.sql"
    printf '%s\n' "$ROLE_PASSWORD" "$ROLE_PASSWORD" |
        docker exec -i -u postgres -w /tmp "$database" bash -euo pipefail -c "$(cat role.commands)" >role.log 2>&1
}

# ---- the secrets -----------------------------------------------------------------------------------------------------

# by_key and digest decrypt every secret with code that is independent of the service.
look() { in_runner nico_api --database "$owner_url" --secrets /etc/nico-rewrap/secrets.json look; }
by_key() { look | grep -v '^digest ' || fail 'a secret cannot be decrypted'; }
digest() { look | grep '^digest ' || fail 'a secret cannot be decrypted'; }

# on_key KEY_ID : the number of organizations whose first signing key is under this key. Every organization has one.
on_key() {
    sql "SELECT count(*) FROM tenant_identity_config
        WHERE convert_from(decode(encrypted_signing_key_1, 'base64'), 'UTF8')::jsonb->>'key_id' = '$1'"
}
under_way() { local n && n=$(on_key "$1") && [ "$n" -ge 30 ] && [ "$n" -lt $((ORGANIZATIONS - 60)) ]; }

# Restores every secret to the seeded state, under kv1.
reset_secrets() {
    sql "UPDATE tenant_identity_config AS c SET encrypted_signing_key_1 = s.encrypted_signing_key_1,
        encrypted_signing_key_2 = s.encrypted_signing_key_2,
        encrypted_auth_method_config = s.encrypted_auth_method_config
        FROM saved AS s WHERE s.organization_id = c.organization_id"
    check 'secrets by key after the reset' "$(by_key)" "kv1 $secrets"
}

# ---- runs ------------------------------------------------------------------------------------------------------------

# rewrap DRY_RUN CONTAINER : makes the call of an operator, and writes its report to report.json.
rewrap() { call "$1" "$2" >report.json 2>error.txt; }
call() {
    in_runner grpcurl -cacert /pki/service-ca.pem -cert /pki/admin-chain.pem -key /pki/admin.key -emit-defaults \
        -authority localhost -connect-timeout 5 -max-time 120 -d "{\"dry_run\": $1}" \
        "$(address "$2"):1179" forge.Forge/ReencryptTenantIdentitySecrets
}

# start_run CONTAINER TARGET : starts an apply, and returns while it runs. $client is the pid of its client.
start_run() {
    call false "$1" >run.json 2>run.txt &
    client=$!
    wait_until 30 under_way "$2"
    note "the run has started: $(on_key "$2") of $ORGANIZATIONS organizations are on $2"
}

# end_run NAME OUTCOME... : waits for the end of the run, and checks that it has one of these outcomes.
end_run() {
    local name=$1 code=0 outcome
    shift
    wait "$client" || code=$?
    outcome=$(outcome "$code")
    case " $* " in
    *" $outcome "*) check "$name ended with" "$outcome" "$outcome" ;;
    *) fail "$name ended with $outcome, expected $*: $(cat run.txt)" ;;
    esac
}

# outcome EXIT_CODE : the outcome for an exit code of grpcurl, which is 64 plus the status code.
outcome() {
    case $1 in
    0) echo OK ;;
    78) echo UNAVAILABLE ;;
    *) echo "exit code $1" ;;
    esac
}

call_outcome() {
    local code=0
    rewrap true "$service" || code=$?
    outcome "$code"
}

# report NAME TARGET UPDATED SKIPPED FIELDS FIELDS_SKIPPED : checks the values in report.json.
report() {
    check "$1: examined, updated, skipped, failed" \
        "$(value rowsExamined) $(value rowsUpdated) $(value rowsSkippedAllOnTarget) $(value rowsFailed)" \
        "$ORGANIZATIONS $3 $4 0"
    check "$1: secrets re-wrapped, on target" "$(value fieldsReencrypted) $(value fieldsSkippedOnTarget)" "$5 $6"
    check "$1: target, failures listed" \
        "$(value currentEncryptionKeyId) $(grep -c '"field":' report.json || true)" "$2 0"
}

# dry_run TARGET UPDATED SKIPPED FIELDS FIELDS_SKIPPED
dry_run() {
    rewrap true "$service" || fail "dry run: $(cat error.txt)"
    report 'dry run' "$@"
}

# end_sessions : ends every session of the service. When the network is back, the kernel still sends what a closed connection
# held. Such writes are in doubt for the run that made them, and would change the counters of the next run.
end_sessions() {
    sql "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'nico-rewrap'" >/dev/null
    wait_until 30 no_sessions
}
no_sessions() { [ "$(sql "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'nico-rewrap'")" = 0 ]; }

# nobody_writes : succeeds if no session of the service executes a statement.
nobody_writes() {
    [ "$(sql "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'nico-rewrap' AND state <> 'idle'")" = 0 ]
}

# next_run_completes TARGET : checks that an apply completes, and that its counters account for the rows that earlier runs
# have re-wrapped.
next_run_completes() {
    local rows_done fields_done
    # A session that was cut off can still write the rows that it had received.
    wait_until 60 nobody_writes
    rows_done=$(on_key "$1")
    fields_done=$(by_key | sed -n "s/^$1 //p")
    note "before the next run, $rows_done organizations are on $1"
    check 'digest of the decrypted secrets' "$(digest)" "$digest"
    rewrap false "$service" || fail "the next run: $(cat error.txt)"
    report 'next run' "$1" $((ORGANIZATIONS - rows_done)) "$rows_done" $((secrets - fields_done)) "${fields_done:-0}"
    check 'secrets by key' "$(by_key)" "$1 $secrets"
    check 'digest of the decrypted secrets' "$(digest)" "$digest"
    dry_run "$1" 0 "$ORGANIZATIONS" 0 "$secrets"
}
