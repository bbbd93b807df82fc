# shellcheck shell=bash disable=SC2016
# Functions of package_test.sh. The tests run in a container in which systemd is process 1.

image=nico-rewrap-package-test:latest
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

# inside SCRIPT : runs the script in the container, in the directory with the operator's files.
inside() { docker exec -w /root/site "$container" bash -euo pipefail -c "$1"; }
# expect WHAT SCRIPT : runs the script once. The test fails if the script fails.
expect() {
    inside "$2" >"$work/out" 2>&1 || { cat "$work/out" >&2; die "$1"; }
    say "ok: $1"
}
# wait_for WHAT SCRIPT : repeats the script until it succeeds, for at least a minute.
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
# documented PAGE HEADING : writes the commands of a section to $work/commands.
documented() { scripts/doc_commands.sh "$1" "$2" >"$work/commands"; }

# in_journal WORDS : prints a script that looks for the words in the journal, since the last start of the service.
in_journal() {
    echo "journalctl --sync && journalctl -u nico-rewrap _SYSTEMD_INVOCATION_ID=\$(systemctl show -P InvocationID nico-rewrap) |
        grep >/dev/null '$1'"
}

# In a container, systemd needs its own cgroups and the right to mount. It does not need --privileged.
start_container() {
    docker build --quiet --tag "$image" scripts/package_test >/dev/null
    docker run -d --name "$container" --network none --cap-add SYS_ADMIN --security-opt seccomp=unconfined \
        --security-opt apparmor=unconfined --cgroupns private --tmpfs /sys/fs/cgroup --tmpfs /run --tmpfs /tmp \
        -e container=docker "$image" >/dev/null
    docker exec "$container" mkdir -p /root/site
    docker cp "$1" "$container:/root/site/" 2>/dev/null
    docker cp "$(scripts/tools.sh grpcurl)" "$container:/usr/local/bin/grpcurl" 2>/dev/null
    wait_for "systemd is process 1, and Postgres runs" \
        'grep -qx systemd /proc/1/comm && systemctl is-active postgresql@15-main'
}

# Makes what an operator has before the installation: an empty database, certificates, the site config, and secrets.
make_site() {
    inside '
        runuser -u postgres -- psql -qc "CREATE ROLE nico LOGIN PASSWORD '"'a password of a test'"'" -c "CREATE DATABASE nico OWNER nico"
        mkdir -p /etc/nico && cd /etc/nico
        new_key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1"; }
        for ca in root admin-ca; do
            new_key $ca.key
            openssl req -x509 -new -key $ca.key -subj "/O=NICo/CN=$ca" -days 2 -out $ca.pem
        done
        cat >issue <<END
#!/bin/bash -eu
# issue NAME CA SUBJECT EXTENSION
cd /etc/nico
[ -e \$1.key ] || openssl ecparam -name prime256v1 -genkey -noout -out \$1.key
openssl req -new -key \$1.key -subj "\$3" |
    openssl x509 -req -CA \$2.pem -CAkey \$2.key -CAcreateserial -days 2 -extfile <(echo "\$4") -out \$1.pem
END
        chmod +x issue
        ./issue server root "/CN=localhost" "subjectAltName=DNS:localhost"
        ./issue admin admin-ca "/O=NICo/OU=admins/CN=alice" "extendedKeyUsage=clientAuth"
        kek() { openssl rand -base64 32; }
        cat >/root/site/secrets.json <<END
{"machine_identity": {"encryption_keys": {"kv1": "$(kek)", "kv2": "$(kek)"}}}
END
        cat >/root/site/nico-api-config.toml <<END
database_url = "postgres://nico:a%20password%20of%20a%20test@localhost/nico"
[credentials.file]
path = "/etc/nico/secrets.json"
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
END' >"$work/out" 2>&1 || { cat "$work/out" >&2; die "cannot set up the site"; }
}

# Starts a Vault server (OpenBao, a fork of Vault) with two keys, and writes the files that Vault Agent needs.
start_vault() {
    docker cp "$(scripts/tools.sh bao)" "$container:/usr/bin/vault" 2>/dev/null
    inside '
        systemd-run --quiet --unit=vault-server --setenv=HOME=/root \
            vault server -dev -dev-no-store-token -dev-root-token-id=root -dev-listen-address=127.0.0.1:8200
        export VAULT_ADDR=http://127.0.0.1:8200 VAULT_TOKEN=root
        for _ in $(seq 100); do vault status && break || sleep 0.2; done
        vault secrets enable -path=secrets kv-v2
        for id in kv1 kv2; do
            echo "{\"data\": {\"UsernamePassword\": {\"username\": \"$id\", \"password\": \"$(openssl rand -base64 32)\"}}}" |
                vault write secrets/data/machine_identity/encryption_keys/$id -
        done
        vault policy write nico-rewrap /usr/share/nico-rewrap/vault/policy.hcl
        vault auth enable approle
        role=auth/approle/role/nico-rewrap
        vault write $role token_policies=nico-rewrap
        umask 077
        vault read -field=role_id $role/role-id >/etc/nico-rewrap/vault-role-id
        vault write -f -field=secret_id $role/secret-id >/etc/nico-rewrap/vault-secret-id
        echo VAULT_ADDR=$VAULT_ADDR >/etc/nico-rewrap/vault.env' >"$work/out" 2>&1 || { cat "$work/out" >&2; die "cannot set up Vault"; }
}
