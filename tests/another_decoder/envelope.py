"""Envelopes of scheme version 1 with Python's cryptography, which has its own AES-GCM (OpenSSL) and JSON.

Reads a list from standard input: each entry has "key" (base64) and either "text", to open, or "key_id" and "plaintext"
(base64), to seal. Prints a list: the plaintext in base64 and the key id, or the text.
"""

import base64
import json
import os
import sys

from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def answer(entry):
    key = AESGCM(base64.b64decode(entry["key"], validate=True))
    if "text" not in entry:
        nonce = os.urandom(12)
        ciphertext = key.encrypt(nonce, base64.b64decode(entry["plaintext"]), None)
        envelope = {"scheme_version": 1, "key_id": entry["key_id"], "nonce": list(nonce), "ciphertext": list(ciphertext)}
        return base64.b64encode(json.dumps(envelope).encode()).decode()
    decoded = base64.b64decode(entry["text"], validate=True)
    envelope = json.loads(decoded)
    assert list(envelope) == ["scheme_version", "key_id", "nonce", "ciphertext"], list(envelope)
    assert envelope["scheme_version"] == 1 and len(envelope["nonce"]) == 12
    assert base64.b64encode(decoded).decode() == entry["text"], "not canonical base64"
    plaintext = key.decrypt(bytes(envelope["nonce"]), bytes(envelope["ciphertext"]), None)
    return [envelope["key_id"], base64.b64encode(plaintext).decode()]


json.dump([answer(entry) for entry in json.load(sys.stdin)], sys.stdout)
