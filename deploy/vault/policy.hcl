# The policy of the agent's role, which lists and reads the keys. "secrets" is the KV v2 mount.
path "secrets/metadata/machine_identity/encryption_keys" {
  capabilities = ["list"]
}
path "secrets/data/machine_identity/encryption_keys/*" {
  capabilities = ["read"]
}
