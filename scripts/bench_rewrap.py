"""A re-wrap script as an operator might write it: psycopg and cryptography, one row at a time, one commit per row.

bench.sh runs it as bench_rewrap.py DATABASE_URL SECRETS_FILE. It uses the same protocol with bench.sh as
examples/bench_rivals.rs: it prints "ready", waits for a line, works, and prints "done".
"""

import base64
import json
import os
import sys
import time

import psycopg
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TARGET = "kv2"


def rewrap(keys, text):
    envelope = json.loads(base64.b64decode(text))
    key = keys[envelope["key_id"]]
    secret = key.decrypt(bytes(envelope["nonce"]), bytes(envelope["ciphertext"]), None)
    nonce = os.urandom(12)
    ciphertext = keys[TARGET].encrypt(nonce, secret, None)
    envelope = {"scheme_version": 1, "key_id": TARGET, "nonce": list(nonce), "ciphertext": list(ciphertext)}
    return base64.b64encode(json.dumps(envelope, separators=(",", ":")).encode()).decode()


def rewrap_row(connection, keys, organization_id):
    texts = connection.execute(
        "SELECT encrypted_signing_key_1, encrypted_signing_key_2, encrypted_auth_method_config"
        " FROM tenant_identity_config WHERE organization_id = %s FOR UPDATE",
        [organization_id],
    ).fetchone()
    connection.execute(
        "UPDATE tenant_identity_config SET encrypted_signing_key_1 = %s, encrypted_signing_key_2 = %s,"
        " encrypted_auth_method_config = %s, updated_at = now() WHERE organization_id = %s",
        [*(text and rewrap(keys, text) for text in texts), organization_id],
    )
    connection.execute(
        "UPDATE tenants SET version = 'V' || (substring(version from '^V([0-9]+)')::bigint + 1) || '-T' || %s"
        " WHERE organization_id = %s",
        [str(time.time_ns() // 1000), organization_id],
    )
    connection.commit()


def main(database_url, secrets_file):
    with open(secrets_file) as file:
        keys = json.load(file)["machine_identity"]["encryption_keys"]
    keys = {key_id: AESGCM(base64.b64decode(key)) for key_id, key in keys.items()}
    with psycopg.connect(database_url) as connection:
        print("ready", flush=True)
        sys.stdin.readline()
        ids = connection.execute("SELECT organization_id FROM tenant_identity_config").fetchall()
        for (organization_id,) in ids:
            rewrap_row(connection, keys, organization_id)
        print("done", flush=True)
        sys.stdin.readline()


main(*sys.argv[1:])
