#!/usr/bin/env bash
# Installs the Debian package in a container in which systemd is process 1, and sets it up with the commands of
# docs/install/debian.md. Then the test kills, reloads, misconfigures, upgrades, removes and purges the service.
#
#   scripts/package_test.sh PACKAGE.deb
#
# The container has its own Postgres and no network. Its image is built on debian:bookworm-slim.
# shellcheck disable=SC2016  # The shell in the container expands the text in single quotes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source=scripts/package_lib.sh
source scripts/package_lib.sh

ready='exec 3<>/dev/tcp/localhost/1180; printf "GET /readyz HTTP/1.0\r\n\r\n" >&3; grep -q "^ready" <&3'

start_container "$1"
make_site
documented install/debian "Debian package"
docker cp "$work/commands" "$container:/root/site/commands"
expect "the package installs" "$(grep 'apt-get install' "$work/commands")"
expect "the service is neither enabled nor started" '
    [ "$(systemctl is-enabled nico-rewrap)" = disabled ] && [ "$(systemctl is-active nico-rewrap)" = inactive ]'
expect "the user of the service exists and cannot log in" '[ "$(getent passwd nico-rewrap | cut -d: -f7)" = /usr/sbin/nologin ]'
expect "the settings of nico-rewrap are a conffile" 'dpkg-query -Wf "\${Conffiles}" nico-rewrap | grep >/dev/null /etc/nico-rewrap/rewrap.toml'
expect "the package has the files that the pages name" '
    cd /usr/share/nico-rewrap && ls vault/{agent.hcl,policy.hcl,secrets.json.ctmpl} postgres/role.sql systemd/root-only-secrets.conf \
        prometheus/rules.yaml grafana/nico-rewrap.json'
expect "a start without the site config reports the missing file" '
    ! systemctl start nico-rewrap && journalctl --sync && journalctl -u nico-rewrap | grep >/dev/null "Assertion failed"'

expect "the migrate command creates the tables" 'nico-rewrap migrate --config nico-api-config.toml'
expect "the service can read its TLS key" 'chgrp nico-rewrap /etc/nico/server.key && chmod 640 /etc/nico/server.key'
# With this interval, only a reload can load a new certificate during the test.
expect "the commands of the page set up the service" "
    printf '%s\n' 'tls_reload_interval = \"1h\"' 'audit_log = \"/var/log/nico-rewrap/audit.log\"' >>/etc/nico-rewrap/rewrap.toml
    $(grep -v -e apt-get -e dpkg "$work/commands")"
wait_for "the service is ready" "$ready"
expect "the service is enabled and active" 'systemctl is-enabled nico-rewrap && systemctl is-active nico-rewrap'
expect "the service runs as its user, without capabilities, core dumps and new privileges" '
    pid=$(systemctl show -P MainPID nico-rewrap)
    grep -q "^Uid:	$(id -u nico-rewrap)	" /proc/$pid/status
    grep -q "^CapBnd:	0000000000000000" /proc/$pid/status
    grep -q "^NoNewPrivs:	1" /proc/$pid/status
    grep -q "^Seccomp:	2" /proc/$pid/status
    grep -Eq "^Max core file size +0 +0 " /proc/$pid/limits'
expect "only root and the service can read the secrets file" '
    ! runuser -u nobody -- cat /etc/nico/secrets.json && runuser -u nico-rewrap -- cat /etc/nico/secrets.json >/dev/null
    ! systemctl show -P Environment nico-rewrap | grep SECRETS_FILE'
expect "the service answers an administrator" '
    grpcurl -cacert /etc/nico/root.pem -cert /etc/nico/admin.pem -key /etc/nico/admin.key -d "{\"dry_run\": true}" \
        localhost:1179 forge.Forge/ReencryptTenantIdentitySecrets | grep >/dev/null "\"currentEncryptionKeyId\": \"kv2\""'
socket=/run/nico-rewrap/admin.sock
local_call="grpcurl -plaintext -unix -authority localhost -emit-defaults"
expect "only the service and root can open the admin socket" "
    [ \"\$(stat -c '%U %a' /run/nico-rewrap $socket | tr '\n' ' ')\" = 'nico-rewrap 700 nico-rewrap 600 ' ]
    $local_call $socket nico.rewrap.v1.Rewrap/WhoAmI | grep >/dev/null '\"name\": \"local:uid=0\"'
    runuser -u nico-rewrap -- $local_call $socket nico.rewrap.v1.Rewrap/WhoAmI |
        grep >/dev/null \"\\\"name\\\": \\\"local:uid=\$(id -u nico-rewrap)\\\"\"
    ! runuser -u nobody -- $local_call -connect-timeout 1 $socket list"
expect "root may start an apply at the admin socket, and it is in the audit log" "
    $local_call $socket forge.Forge/ReencryptTenantIdentitySecrets | grep >/dev/null '\"rowsFailed\": 0'
    grep '\"identity\":\"local:uid=0\"' /var/log/nico-rewrap/audit.log | grep >/dev/null '\"dry_run\":false'"
expect "the call is in the audit log, which other users cannot read" '
    grep >/dev/null "\"identity\":\"alice\"" /var/log/nico-rewrap/audit.log
    [ "$(stat -c "%U %a" /var/log/nico-rewrap /var/log/nico-rewrap/audit.log | sort -u | tr "\n" " ")" = "nico-rewrap 600 nico-rewrap 750 " ]'

expect "a reload does not restart the process" '
    /etc/nico/issue server root "/CN=localhost" "subjectAltName=DNS:localhost,DNS:renewed"
    mv /var/log/nico-rewrap/audit.log /var/log/nico-rewrap/audit.log.1
    before=$(systemctl show -P MainPID nico-rewrap)
    systemctl reload nico-rewrap
    [ "$(systemctl show -P MainPID nico-rewrap)" = "$before" ]'
wait_for "the reload loads the new certificate" "$(in_journal 'TLS files reloaded')"
expect "the service uses the name of the new certificate" '
    grpcurl -cacert /etc/nico/root.pem -cert /etc/nico/admin.pem -key /etc/nico/admin.key -authority renewed \
        localhost:1179 list | grep >/dev/null forge.Forge'
wait_for "the reload reopens the audit log" '[ -e /var/log/nico-rewrap/audit.log ]'

expect "the service is killed" 'systemctl kill -s KILL nico-rewrap'
wait_for "systemd restarts the service, and it is ready" "[ \"\$(systemctl show -P NRestarts nico-rewrap)\" = 1 ] && $ready"
expect "the admin socket is there again" "$local_call $socket list | grep >/dev/null forge.Forge"
expect "the service is restarted with a wrong configuration" '
    sed -i "s/\"kv2\"/\"kv3\"/" /etc/nico-rewrap/site.toml
    systemctl restart nico-rewrap || true'
wait_for "the service has failed with exit code 78" '[ "$(systemctl show -P ExecMainStatus nico-rewrap)" = 78 ] && systemctl is-failed nico-rewrap'
expect "systemd has not restarted the service, and the journal names the problem" '
    [ "$(systemctl show -P NRestarts nico-rewrap)" = 0 ]
    journalctl --sync && journalctl -u nico-rewrap | grep >/dev/null "current_encryption_key_id: key id \"kv3\" is not among the keys"
    sed -i "s/\"kv3\"/\"kv2\"/" /etc/nico-rewrap/site.toml && systemctl restart nico-rewrap'
wait_for "the service is ready after the correction" "$ready"

# Makes a package of a next version, with another settings file and another unit.
expect "the package of a next version is built" '
    dpkg-deb -R nico-rewrap_*.deb next
    sed -i "s/^Version: .*/Version: 99.0.0-1/" next/DEBIAN/control
    sed -i "s/^Description=.*/Description=The next one/" next/usr/lib/systemd/system/nico-rewrap.service
    echo "# one more default" >>next/etc/nico-rewrap/rewrap.toml
    mkdir old && mv nico-rewrap_*.deb old/ && dpkg-deb --root-owner-group -b next nico-rewrap_99.0.0-1_amd64.deb'
expect "an upgrade keeps changed settings and restarts the service" "
    before=\$(systemctl show -P MainPID nico-rewrap)
    $(grep dpkg "$work/commands")
    [ \"\$(dpkg-query -Wf '\${Version}' nico-rewrap)\" = 99.0.0-1 ]
    grep -qx 'tls_reload_interval = \"1h\"' /etc/nico-rewrap/rewrap.toml
    grep -qx '# one more default' /etc/nico-rewrap/rewrap.toml.dpkg-dist
    [ \"\$(systemctl show -P Description nico-rewrap)\" = 'The next one' ]
    [ \"\$(systemctl show -P MainPID nico-rewrap)\" != \"\$before\" ] && systemctl is-enabled nico-rewrap"
wait_for "the service is ready after the upgrade" "$ready"
expect "an upgrade does not start a stopped service" '
    systemctl stop nico-rewrap
    [ ! -e /run/nico-rewrap ]
    dpkg -i --force-confold old/nico-rewrap_*.deb
    [ "$(systemctl is-active nico-rewrap)" = inactive ] && systemctl start nico-rewrap'

documented install/debian "Secrets file for root only"
expect "it can have a secrets file of its own" "
    rm /etc/nico/secrets.json
    $(cat "$work/commands")"
wait_for "it is ready with that file" "$ready"
expect "only root reads that file" '! runuser -u nico-rewrap -- cat /etc/nico-rewrap/secrets.json'

start_vault
documented install/vault "Machine with systemd"
expect "Vault Agent renders the secrets file before every start" "
    rm /etc/nico-rewrap/secrets.json
    $(cat "$work/commands")"
wait_for "the service is ready with the keys of Vault" "$ready"
expect "the rendered file belongs to root and has both keys" '
    [ "$(stat -c "%U %a" /etc/nico-rewrap/secrets.json)" = "root 600" ]
    [ "$(grep -cE "\"kv[12]\": \"[A-Za-z0-9+/]{43}=\"" /etc/nico-rewrap/secrets.json)" = 2 ]'
expect "if Vault is not available, the service starts with the existing file" '
    systemctl stop vault-server
    mkdir /etc/systemd/system/nico-rewrap-vault.service.d
    printf "[Service]\nTimeoutStartSec=2s\n" >/etc/systemd/system/nico-rewrap-vault.service.d/impatient.conf
    systemctl daemon-reload
    systemctl restart nico-rewrap && systemctl is-failed nico-rewrap-vault'
wait_for "the service is ready with this file" "$ready"
expect "the unit of Vault Agent can be disabled" '
    systemctl disable nico-rewrap-vault && systemctl reset-failed nico-rewrap-vault'

documented install/debian systemd
expect "a drop-in can name other paths for both files" "
    install -g nico-rewrap -m 0640 nico-api-config.toml /etc/nico/site.toml
    mv /etc/nico-rewrap/secrets.json /etc/nico/secrets.json; mv /etc/nico-rewrap/site.toml site.toml
    $(cat "$work/commands")"
wait_for "the service is ready with the other paths" "$ready"

expect "removing the package stops the service and keeps the settings" '
    DEBIAN_FRONTEND=noninteractive apt-get remove -y nico-rewrap
    [ "$(systemctl is-active nico-rewrap)" != active ] && [ ! -e /usr/bin/nico-rewrap ]
    grep -qx "tls_reload_interval = \"1h\"" /etc/nico-rewrap/rewrap.toml'
expect "after another installation, the service is enabled as before" '
    dpkg -i old/nico-rewrap_*.deb && systemctl is-enabled nico-rewrap && systemctl start nico-rewrap'
wait_for "the service is ready after another installation" "$ready"
expect "purging the package stops the service and keeps the operator's files" '
    mv site.toml /etc/nico-rewrap/site.toml
    DEBIAN_FRONTEND=noninteractive apt-get purge -y nico-rewrap
    [ "$(systemctl is-active nico-rewrap)" != active ]
    [ ! -e /etc/nico-rewrap/rewrap.toml ] && [ ! -e /usr/bin/nico-rewrap ] && [ -e /etc/nico-rewrap/site.toml ]
    [ -e /var/log/nico-rewrap/audit.log ]
    [ -z "$(find /etc/systemd/system /var/lib/systemd -name "nico-rewrap.service*" -not -name "*.d")" ]'
say "done"
