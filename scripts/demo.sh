#!/usr/bin/env bash
# Performs the run-book on a throwaway site: `make demo`.
#
# A run lives on the server. The demo starts its runs with StartRun, and ends with the verdict about the old key. On the way,
# it plays nico-api, which writes an old secret back.
#
# Needs the release build of nico-rewrap and of the example `seed`. If DATABASE_URL is set, the demo does not start a
# server: it creates a database on the server of that URL, and drops this database at the end.
set -euo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

ORGANIZATIONS=1000
created_database=''

# ---- output ----------------------------------------------------------------------------------------------------------

dim=''
[ ! -t 1 ] || dim=$'\e[2m'

# The commands that run() prints must appear even if the output of the command is redirected.
exec 4>&1

shown() { printf '  %s$ %s%s\n' "$dim" "$*" "$plain" >&4; }

# run COMMAND... : prints the command with its quotes, then runs it.
run() {
    local word line=''
    for word in "$@"; do
        case $word in
        *[!A-Za-z0-9_./:=@-]* | '') line+=" '$word'" ;;
        *) line+=" $word" ;;
        esac
    done
    shown "${line# }"
    "$@" || fail "'$1' ended with exit code $?"
}

# run_and_show COMMAND... : the same, and prints the output of the command.
run_and_show() {
    run "$@" >output
    sed 's/^/    /' output
}

# check NAME GOT WANTED : prints one line of a report. The demo fails if the value is not WANTED.
check() {
    printf '    %-36s %10s' "$1" "$2"
    if [ "$2" = "$3" ]; then
        printf '  %sok%s\n' "$green" "$plain"
    else
        printf '  %sexpected %s%s\n' "$red" "$3" "$plain"
        fail "${1#"  "}: $2, expected $3"
    fi
}

# ---- a database on an existing server --------------------------------------------------------------------------------

create_database() {
    local pattern='^(postgres(ql)?://[^/?]*)(/[^?]*)?(\?.*)?$'
    [[ $DATABASE_URL =~ $pattern ]] || fail "DATABASE_URL must be a postgres:// URL"
    local name=nico_rewrap_demo_$$
    database_url=${BASH_REMATCH[1]}/$name${BASH_REMATCH[4]}
    "$PSQL" -qX -d "$DATABASE_URL" -c "CREATE DATABASE $name" ||
        fail "cannot create a database on the server of DATABASE_URL: its user needs CREATEDB"
    created_database=$name
}

at_end() {
    [ -z "$created_database" ] ||
        "$PSQL" -qX -d "$DATABASE_URL" -c "DROP DATABASE IF EXISTS $created_database WITH (FORCE)" ||
        printf 'could not drop the database %s\n' "$created_database" >&2
}

# ---- actions of an operator ------------------------------------------------------------------------------------------

start_service() {
    shown "nico-rewrap serve --config site.toml &"
    launch_service
    note "ready: http://127.0.0.1:$http_port/readyz answers 200"
}

stop_service() {
    shown "kill -TERM $service_pid"
    end_service
    note "stopped, exit code 0"
}

# rewrap METHOD REQUEST [COMMAND...] : calls a method of nico-rewrap. COMMAND, if given, runs grpcurl, such as `run`.
rewrap() {
    local method=$1 request=$2
    shift 2
    "$@" grpcurl -cacert pki/service-ca.pem -cert pki/admin-chain.pem -key pki/admin.key -emit-defaults \
        -d "$request" "localhost:$port" "nico.rewrap.v1.Rewrap/$method"
}

# counter NAME : a counter of the report in report.json.
counter() { sed -n "s/^    \"$1\": \"\([0-9]*\)\".*/\1/p" report.json; }

# run_on_server KIND : starts a run, waits for its end, and writes the run to report.json.
run_on_server() {
    local id
    rewrap StartRun "{\"kind\": \"$1\", \"site\": {}, \"expect_target_key_id\": \"kv2\"}" run >report.json
    id=$(value id)
    rewrap WatchRun "{\"run_id\": \"$id\"}" >watch.json || fail "WatchRun ended with exit code $?"
    rewrap GetRun "{\"run_id\": \"$id\"}" >report.json || fail "GetRun ended with exit code $?"
    [ "$(value state)" = RUN_STATE_FINISHED ] || sed -n '/^  "error": {/,/^  }/p' report.json
    check 'state of the run' "$(value state | sed 's/^RUN_STATE_//')" FINISHED
    check 'organizations examined' "$(counter rowsExamined)" "$ORGANIZATIONS"
    check '  failed' "$(counter rowsFailed)" 0
}

# rewrap_run KIND UPDATED ON_TARGET SECRETS SECRETS_ON_TARGET [WORDS] : starts a dry run or an apply. Its report must have
# these numbers.
rewrap_run() {
    local started=${EPOCHREALTIME/[^0-9]/} ended
    run_on_server "$1"
    ended=${EPOCHREALTIME/[^0-9]/}
    check "  ${6:-re-wrapped}" "$(counter rowsUpdated)" "$2"
    check '  already under the target key' "$(counter rowsOnTarget)" "$3"
    check "secrets ${6:-re-wrapped}" "$(counter secretsRewrapped)" "$4"
    check 'secrets already under the target key' "$(counter secretsOnTarget)" "$5"
    note "in $(((ended - started) / 1000)) ms"
}

# The verdict about kv1, from ListKeys.
ask_for_verdict() {
    rewrap ListKeys '{}' >keys.json
    sed -n '/"keyId": "kv1"/,/"stragglers"/p' keys.json >verdict.txt
}
verdict() { sed -n 's/.*"state": "VERDICT_STATE_\([A-Z_]*\)".*/\1/p' verdict.txt; }
verdict_is() { ask_for_verdict && [ "$(verdict)" = "$1" ]; }

# wait_for_verdict STATE STRAGGLERS : waits until the verdict about kv1 is STATE, and prints it.
wait_for_verdict() {
    pause=0.2 wait_for 60 "$service_pid" verdict_is "$1" || fail "the verdict of kv1 is $(verdict), expected $1"
    shown "grpcurl … -d '{}' localhost:$port nico.rewrap.v1.Rewrap/ListKeys"
    grep -E '"(keyId|secrets|state|explanation|stragglers)":' verdict.txt | sed 's/^ */    /'
    check 'verdict of kv1' "$(verdict)" "$1"
    check 'stragglers' "$(sed -n 's/.*"stragglers": "\([0-9]*\)".*/\1/p' verdict.txt)" "$2"
}

# The demo does not rely on the report alone. It counts the secrets by key id, and computes a digest of all rows.
envelopes="(SELECT convert_from(decode(text, 'base64'), 'UTF8') AS envelope FROM tenant_identity_config,
    LATERAL (VALUES (encrypted_signing_key_1), (encrypted_signing_key_2), (encrypted_auth_method_config)) AS s(text)
    WHERE text <> '') AS s"
count_by_key() { query "SELECT envelope::jsonb->>'key_id', count(*) FROM $envelopes GROUP BY 1 ORDER BY 1"; }
digest() {
    query "SELECT md5(string_agg(c::text || t::text, '' ORDER BY organization_id COLLATE \"C\"))
        FROM tenant_identity_config AS c JOIN tenants AS t USING (organization_id)"
}

# ---- the demo --------------------------------------------------------------------------------------------------------

choose_ports

step "A throwaway site"
make_certificates
note "certificates: a service CA, an admin root CA with an issuing CA, and one administrator"
if [ -n "${DATABASE_URL:-}" ]; then
    create_database
    note "database: $created_database on the server of DATABASE_URL"
else
    start_postgres
    note "database: $("$PG_BIN/postgres" --version), in $work"
fi

step "Two master keys: kv1 is the old one, kv2 the new one"
run_and_show nico-rewrap keygen
note "(an example of a new key; the demo makes its two keys with openssl rand -base64 32)"
make_keys
# A site uses the defaults: a census every 10 minutes, and a soak of one hour.
write_config kv2 'census_interval = "1s"
soak = "8s"'
note "settings: a census every second, and a soak of 8 s (by default 10 minutes and one hour)"

step "$ORGANIZATIONS organizations with secrets under kv1"
run_and_show nico-rewrap migrate --config site.toml
run_and_show nico-rewrap state migrate --config site.toml
run_and_show seed --config site.toml --key-id kv1 --organizations "$ORGANIZATIONS"
secrets=$(sed -n 's/.*secrets=\([0-9]*\).*/\1/p' output)
[ -n "$secrets" ] || fail "seed did not print the number of secrets"
note "one of them, decoded from base64: $(query "SELECT left(envelope, 75) FROM $envelopes LIMIT 1")..."
check 'secrets by key, in the database' "$(count_by_key)" "kv1 $secrets"
before=$(digest)

step "1. Start with kv2 as the target"
start_service

step "2. Dry run"
rewrap_run RUN_KIND_DRY_RUN "$ORGANIZATIONS" 0 "$secrets" 0 'would be re-wrapped'
check 'database' "$([ "$(digest)" = "$before" ] && echo untouched || echo changed)" untouched

step "3. Apply"
query 'CREATE TABLE read_by_nico_api AS SELECT organization_id, encrypted_signing_key_1 AS text FROM tenant_identity_config
    ORDER BY organization_id COLLATE "C" LIMIT 1' >/dev/null
note "nico-api reads one row: it is about to change the identity configuration of this organization"
rewrap_run RUN_KIND_APPLY "$ORGANIZATIONS" 0 "$secrets" 0
check 'secrets by key, in the database' "$(count_by_key)" "kv2 $secrets"

step "4. May kv1 be deleted now? Not yet"
wait_for_verdict SOAKING 0

step "5. A straggler: nico-api writes the row back, with the secret that it read before the apply"
query 'UPDATE tenant_identity_config AS c SET encrypted_signing_key_1 = text FROM read_by_nico_api AS r
    WHERE r.organization_id = c.organization_id' >/dev/null
wait_for_verdict IN_USE 1
note "in the log: $(grep -o 'secrets are under a key that no secret used before' serve.log | head -n 1)"

step "6. Apply again, and wait for the verdict"
rewrap_run RUN_KIND_APPLY 1 $((ORGANIZATIONS - 1)) 1 $((secrets - 1))
check 'secrets by key, in the database' "$(count_by_key)" "kv2 $secrets"
wait_for_verdict REMOVABLE 1

step "7. Delete kv1 from the secrets, restart, and verify every secret with kv2"
stop_service
write_secrets "kv2=$kv2"
note "secrets.json has only kv2"
start_service
run_on_server RUN_KIND_VERIFY
check 'secrets verified' "$(counter secretsVerified)" "$secrets"
stop_service

good "Done in $SECONDS s: $secrets secrets of $ORGANIZATIONS organizations went from kv1 to kv2. The verdict of kv1 was REMOVABLE."
