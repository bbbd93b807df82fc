# The policy of nico-rewrap, and of Vault Agent if it renders the secrets file: list the keys and read them. "secrets" is the KV v2 mount.
path "secrets/metadata/machine_identity/encryption_keys" {
  capabilities = ["list"]
}
path "secrets/data/machine_identity/encryption_keys/*" {
  capabilities = ["read"]
}
