# shellcheck shell=bash
# Tests of network faults during a run, and of the sidecar. compose_test.sh sources this file. Each test starts with all
# secrets under kv1. At its end, the next run must complete with the expected counters.

# shellcheck source=scripts/compose_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/compose_lib.sh"

fault_client_cut_off() {
    step "The client loses its network during a run"
    reset_secrets
    local before
    before=$(audited CANCELLED)
    start_run "$service" kv2
    docker network disconnect "$(network)" "$runner"
    wait_until 30 more_audited CANCELLED "$before"
    kill "$client" 2>/dev/null || true
    wait "$client" 2>/dev/null || true
    docker network connect "$(network)" "$runner"
    check 'the run stopped before its end' "$([ "$(on_key kv2)" -lt "$ORGANIZATIONS" ] && echo yes)" yes
    next_run_completes kv2
}

audited() { docker logs "$service" 2>&1 | grep '"target":"audit"' | grep -c "$1" || true; }
more_audited() { [ "$(audited "$1")" -gt "$2" ]; }

fault_two_replicas() {
    step "Two instances apply at the same time"
    reset_secrets
    local other refused
    other=$(second_service)
    start_run "$service" kv2
    rewrap false "$other" && fail "the second instance applied at the same time"
    refused=$(grep -c 'already in progress' error.txt || true)
    check 'the second instance was refused' "$([ "$refused" -gt 0 ] && echo yes)" yes
    end_run 'the first' OK
    mv run.json report.json
    check 'first: examined, failed' "$(value rowsExamined) $(value rowsFailed)" "$ORGANIZATIONS 0"
    rewrap false "$other" || fail "the second instance, after the first: $(cat error.txt)"
    check 'second: updated, skipped' "$(value rowsUpdated) $(value rowsSkippedAllOnTarget)" "0 $ORGANIZATIONS"
    docker rm -f "$other" >/dev/null
    next_run_completes kv2
}

# second_service : starts another container with the current files, and waits until it is healthy.
second_service() {
    local other
    compose up -d --no-deps --no-recreate --scale nico-rewrap=2 nico-rewrap >>compose.log 2>&1
    other=$(container nico-rewrap | grep -v "^$service")
    wait_until 60 healthy "$other"
    echo "$other"
}

fault_database_killed() {
    step "The database container is killed during a run and started again"
    reset_secrets
    start_run "$service" kv2
    docker kill "$database" >/dev/null
    docker start "$database" >/dev/null
    # The run may continue with new connections, but it must not report success.
    end_run 'the run' UNAVAILABLE
    wait_until 60 sql 'SELECT 1'
    next_run_completes kv2
}

fault_database_cut_off() {
    step "The database loses its network during a run, and gets it back"
    reset_secrets
    start_run "$service" kv2
    docker network disconnect "$(network)" "$database"
    end_run 'the run' UNAVAILABLE
    check 'secrets under neither key' "$(sql "SELECT count(*) FROM tenant_identity_config
        WHERE convert_from(decode(encrypted_signing_key_1, 'base64'), 'UTF8')::jsonb->>'key_id' NOT IN ('kv1', 'kv2')")" 0
    end_sessions
    docker network connect --alias postgres "$(network)" "$database"
    wait_until 60 reachable_again
    next_run_completes kv2
}

reachable_again() { in_runner pg_isready -q -h postgres -U nico -d nico && docker exec "$service" /nico-rewrap healthcheck; }

sidecar_of_nico_api() {
    step "nico-api calls its sidecar over loopback, and continues to rotate signing keys"
    reset_secrets
    # nico-api uses the service's certificate, because both share one at a site.
    compose run --rm -T --no-deps nico-api \
        nico_api --database "$owner_url" --secrets /etc/nico-rewrap/secrets.json rotate --key-id kv2 -- \
        grpcurl -cacert /pki/service-ca.pem -cert /pki/server.pem -key /pki/server.key -emit-defaults -max-time 120 \
        -d '{}' localhost:1179 forge.Forge/ReencryptTenantIdentitySecrets >report.json 2>rotate.txt ||
        fail "nico-api: $(cat rotate.txt)"
    check 'examined, failed' "$(value rowsExamined) $(value rowsFailed)" "$ORGANIZATIONS 0"
    check 'target' "$(value currentEncryptionKeyId)" kv2
    note "$(grep '^rotations=' rotate.txt)"
    check 'more than 50 rotations during the run' "$([ "$(sed -n 's/^rotations=\([0-9]*\) .*/\1/p' rotate.txt)" -gt 50 ] && echo yes)" yes
    check 'rotations lost' "$(sed -n 's/^rotations=.* lost=//p' rotate.txt)" 0
    check 'audit records that name the caller' \
        "$(docker logs "$service" 2>&1 | grep '"target":"audit"' | tail -n 1 |
            grep -c '"identity_kind":"service","identity":"nico-api"')" 1
    check 'keys other than kv2 in use' "$(by_key | grep -vc '^kv2 ' || true)" 0
    rewrap true "$service" || fail "dry run: $(cat error.txt)"
    check 'dry run: updated, skipped, failed' \
        "$(value rowsUpdated) $(value rowsSkippedAllOnTarget) $(value rowsFailed)" "0 $ORGANIZATIONS 0"
}

fault_rolling_replacement() {
    step "During a run, the service is replaced by one with the next target key"
    reset_secrets
    local next
    target kv3
    next=$(second_service)
    start_run "$service" kv2
    docker stop "$service" >/dev/null
    end_run "the old instance's run" OK UNAVAILABLE
    check 'exit code of the old instance' "$(docker inspect -f '{{.State.ExitCode}}' "$service")" 0
    docker rm "$service" >/dev/null
    rewrap false "$next" || fail "the new instance's run after that: $(cat error.txt)"
    check 'the run of the new instance: examined, failed' "$(value rowsExamined) $(value rowsFailed)" "$ORGANIZATIONS 0"
    service=$next
    next_run_completes kv3
}
