#!/usr/bin/env bash
# Performs the run-book on a throwaway site: `make demo`.
#
# It does what an operator does: check, rotate, can-i-delete. In the middle, it acts as nico-api and writes an old secret
# back.
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

# The connection of the client. An operator would put it into a context.
connect() {
    export REWRAP_ENDPOINT=localhost:$port REWRAP_CACERT=pki/service-ca.pem REWRAP_CERT=pki/admin-chain.pem \
        REWRAP_KEY=pki/admin.key
    shown "export REWRAP_ENDPOINT=$REWRAP_ENDPOINT REWRAP_CACERT=$REWRAP_CACERT REWRAP_CERT=$REWRAP_CERT \\"
    shown "    REWRAP_KEY=$REWRAP_KEY"
}

# answers CODE COMMAND... : prints the command and its output. The demo fails if the exit code is not CODE.
answers() {
    local expected=$1 code=0
    shift
    shown "$*"
    "$@" >output 2>errors || code=$?
    sed 's/^/    /' output
    sed 's/^/    /' errors >&2
    check 'exit code' "$code" "$expected"
}

# number NAME : a number in the JSON document in `output`.
number() { sed -n "s/^ *\"$1\": \([0-9]*\),*$/\1/p" output | head -n 1; }

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
connect
answers 0 nico-rewrap whoami

step "2. Check"
answers 0 nico-rewrap check
note "(the last line: the demo has no nico-api that could write a secret under kv2)"
check 'database' "$([ "$(digest)" = "$before" ] && echo untouched || echo changed)" untouched

step "3. Rotate"
query 'CREATE TABLE read_by_nico_api AS SELECT organization_id, encrypted_signing_key_1 AS text FROM tenant_identity_config
    ORDER BY organization_id COLLATE "C" LIMIT 1' >/dev/null
note "nico-api reads one row: it is about to change the identity configuration of this organization"
answers 0 nico-rewrap rotate --yes
check 'secrets by key, in the database' "$(count_by_key)" "kv2 $secrets"

step "4. May kv1 be deleted now? Not yet"
answers 8 nico-rewrap can-i-delete kv1
note "the same question as a raw call:"
run grpcurl -cacert pki/service-ca.pem -cert pki/admin-chain.pem -key pki/admin.key -emit-defaults -d '{}' \
    "localhost:$port" nico.rewrap.v1.Rewrap/ListKeys >keys.json
sed -n '/"keyId": "kv1"/,/"stragglers"/p' keys.json | grep -E '"(keyId|secrets|state|stragglers)":' | sed 's/^ */    /'

step "5. A straggler: nico-api writes the row back, with the secret that it read before the apply"
query 'UPDATE tenant_identity_config AS c SET encrypted_signing_key_1 = text FROM read_by_nico_api AS r
    WHERE r.organization_id = c.organization_id' >/dev/null
answers 0 nico-rewrap census -o json >/dev/null
answers 8 nico-rewrap can-i-delete kv1
answers 0 nico-rewrap status

step "6. Rotate again, and wait for the verdict"
answers 0 nico-rewrap rotate --yes
check 'secrets by key, in the database' "$(count_by_key)" "kv2 $secrets"
answers 0 nico-rewrap can-i-delete kv1 --wait --timeout 60s

step "7. Delete kv1 from the secrets, restart, and verify every secret with kv2"
stop_service
write_secrets "kv2=$kv2"
note "secrets.json has only kv2"
start_service
answers 0 nico-rewrap verify -o json >/dev/null
check 'secrets verified' "$(number secretsVerified)" "$secrets"
stop_service

good "Done in $SECONDS s: $secrets secrets of $ORGANIZATIONS organizations went from kv1 to kv2. kv1 could be deleted."
