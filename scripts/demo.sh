#!/usr/bin/env bash
# The operator's run-book, played from start to end on a throwaway site: `make demo`.
#
# Needs the release build of nico-rewrap and of the example `seed`. With DATABASE_URL set, the demo makes a database of
# its own on that server instead of starting one, and drops it at the end. All else is in one temporary directory.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
release=$root/${CARGO_TARGET_DIR:-target}/release
case ${CARGO_TARGET_DIR:-} in /*) release=$CARGO_TARGET_DIR/release ;; esac

GRPCURL=$("$root/scripts/tools.sh" grpcurl)
PSQL=$("$root/scripts/tools.sh" psql)
[ -n "${DATABASE_URL:-}" ] || PG_BIN=$("$root/scripts/tools.sh" postgres)
"$root/scripts/tools.sh" openssl >/dev/null

# The service lets the environment win over files, and psql reads it too: the demo's files are to decide.
for name in $(compgen -e); do
    case $name in NICO_* | CARBIDE_* | PG[A-Z]*) unset "$name" ;; esac
done

ORGANIZATIONS=1000
umask 077
work=$(mktemp -d "${TMPDIR:-/tmp}/nico-rewrap-demo.XXXXXX")
cd "$work"
postgres_pid='' service_pid='' created_database=''

# ---- saying what happens ---------------------------------------------------------------------------------------------

bold='' green='' red='' dim='' plain=''
if [ -t 1 ]; then
    bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' dim=$'\e[2m' plain=$'\e[0m'
fi

# What run() shows goes past a redirection of the command's own output.
exec 4>&1

step() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
note() { printf '  %s\n' "$*"; }
shown() { printf '  %s$ %s%s\n' "$dim" "$*" "$plain" >&4; }

fail() {
    printf '\n%sdemo failed: %s%s\n' "$red" "$*" "$plain" >&2
    if [ -s serve.log ]; then
        printf 'the last lines of the service:\n' >&2
        tail -n 15 serve.log >&2
    fi
    exit 1
}

# run COMMAND... : prints the command as one could type it, then runs it.
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

# run_and_show COMMAND... : the same, with the command's output below it.
run_and_show() {
    run "$@" >output
    sed 's/^/    /' output
}

# check NAME GOT WANTED : one line of a report, and the end of the demo if it is not what it must be.
check() {
    printf '    %-34s %10s' "$1" "$2"
    if [ "$2" = "$3" ]; then
        printf '  %sok%s\n' "$green" "$plain"
    else
        printf '  %snot %s%s\n' "$red" "$3" "$plain"
        fail "${1#"  "}: $2, must be $3"
    fi
}

# Under these names the commands read as on an operator's machine.
grpcurl() { "$GRPCURL" "$@"; }
nico-rewrap() { "$release/nico-rewrap" "$@"; }
seed() { "$release/examples/seed" "$@"; }

# ---- leaving nothing behind ------------------------------------------------------------------------------------------

# stop PID SIGNAL : returns its exit code; by force after 20 s.
stop() {
    local deadline=$((SECONDS + 20))
    kill -s "$2" "$1" 2>/dev/null || true
    while kill -0 "$1" 2>/dev/null; do
        [ "$SECONDS" -lt "$deadline" ] || kill -s KILL "$1"
        sleep 0.05
    done
    wait "$1" 2>/dev/null
}

cleanup() {
    trap '' INT TERM HUP
    [ -z "$service_pid" ] || stop "$service_pid" TERM || true
    [ -z "$created_database" ] ||
        "$PSQL" -qX -d "$DATABASE_URL" -c "DROP DATABASE IF EXISTS $created_database WITH (FORCE)" ||
        printf 'could not drop the database %s\n' "$created_database" >&2
    [ -z "$postgres_pid" ] || stop "$postgres_pid" INT || true
    cd /
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# ---- the throwaway site ----------------------------------------------------------------------------------------------

listening() { (: >"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# free_port FIRST : one of the 3000 ports from FIRST on. All of ours are below those of outgoing connections.
free_port() {
    local port
    while port=$(($1 + RANDOM % 3000)) && listening "$port"; do :; done
    echo "$port"
}

# wait_for SECONDS PID COMMAND... : until COMMAND succeeds; fails when PID is gone or the time is up.
wait_for() {
    local deadline=$((SECONDS + $1)) pid=$2
    shift 2
    until "$@"; do
        kill -0 "$pid" 2>/dev/null || return 1
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.05
    done
}

# PostgreSQL refuses to run as root: then it gets a system user that has no other business here.
start_postgres() {
    local port password as=() user
    port=$(free_port 20000)
    password=$(openssl rand -hex 16)
    mkdir postgres
    printf '%s\n' "$password" >postgres/password
    if [ "$(id -u)" -eq 0 ]; then
        user=nobody
        ! id -u postgres >/dev/null 2>&1 || user=postgres
        as=(setpriv --reuid "$user" --regid "$(id -g "$user")" --clear-groups --)
        chmod 711 .
        chown -R "$user:" postgres
    fi
    "${as[@]}" "$PG_BIN/initdb" -D postgres/data -U demo --auth=scram-sha-256 --pwfile=postgres/password \
        --encoding=UTF8 --locale=C >postgres.log 2>&1 || fail "initdb: $(tail -n 3 postgres.log)"
    # TCP only: a socket's path may be too long in some temporary directory.
    "${as[@]}" "$PG_BIN/postgres" -D postgres/data -p "$port" -c listen_addresses=127.0.0.1 \
        -c unix_socket_directories= >>postgres.log 2>&1 &
    postgres_pid=$!
    database_url=postgres://demo:$password@127.0.0.1:$port/postgres
    wait_for 30 "$postgres_pid" accepts_queries || fail "postgres: $(tail -n 3 postgres.log)"
}

accepts_queries() { [ "$(query 'SELECT 1' 2>/dev/null)" = 1 ]; }

create_database() {
    local pattern='^(postgres(ql)?://[^/?]*)(/[^?]*)?(\?.*)?$'
    [[ $DATABASE_URL =~ $pattern ]] || fail "DATABASE_URL must be a postgres:// URL"
    local name=nico_rewrap_demo_$$
    database_url=${BASH_REMATCH[1]}/$name${BASH_REMATCH[4]}
    "$PSQL" -qX -d "$DATABASE_URL" -c "CREATE DATABASE $name" ||
        fail "no database for the demo on the server of DATABASE_URL (its user needs CREATEDB)"
    created_database=$name
}

query() { "$PSQL" -qXAt -F ' ' -v ON_ERROR_STOP=1 -d "$database_url" -c "$1"; }

# certificate NAME SUBJECT EXTENSIONS [ISSUER] : pki/NAME.pem and .key, self-signed if there is no issuer.
certificate() {
    local sign=(-signkey "pki/$1.key")
    [ $# -lt 4 ] || sign=(-CA "pki/$4.pem" -CAkey "pki/$4.key")
    printf '%s\n' "$3" >pki/extensions
    {
        openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "pki/$1.key"
        openssl req -new -key "pki/$1.key" -subj "$2" -out pki/request
        openssl x509 -req -in pki/request "${sign[@]}" -set_serial "0x1$(openssl rand -hex 8)" -days 1 -sha256 \
            -extfile pki/extensions -out "pki/$1.pem"
    } >>openssl.log 2>&1 || fail "openssl: $(tail -n 3 openssl.log)"
}

# As a site has them: services under one root; admins under another, issued by an intermediate of their own that the
# client sends along. Nothing in the leaf says "admin": the configuration lists the issuer's CN.
make_certificates() {
    local ca='basicConstraints=critical,CA:true
keyUsage=critical,keyCertSign,cRLSign'
    mkdir pki
    certificate service-ca '/O=Demo Site/CN=Demo Service Root' "$ca"
    certificate server '/O=Demo Site/CN=nico-rewrap' 'keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth,clientAuth
subjectAltName=DNS:localhost,IP:127.0.0.1,URI:spiffe://nico.local/nico-system/sa/nico-api' service-ca
    certificate admin-root '/O=Demo Site/CN=Demo Admin Root' "$ca"
    certificate admin-issuer '/O=Demo Site/CN=Demo Admin Issuer' "${ca/CA:true/CA:true,pathlen:0}" admin-root
    certificate admin '/O=Demo Site/OU=site-admins/CN=demo-operator' 'keyUsage=critical,digitalSignature
extendedKeyUsage=clientAuth' admin-issuer
    cat pki/admin.pem pki/admin-issuer.pem >pki/admin-chain.pem
}

# write_config TARGET_KEY_ID : the first lines are nico-api's own business, and must not disturb.
write_config() {
    cat >site.toml <<TOML
listen = "127.0.0.1:1079"
asn = 65001
dhcp_servers = ["10.0.0.2"]
database_url = "$database_url"

[pools.lo-ip]
type = "ipv4"
prefix = "10.180.62.0/26"

[machine_identity]
enabled = true
algorithm = "ES256"
current_encryption_key_id = "$1"

[tls]
identity_pemfile_path = "$work/pki/server.pem"
identity_keyfile_path = "$work/pki/server.key"
root_cafile_path = "$work/pki/service-ca.pem"
admin_root_cafile_path = "$work/pki/admin-root.pem"

[auth.trust]
spiffe_trust_domain = "nico.local"
spiffe_service_base_paths = ["/nico-system/sa/", "/default/sa/"]
spiffe_machine_base_path = "/nico-system/machine/"
additional_issuer_cns = ["Demo Admin Issuer"]

[rewrap]
listen = "127.0.0.1:$port"
metrics_endpoint = "127.0.0.1:$http_port"
secrets_file = "$work/secrets.json"
TOML
}

# write_secrets NAME=KEY...
write_secrets() {
    local pair members=''
    for pair in "$@"; do members+=", \"${pair%%=*}\": \"${pair#*=}\""; done
    printf '{ "machine_identity": { "encryption_keys": { %s } } }\n' "${members#, }" >secrets.json
}

# ---- what an operator does -------------------------------------------------------------------------------------------

# No curl on a small machine; bash can ask.
is_ready() {
    (
        exec 3<>"/dev/tcp/127.0.0.1/$http_port"
        printf 'GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n' >&3
        read -r -t 2 _ status _ <&3 && [ "$status" = 200 ]
    ) 2>/dev/null
}

start_service() {
    shown "nico-rewrap serve --config site.toml &"
    "$release/nico-rewrap" serve --config site.toml >serve.log 2>&1 &
    service_pid=$!
    wait_for 20 "$service_pid" is_ready || fail "the service did not become ready"
    note "ready: http://127.0.0.1:$http_port/readyz says 200"
}

stop_service() {
    local pid=$service_pid code=0
    service_pid=''
    shown "kill -TERM $pid"
    stop "$pid" TERM || code=$?
    [ "$code" -eq 0 ] || fail "the service ended with exit code $code on SIGTERM, must be 0"
    ! grep -qF -e "$kv1" -e "$kv2" serve.log || fail "the service's log carries a key"
    note "stopped, exit code 0"
}

# value NAME : from grpcurl's JSON, which has one member a line.
value() { sed -n "s/^  \"$1\": \"\{0,1\}\([^\",]*\).*/\1/p" report.json; }

# rewrap DRY_RUN UPDATED SKIPPED FIELDS FIELDS_SKIPPED : one call; its report must have these numbers.
rewrap() {
    local started=${EPOCHREALTIME/[^0-9]/} ended
    run grpcurl -cacert pki/service-ca.pem -cert pki/admin-chain.pem -key pki/admin.key -emit-defaults \
        -d "{\"dry_run\": $1}" "localhost:$port" forge.Forge/ReencryptTenantIdentitySecrets >report.json
    ended=${EPOCHREALTIME/[^0-9]/}
    check 'organizations examined' "$(value rowsExamined)" "$ORGANIZATIONS"
    check "  ${6:-re-wrapped}" "$(value rowsUpdated)" "$2"
    check '  already on the target, all of it' "$(value rowsSkippedAllOnTarget)" "$3"
    check '  failed' "$(value rowsFailed)" 0
    check "secrets ${6:-re-wrapped}" "$(value fieldsReencrypted)" "$4"
    check 'secrets already on the target' "$(value fieldsSkippedOnTarget)" "$5"
    check 'failures listed' "$(grep -c '"field":' report.json || true)" 0
    check 'target key' "$(value currentEncryptionKeyId)" kv2
    note "in $(((ended - started) / 1000)) ms"
}

# The report is the service's word; the tables are the proof: every secret by the key it names, and a digest of all.
envelopes="(SELECT convert_from(decode(text, 'base64'), 'UTF8') AS envelope FROM tenant_identity_config,
    LATERAL (VALUES (encrypted_signing_key_1), (encrypted_signing_key_2), (encrypted_auth_method_config)) AS s(text)
    WHERE text <> '') AS s"
count_by_key() { query "SELECT envelope::jsonb->>'key_id', count(*) FROM $envelopes GROUP BY 1 ORDER BY 1"; }
digest() {
    query "SELECT md5(string_agg(c::text || t::text, '' ORDER BY organization_id COLLATE \"C\"))
        FROM tenant_identity_config AS c JOIN tenants AS t USING (organization_id)"
}

# ---- the demo --------------------------------------------------------------------------------------------------------

port=$(free_port 23000)
http_port=$(free_port 26000)

step "A throwaway site"
make_certificates
note "certificates: a service CA, an admin root with an issuing CA under it, one operator"
if [ -n "${DATABASE_URL:-}" ]; then
    create_database
    note "database: $created_database on the server of DATABASE_URL"
else
    start_postgres
    note "database: $("$PG_BIN/postgres" --version), on its own in $work"
fi

step "Two master keys: kv1 is the old one, kv2 the new one"
run_and_show nico-rewrap keygen
note "(so one makes a key; this demo takes its two from openssl rand -base64 32)"
kv1=$(openssl rand -base64 32)
kv2=$(openssl rand -base64 32)
write_secrets "kv1=$kv1" "kv2=$kv2"
write_config kv2

step "$ORGANIZATIONS organizations, their secrets under kv1"
run_and_show nico-rewrap migrate --config site.toml
run_and_show seed --config site.toml --key-id kv1 --organizations "$ORGANIZATIONS"
secrets=$(sed -n 's/.*secrets=\([0-9]*\).*/\1/p' output)
[ -n "$secrets" ] || fail "seed did not say how many secrets it made"
note "one of them, base64 taken off: $(query "SELECT left(envelope, 75) FROM $envelopes LIMIT 1")..."
check 'secrets by key, in the database' "$(count_by_key)" "kv1 $secrets"
before=$(digest)

step "1. Start with kv2 as the target"
start_service

step "2. Dry run: what would happen?"
rewrap true "$ORGANIZATIONS" 0 "$secrets" 0 'would be re-wrapped'
check 'database' "$([ "$(digest)" = "$before" ] && echo untouched || echo changed)" untouched

step "3. Apply"
rewrap false "$ORGANIZATIONS" 0 "$secrets" 0
check 'secrets by key, in the database' "$(count_by_key)" "kv2 $secrets"
before=$(digest)

step "4. Second dry run: nothing is left to do"
rewrap true 0 "$ORGANIZATIONS" 0 "$secrets" 'would be re-wrapped'
check 'database' "$([ "$(digest)" = "$before" ] && echo untouched || echo changed)" untouched

step "5. Take kv1 out of the secrets, start again, and open everything with kv2 alone"
stop_service
write_secrets "kv2=$kv2"
note "secrets.json: kv2 only"
start_service
rewrap true 0 "$ORGANIZATIONS" 0 "$secrets" 'would be re-wrapped'
stop_service

printf '\n%sDone in %s s: %s secrets of %s organizations went from kv1 to kv2, and nothing needs kv1 any more.%s\n' \
    "$bold$green" "$SECONDS" "$secrets" "$ORGANIZATIONS" "$plain"
