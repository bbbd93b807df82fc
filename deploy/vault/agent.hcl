# Vault Agent runs once before nico-rewrap starts: it logs in, renders the secrets file, and ends. nico-rewrap reads its
# keys only at its start. VAULT_ADDR and VAULT_CACERT come from the environment.
exit_after_auth = true

vault {
  retry {
    # Four seconds for a key that is listed and cannot be read. The default is five minutes.
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
  # If a key is missing, write no file.
  exit_on_retry_failure = true
}

template {
  source               = "/usr/share/nico-rewrap/vault/secrets.json.ctmpl"
  destination          = "/etc/nico-rewrap/secrets.json"
  perms                = "0600"
  error_on_missing_key = true
}
