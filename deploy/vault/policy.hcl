# The policy for the role of the agent: list the keys and read them. "secrets" is the KV v2 mount.
path "secrets/metadata/machine_identity/encryption_keys" {
  capabilities = ["list"]
}
path "secrets/data/machine_identity/encryption_keys/*" {
  capabilities = ["read"]
}
