#!/usr/bin/env bash
# Installs the Debian package in a container that systemd runs as process 1, sets it up and starts it as
# docs/deploy.md says, and looks at what becomes of it:
#
#   scripts/package_test.sh PACKAGE.deb
#
# The container has a Postgres of its own and no network. Its image is made of Debian's packages once, by mmdebstrap.
# shellcheck disable=SC2016  # What is in single quotes is for the shell in the container.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

deb=$1
image=nico-rewrap-package-test:bookworm
container=nico-rewrap-package-test-$$
work=$(mktemp -d)

say() { printf '%s\n' "package-test: $*"; }
die() {
    say "FAILED: $*" >&2
    inside 'journalctl --no-pager -n 60 -u nico-rewrap' >&2 || true
    exit 1
}
cleanup() {
    docker rm -f "$container" >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap cleanup EXIT
docker version >/dev/null 2>&1 || { echo "package-test: this needs Docker, and it does not answer" >&2; exit 1; }

# inside SCRIPT : in the directory with the operator's files.
inside() { docker exec -w /root/site "$container" bash -euo pipefail -c "$1"; }
# expect WHAT SCRIPT
expect() {
    inside "$2" >"$work/out" 2>&1 || { cat "$work/out" >&2; die "$1"; }
    say "ok: $1"
}
# wait_for WHAT SCRIPT
wait_for() {
    for _ in $(seq 300); do
        if inside "$2" >/dev/null 2>&1; then
            say "ok: $1"
            return
        fi
        sleep 0.2
    done
    die "$1"
}
documented() { scripts/doc_commands.sh "$1" >"$work/commands"; }

ready='exec 3<>/dev/tcp/localhost/1180; printf "GET /readyz HTTP/1.0\r\n\r\n" >&3; grep -q "^ready" <&3'

if ! docker image inspect "$image" >/dev/null 2>&1; then
    say "making the image $image"
    mmdebstrap=$(scripts/tools.sh mmdebstrap)
    "$mmdebstrap" --quiet --variant=minbase --include=systemd,systemd-sysv,dbus,postgresql,openssl \
        bookworm "$work/image.tar"
    docker import "$work/image.tar" "$image" >/dev/null
    rm "$work/image.tar"
fi

# What systemd needs of a container: its own cgroups, and to mount, where mounts of its children can be seen. Not
# --privileged.
docker run -d --name "$container" --network none --cap-add SYS_ADMIN --security-opt seccomp=unconfined \
    --security-opt apparmor=unconfined --cgroupns private --tmpfs /sys/fs/cgroup --tmpfs /run --tmpfs /tmp \
    -e container=docker "$image" sh -c 'mount --make-rshared / && exec /sbin/init' >/dev/null
docker exec "$container" mkdir -p /root/site
docker cp "$deb" "$container:/root/site/" 2>/dev/null
docker cp "$(scripts/tools.sh grpcurl)" "$container:/usr/local/bin/grpcurl" 2>/dev/null
wait_for "systemd is process 1, and Postgres runs" \
    'grep -qx systemd /proc/1/comm && systemctl is-active postgresql@15-main'

# What the operator has before: a database with nico-api's tables, certificates, site config, secrets.
expect "a site to install it on" '
    runuser -u postgres -- psql -qc "CREATE ROLE nico LOGIN PASSWORD '"'a password of a test'"'" -c "CREATE DATABASE nico OWNER nico"
    mkdir -p /etc/nico && cd /etc/nico
    new_key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1"; }
    for ca in root admin-ca; do
        new_key $ca.key
        openssl req -x509 -new -key $ca.key -subj "/O=NICo/CN=$ca" -days 2 -out $ca.pem
    done
    issue() {
        new_key $1.key
        openssl req -new -key $1.key -subj "$3" |
            openssl x509 -req -CA $2.pem -CAkey $2.key -CAcreateserial -days 2 -extfile <(echo "$4") -out $1.pem
    }
    issue server root "/CN=localhost" "subjectAltName=DNS:localhost"
    issue admin admin-ca "/O=NICo/OU=admins/CN=alice" "extendedKeyUsage=clientAuth"
    kek() { openssl rand -base64 32; }
    cat >/root/site/secrets.json <<END
{"machine_identity": {"encryption_keys": {"kv1": "$(kek)", "kv2": "$(kek)"}}}
END
    cat >/root/site/nico-api-config.toml <<END
database_url = "postgres://nico:a%20password%20of%20a%20test@localhost/nico"
[machine_identity]
enabled = true
current_encryption_key_id = "kv2"
[tls]
identity_pemfile_path = "/etc/nico/server.pem"
identity_keyfile_path = "/etc/nico/server.key"
root_cafile_path = "/etc/nico/root.pem"
admin_root_cafile_path = "/etc/nico/admin-ca.pem"
[auth.trust]
spiffe_trust_domain = "nico.local"
additional_issuer_cns = ["admin-ca"]
END'

documented "Debian package"
docker cp "$work/commands" "$container:/root/site/commands"
expect "the package installs" "$(grep apt-get "$work/commands")"
expect "it is not enabled, and starts nothing" '
    [ "$(systemctl is-enabled nico-rewrap)" = disabled ] && [ "$(systemctl is-active nico-rewrap)" = inactive ]'
expect "its user is there, and can do nothing" '[ "$(getent passwd nico-rewrap | cut -d: -f7)" = /usr/sbin/nologin ]'
expect "its own settings are a conffile" 'dpkg-query -Wf "\${Conffiles}" nico-rewrap | grep >/dev/null /etc/nico-rewrap/rewrap.toml'
expect "a start before it is set up says what is missing" '
    ! systemctl start nico-rewrap && journalctl --sync && journalctl -u nico-rewrap | grep >/dev/null "Assertion failed"'

expect "the tables come from the migrate subcommand" 'nico-rewrap migrate --config nico-api-config.toml'
expect "the key is readable to the service" 'chgrp nico-rewrap /etc/nico/server.key && chmod 640 /etc/nico/server.key'
expect "it is set up as the page says" "$(grep -v apt-get "$work/commands")"
wait_for "it is ready" "$ready"
expect "it is enabled" 'systemctl is-enabled nico-rewrap && systemctl is-active nico-rewrap'
expect "it runs as its user, without capabilities, core dumps and new privileges" '
    pid=$(systemctl show -P MainPID nico-rewrap)
    grep -q "^Uid:	$(id -u nico-rewrap)	" /proc/$pid/status
    grep -q "^CapBnd:	0000000000000000" /proc/$pid/status
    grep -q "^NoNewPrivs:	1" /proc/$pid/status
    grep -q "^Seccomp:	2" /proc/$pid/status
    grep -Eq "^Max core file size +0 +0 " /proc/$pid/limits'
expect "only root reads the secrets file" '! runuser -u nico-rewrap -- cat /etc/nico-rewrap/secrets.json'
expect "it answers an administrator" '
    grpcurl -cacert /etc/nico/root.pem -cert /etc/nico/admin.pem -key /etc/nico/admin.key -d "{\"dry_run\": true}" \
        localhost:1179 forge.Forge/ReencryptTenantIdentitySecrets | grep >/dev/null "\"currentEncryptionKeyId\": \"kv2\""'

expect "it is started again when it is killed" 'systemctl kill -s KILL nico-rewrap'
wait_for "it is ready again" "[ \"\$(systemctl show -P NRestarts nico-rewrap)\" = 1 ] && $ready"
expect "a fault of the configuration is not tried again" '
    sed -i "s/\"kv2\"/\"kv3\"/" /etc/nico-rewrap/site.toml
    systemctl restart nico-rewrap || true'
wait_for "it has failed with 78" '[ "$(systemctl show -P ExecMainStatus nico-rewrap)" = 78 ] && systemctl is-failed nico-rewrap'
expect "the journal says why" '
    [ "$(systemctl show -P NRestarts nico-rewrap)" = 0 ]
    journalctl --sync && journalctl -u nico-rewrap | grep >/dev/null "current_encryption_key_id: key id \"kv3\" is not among the keys"
    sed -i "s/\"kv3\"/\"kv2\"/" /etc/nico-rewrap/site.toml && systemctl restart nico-rewrap'
wait_for "it is ready when that is mended" "$ready"

expect "an upgrade keeps what was changed, and restarts it" '
    echo "max_runs = 4" >>/etc/nico-rewrap/rewrap.toml
    before=$(systemctl show -P MainPID nico-rewrap)
    dpkg -i nico-rewrap_*.deb
    grep -qx "max_runs = 4" /etc/nico-rewrap/rewrap.toml
    [ "$(systemctl show -P MainPID nico-rewrap)" != "$before" ]'
wait_for "it is ready after the upgrade" "$ready"

documented systemd
expect "both files can be elsewhere" "
    install -g nico-rewrap -m 0640 nico-api-config.toml /etc/nico/site.toml
    mv /etc/nico-rewrap/secrets.json /etc/nico/secrets.json; mv /etc/nico-rewrap/site.toml site.toml
    $(cat "$work/commands")"
wait_for "it is ready from there" "$ready"

expect "purging it stops it, and leaves the operator's files" '
    mv site.toml /etc/nico-rewrap/site.toml
    DEBIAN_FRONTEND=noninteractive apt-get purge -y nico-rewrap
    [ "$(systemctl is-active nico-rewrap)" != active ]
    [ ! -e /etc/nico-rewrap/rewrap.toml ] && [ ! -e /usr/bin/nico-rewrap ] && [ -e /etc/nico-rewrap/site.toml ]'
say "done"
