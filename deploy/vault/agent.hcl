# Vault Agent, run once before nico-rewrap starts: it logs in, renders the secrets file, and ends. nico-rewrap reads its
# keys at its start only, so there is nothing to watch. VAULT_ADDR and VAULT_CACERT come from the environment.
exit_after_auth = true

vault {
  retry {
    # A key that is listed and can't be read is tried again for four seconds, not for the five minutes of the default.
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
  # No file rather than half of one.
  exit_on_retry_failure = true
}

template {
  source               = "/usr/share/nico-rewrap/vault/secrets.json.ctmpl"
  destination          = "/etc/nico-rewrap/secrets.json"
  perms                = "0600"
  error_on_missing_key = true
}
