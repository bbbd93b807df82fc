#!/usr/bin/env bash
# Installs the Debian package in a container in which systemd is process 1, and sets it up and starts it with the commands
# of docs/deploy.md. Then checks a kill, a reload, a wrong configuration, an upgrade, a removal and a purge.
#
#   scripts/package_test.sh PACKAGE.deb
#
# The container runs a Postgres and has no network. Its base image is debian:bookworm-slim.
# shellcheck disable=SC2016  # The shell in the container expands the text in single quotes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source=scripts/package_lib.sh
source scripts/package_lib.sh

ready='exec 3<>/dev/tcp/localhost/1180; printf "GET /readyz HTTP/1.0\r\n\r\n" >&3; grep -q "^ready" <&3'

start_container "$1"
make_site
documented "Debian package"
docker cp "$work/commands" "$container:/root/site/commands"
expect "the package installs" "$(grep 'apt-get install' "$work/commands")"
expect "the service is neither enabled nor started" '
    [ "$(systemctl is-enabled nico-rewrap)" = disabled ] && [ "$(systemctl is-active nico-rewrap)" = inactive ]'
expect "its user exists and can't log in" '[ "$(getent passwd nico-rewrap | cut -d: -f7)" = /usr/sbin/nologin ]'
expect "rewrap.toml is a conffile" 'dpkg-query -Wf "\${Conffiles}" nico-rewrap | grep >/dev/null /etc/nico-rewrap/rewrap.toml'
expect "it has the files that docs/deploy.md mentions" '
    cd /usr/share/nico-rewrap && ls vault/{agent.hcl,policy.hcl,secrets.json.ctmpl} postgres/role.sql'
expect "a start before the setup logs what is missing" '
    ! systemctl start nico-rewrap && journalctl --sync && journalctl -u nico-rewrap | grep >/dev/null "Assertion failed"'

expect "the migrate subcommand creates the tables" 'nico-rewrap migrate --config nico-api-config.toml'
expect "the key is readable to the service" 'chgrp nico-rewrap /etc/nico/server.key && chmod 640 /etc/nico/server.key'
# With an interval of an hour, only a reload can load new files during the test.
expect "the commands of docs/deploy.md set it up" "
    printf '%s\n' 'tls_reload_interval = \"1h\"' 'audit_log = \"/var/log/nico-rewrap/audit.log\"' >>/etc/nico-rewrap/rewrap.toml
    $(grep -v -e apt-get -e dpkg "$work/commands")"
wait_for "it is ready" "$ready"
expect "it is enabled" 'systemctl is-enabled nico-rewrap && systemctl is-active nico-rewrap'
expect "it runs as its user, without capabilities, core dumps or new privileges" '
    pid=$(systemctl show -P MainPID nico-rewrap)
    grep -q "^Uid:	$(id -u nico-rewrap)	" /proc/$pid/status
    grep -q "^CapBnd:	0000000000000000" /proc/$pid/status
    grep -q "^NoNewPrivs:	1" /proc/$pid/status
    grep -q "^Seccomp:	2" /proc/$pid/status
    grep -Eq "^Max core file size +0 +0 " /proc/$pid/limits'
expect "only root can read the secrets file" '! runuser -u nico-rewrap -- cat /etc/nico-rewrap/secrets.json'
expect "an administrator can make a dry run" '
    grpcurl -cacert /etc/nico/root.pem -cert /etc/nico/admin.pem -key /etc/nico/admin.key -d "{\"dry_run\": true}" \
        localhost:1179 forge.Forge/ReencryptTenantIdentitySecrets | grep >/dev/null "\"currentEncryptionKeyId\": \"kv2\""'
expect "the call is in the audit log, which only the service can read" '
    grep >/dev/null "\"identity\":\"alice\"" /var/log/nico-rewrap/audit.log
    [ "$(stat -c "%U %a" /var/log/nico-rewrap /var/log/nico-rewrap/audit.log | sort -u | tr "\n" " ")" = "nico-rewrap 600 nico-rewrap 750 " ]'

expect "a reload does not start a new process" '
    /etc/nico/issue server root "/CN=localhost" "subjectAltName=DNS:localhost,DNS:renewed"
    mv /var/log/nico-rewrap/audit.log /var/log/nico-rewrap/audit.log.1
    before=$(systemctl show -P MainPID nico-rewrap)
    systemctl reload nico-rewrap
    [ "$(systemctl show -P MainPID nico-rewrap)" = "$before" ]'
wait_for "the reload loads the new certificate" "$(in_journal 'TLS files reloaded')"
expect "the server presents the new certificate" '
    grpcurl -cacert /etc/nico/root.pem -cert /etc/nico/admin.pem -key /etc/nico/admin.key -authority renewed \
        localhost:1179 list | grep >/dev/null forge.Forge'
wait_for "the reload opens the audit log again" '[ -e /var/log/nico-rewrap/audit.log ]'

expect "systemd restarts it after a kill" 'systemctl kill -s KILL nico-rewrap'
wait_for "it is ready again" "[ \"\$(systemctl show -P NRestarts nico-rewrap)\" = 1 ] && $ready"
expect "the restart with a wrong target key fails" '
    sed -i "s/\"kv2\"/\"kv3\"/" /etc/nico-rewrap/site.toml
    systemctl restart nico-rewrap || true'
wait_for "it has ended with exit code 78" '[ "$(systemctl show -P ExecMainStatus nico-rewrap)" = 78 ] && systemctl is-failed nico-rewrap'
expect "systemd does not restart it, and the journal has the reason" '
    [ "$(systemctl show -P NRestarts nico-rewrap)" = 0 ]
    journalctl --sync && journalctl -u nico-rewrap | grep >/dev/null "current_encryption_key_id: key id \"kv3\" is not among the keys"
    sed -i "s/\"kv3\"/\"kv2\"/" /etc/nico-rewrap/site.toml && systemctl restart nico-rewrap'
wait_for "it is ready after the correction" "$ready"

# The next version has other defaults and another unit.
expect "the next version can be built" '
    dpkg-deb -R nico-rewrap_*.deb next
    sed -i "s/^Version: .*/Version: 99.0.0-1/" next/DEBIAN/control
    sed -i "s/^Description=.*/Description=The next one/" next/usr/lib/systemd/system/nico-rewrap.service
    echo "# one more default" >>next/etc/nico-rewrap/rewrap.toml
    mkdir old && mv nico-rewrap_*.deb old/ && dpkg-deb --root-owner-group -b next nico-rewrap_99.0.0-1_amd64.deb'
expect "an upgrade keeps changed settings, and restarts the service" "
    before=\$(systemctl show -P MainPID nico-rewrap)
    $(grep dpkg "$work/commands")
    [ \"\$(dpkg-query -Wf '\${Version}' nico-rewrap)\" = 99.0.0-1 ]
    grep -qx 'tls_reload_interval = \"1h\"' /etc/nico-rewrap/rewrap.toml
    grep -qx '# one more default' /etc/nico-rewrap/rewrap.toml.dpkg-dist
    [ \"\$(systemctl show -P Description nico-rewrap)\" = 'The next one' ]
    [ \"\$(systemctl show -P MainPID nico-rewrap)\" != \"\$before\" ] && systemctl is-enabled nico-rewrap"
wait_for "it is ready after the upgrade" "$ready"
expect "an upgrade does not start a stopped service" '
    systemctl stop nico-rewrap
    dpkg -i --force-confold old/nico-rewrap_*.deb
    [ "$(systemctl is-active nico-rewrap)" = inactive ] && systemctl start nico-rewrap'

start_vault
documented Vault
expect "the commands of docs/deploy.md set up Vault" "
    rm /etc/nico-rewrap/secrets.json
    $(cat "$work/commands")"
wait_for "it is ready with the keys from Vault" "$ready"
expect "the secrets file belongs to root and has both keys" '
    [ "$(stat -c "%U %a" /etc/nico-rewrap/secrets.json)" = "root 600" ]
    [ "$(grep -cE "\"kv[12]\": \"[A-Za-z0-9+/]{43}=\"" /etc/nico-rewrap/secrets.json)" = 2 ]'
expect "it starts with the existing secrets file while Vault is down" '
    systemctl stop vault-server
    mkdir /etc/systemd/system/nico-rewrap-vault.service.d
    printf "[Service]\nTimeoutStartSec=2s\n" >/etc/systemd/system/nico-rewrap-vault.service.d/impatient.conf
    systemctl daemon-reload
    systemctl restart nico-rewrap && systemctl is-failed nico-rewrap-vault'
wait_for "it is ready with that file" "$ready"
expect "the unit for Vault can be disabled" '
    systemctl disable nico-rewrap-vault && systemctl reset-failed nico-rewrap-vault'

documented systemd
expect "site.toml and the secrets file can be in another directory" "
    install -g nico-rewrap -m 0640 nico-api-config.toml /etc/nico/site.toml
    mv /etc/nico-rewrap/secrets.json /etc/nico/secrets.json; mv /etc/nico-rewrap/site.toml site.toml
    $(cat "$work/commands")"
wait_for "it is ready with the files in the other directory" "$ready"

expect "a removal stops the service and keeps its settings" '
    DEBIAN_FRONTEND=noninteractive apt-get remove -y nico-rewrap
    [ "$(systemctl is-active nico-rewrap)" != active ] && [ ! -e /usr/bin/nico-rewrap ]
    grep -qx "tls_reload_interval = \"1h\"" /etc/nico-rewrap/rewrap.toml'
expect "another installation finds the old settings" '
    dpkg -i old/nico-rewrap_*.deb && systemctl is-enabled nico-rewrap && systemctl start nico-rewrap'
wait_for "it is ready after the other installation" "$ready"
expect "a purge stops the service and keeps the operator's files" '
    mv site.toml /etc/nico-rewrap/site.toml
    DEBIAN_FRONTEND=noninteractive apt-get purge -y nico-rewrap
    [ "$(systemctl is-active nico-rewrap)" != active ]
    [ ! -e /etc/nico-rewrap/rewrap.toml ] && [ ! -e /usr/bin/nico-rewrap ] && [ -e /etc/nico-rewrap/site.toml ]
    [ -e /var/log/nico-rewrap/audit.log ]
    [ -z "$(find /etc/systemd/system /var/lib/systemd -name "nico-rewrap.service*" -not -name "*.d")" ]'
say "done"
