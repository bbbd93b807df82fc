# Configuration of Vault Agent, which runs once before nico-rewrap starts. The agent logs in, renders the secrets file, and
# exits. nico-rewrap reads its keys only at its start, so the agent does not have to keep running. VAULT_ADDR and
# VAULT_CACERT come from the environment.
exit_after_auth = true

vault {
  retry {
    # If a listed key can't be read, the agent gives up after four seconds. The default is five minutes.
    num_retries = 4
  }
}

auto_auth {
  method "approle" {
    config = {
      role_id_file_path                   = "/etc/nico-rewrap/vault-role-id"
      secret_id_file_path                 = "/etc/nico-rewrap/vault-secret-id"
      remove_secret_id_file_after_reading = false
    }
  }
}

template_config {
  # If a key can't be read, the agent fails and writes no incomplete file.
  exit_on_retry_failure = true
}

template {
  source               = "/usr/share/nico-rewrap/vault/secrets.json.ctmpl"
  destination          = "/etc/nico-rewrap/secrets.json"
  perms                = "0600"
  error_on_missing_key = true
}
