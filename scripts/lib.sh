# shellcheck shell=bash
# The throwaway site of demo.sh and bench.sh, which source this: a Postgres, certificates, keys, a config, the service.
# Everything is in one temporary directory, which becomes the working directory; nothing is left behind at the end.
#
# Needs the release build of nico-rewrap and of the example `seed`. With DATABASE_URL set, no Postgres is wanted.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
release=$root/${CARGO_TARGET_DIR:-target}/release
case ${CARGO_TARGET_DIR:-} in /*) release=$CARGO_TARGET_DIR/release ;; esac

GRPCURL=$("$root/scripts/tools.sh" grpcurl)
# Before psql: the server's package brings it.
[ -n "${DATABASE_URL:-}" ] || PG_BIN=$("$root/scripts/tools.sh" postgres)
PSQL=$("$root/scripts/tools.sh" psql)
"$root/scripts/tools.sh" openssl >/dev/null

# The service lets the environment win over files, and psql reads it too: the site's files are to decide.
for name in $(compgen -e); do
    case $name in NICO_* | CARBIDE_* | PG[A-Z]*) unset "$name" ;; esac
done

what=$(basename "$0" .sh)
umask 077
work=$(mktemp -d "${TMPDIR:-/tmp}/nico-rewrap-$what.XXXXXX")
cd "$work" || exit
postgres_pid='' service_pid='' database_url='' port='' http_port='' kv1='' kv2=''

# ---- saying what happens ---------------------------------------------------------------------------------------------

bold='' green='' red='' plain=''
if [ -t 1 ]; then
    bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
fi

step() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
note() { printf '  %s\n' "$*"; }
good() { printf '\n%s%s%s\n' "$bold$green" "$*" "$plain"; }

fail() {
    printf '\n%s%s failed: %s%s\n' "$red" "$what" "$*" "$plain" >&2
    if [ -s serve.log ]; then
        printf 'the last lines of the service:\n' >&2
        tail -n 15 serve.log >&2
    fi
    exit 1
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

# at_end : what a script has to undo itself, between the end of the service and that of Postgres.
at_end() { :; }

cleanup() {
    trap '' INT TERM HUP
    [ -z "$service_pid" ] || stop "$service_pid" TERM || true
    at_end
    [ -z "$postgres_pid" ] || stop "$postgres_pid" INT || true
    cd /
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# ---- the site --------------------------------------------------------------------------------------------------------

listening() { (: >"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# free_port FIRST : one of the 3000 ports from FIRST on. All of ours are below those of outgoing connections.
free_port() {
    local port
    while port=$(($1 + RANDOM % 3000)) && listening "$port"; do :; done
    echo "$port"
}

# wait_for SECONDS PID COMMAND... : until COMMAND succeeds; fails when PID is gone or the time is up. A caller that wants
# to know the moment sets `pause`.
wait_for() {
    local deadline=$((SECONDS + $1)) pid=$2
    shift 2
    until "$@"; do
        kill -0 "$pid" 2>/dev/null || return 1
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep "${pause:-0.05}"
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
    "${as[@]}" "$PG_BIN/initdb" -D postgres/data -U "$what" --auth=scram-sha-256 --pwfile=postgres/password \
        --encoding=UTF8 --locale=C >postgres.log 2>&1 || fail "initdb: $(tail -n 3 postgres.log)"
    # TCP only: a socket's path may be too long in some temporary directory.
    "${as[@]}" "$PG_BIN/postgres" -D postgres/data -p "$port" -c listen_addresses=127.0.0.1 \
        -c unix_socket_directories= >>postgres.log 2>&1 &
    postgres_pid=$!
    database_url=postgres://$what:$password@127.0.0.1:$port/postgres
    wait_for 30 "$postgres_pid" accepts_queries || fail "postgres: $(tail -n 3 postgres.log)"
}

accepts_queries() { [ "$(query 'SELECT 1' 2>/dev/null)" = 1 ]; }

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

make_keys() {
    kv1=$(openssl rand -base64 32)
    kv2=$(openssl rand -base64 32)
    write_secrets "kv1=$kv1" "kv2=$kv2"
}

# write_secrets NAME=KEY...
write_secrets() {
    local pair members=''
    for pair in "$@"; do members+=", \"${pair%%=*}\": \"${pair#*=}\""; done
    printf '{ "machine_identity": { "encryption_keys": { %s } } }\n' "${members#, }" >secrets.json
}

choose_ports() {
    port=$(free_port 23000)
    http_port=$(free_port 26000)
}

# write_config TARGET_KEY_ID [LINES] : LINES are more of [rewrap]. The first lines are nico-api's own business, and
# must not disturb.
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
${2:-}
TOML
}

# ---- the service -----------------------------------------------------------------------------------------------------

# No curl on a small machine; bash can ask.
is_ready() {
    (
        exec 3<>"/dev/tcp/127.0.0.1/$http_port"
        printf 'GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n' >&3
        read -r -t 2 _ status _ <&3 && [ "$status" = 200 ]
    ) 2>/dev/null
}

launch_service() {
    "$release/nico-rewrap" serve --config site.toml >serve.log 2>&1 &
    service_pid=$!
    wait_for 20 "$service_pid" is_ready || fail "the service did not become ready"
}

end_service() {
    local pid=$service_pid code=0
    service_pid=''
    stop "$pid" TERM || code=$?
    [ "$code" -eq 0 ] || fail "the service ended with exit code $code on SIGTERM, must be 0"
    ! grep -qF -e "$kv1" -e "$kv2" serve.log || fail "the service's log carries a key"
}

# rpc DRY_RUN [COMMAND...] : what an operator types; run by COMMAND, if there is one.
rpc() {
    local dry_run=$1
    shift
    "$@" grpcurl -cacert pki/service-ca.pem -cert pki/admin-chain.pem -key pki/admin.key -emit-defaults \
        -d "{\"dry_run\": $dry_run}" "localhost:$port" forge.Forge/ReencryptTenantIdentitySecrets
}

# value NAME : from grpcurl's JSON, which has one member a line.
value() { sed -n "s/^  \"$1\": \"\{0,1\}\([^\",]*\).*/\1/p" report.json; }
