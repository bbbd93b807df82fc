//! The secrets file that Vault Agent creates with `deploy/vault`: its configuration, its template
//! and the policy of its role, with a real server and agent. These are from OpenBao, Vault's free
//! fork, which reads the same files.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::database::Database;
use crate::grpcurl::run;
use crate::leaks;
use crate::openbao::{KEYS, Vault, deployed};
use crate::process::temp_dir;
use crate::seal::key;
use crate::seed::Org;
use crate::site::{Site, quote};

impl Vault {
    /// Runs the agent as at a site, with the directory `secrets` in place of `/etc/nico-rewrap`.
    fn agent(&self, secrets: &Path) -> (bool, String) {
        let text = std::fs::read_to_string(deployed("agent.hcl")).unwrap();
        let below = |directory: &Path| format!("{}/", directory.display());
        let ids = format!("{}vault-", below(self.dir.path()));
        let text = text
            .replace("/etc/nico-rewrap/vault-", &ids)
            .replace("/etc/nico-rewrap/", &below(secrets))
            .replace("/usr/share/nico-rewrap/vault/", &below(&deployed("")));
        assert!(!text.contains("\"/etc/") && !text.contains("\"/usr/"));
        let file = self.dir.path().join("agent.hcl");
        std::fs::write(&file, text).unwrap();
        let config = format!("-config={}", file.display());
        let mut agent = self.command("", &["agent", &config]);
        if self.mount != "secrets" {
            agent.env("VAULT_KV_MOUNT_LOCATION", &self.mount);
        }
        let output = agent.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        (output.status.success(), said)
    }

    fn rendered(&self) -> Value {
        let dir = temp_dir("rendered");
        let (done, said) = self.agent(dir.path());
        assert!(done, "{said}");
        let text = std::fs::read_to_string(dir.path().join("secrets.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }
}

#[tokio::test]
async fn the_rendered_file_is_read() {
    let database = Database::migrated().await;
    Org::under("acme", "kv1")
        .insert(&database.client().await)
        .await;
    let vault = Vault::start("secrets").with_key("kv1").with_key("kv2");
    let site = Site::new(&database).missing_secrets();
    let (done, said) = vault.agent(site.dir());
    assert!(done, "{said}");
    leaks::assert_none(&said);
    let file = site.dir().join("secrets.json").metadata().unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    let server = site.start().await;
    let report = run(&server, false).await;
    assert_eq!((report.rows_updated, report.rows_failed), (1, 0));
    leaks::assert_none(&server.log_text());
}

#[test]
fn the_mount_is_that_of_nico_api() {
    let vault = Vault::start("site/kv").with_key("only");
    let expected = json!({"only": BASE64_STANDARD.encode(key("only"))});
    assert_eq!(
        vault.rendered()["machine_identity"]["encryption_keys"],
        expected
    );
}

/// Vault also lists a deleted key, until its metadata is deleted.
#[test]
fn a_key_that_is_listed_and_cannot_be_read_makes_no_file() {
    let vault = Vault::start("secrets").with_key("kv1").with_key("kv2");
    let kv2 = format!("{KEYS}/kv2");
    vault.root(&["kv", "delete", "-mount=secrets", &kv2]);
    let dir = temp_dir("rendered");
    let (done, said) = vault.agent(dir.path());
    assert!(!done && !dir.path().join("secrets.json").exists(), "{said}");
    assert!(
        said.contains(&format!("no secret exists at secrets/data/{kv2}")),
        "{said}"
    );
    // The remedy on the page.
    vault.root(&["kv", "metadata", "delete", "-mount=secrets", &kv2]);
    let keys = &vault.rendered()["machine_identity"]["encryption_keys"];
    assert_eq!(keys.as_object().unwrap().len(), 1);
    // A secret in another format is not a key, either.
    vault.put(&kv2, &json!({"data": {"password": "x"}}));
    let (done, said) = vault.agent(dir.path());
    assert!(!done && !dir.path().join("secrets.json").exists(), "{said}");
}

#[test]
fn the_policy_allows_the_agent_to_read_keys_and_nothing_else() {
    let vault = Vault::start("secrets").with_key("kv1");
    vault.put("bmc/site_wide_root", &json!({"data": {"password": "x"}}));
    let token = vault.token();
    let may = |args: &[&str]| {
        let output = vault.command(&token, args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success() || said.contains("permission denied"),
            "{said}"
        );
        output.status.success()
    };
    let kv1 = format!("{KEYS}/kv1");
    assert!(may(&["kv", "list", "-mount=secrets", KEYS]));
    assert!(may(&["kv", "get", "-mount=secrets", &kv1]));
    for args in [
        &["kv", "list", "-mount=secrets", "machine_identity"][..],
        &["kv", "get", "-mount=secrets", "bmc/site_wide_root"],
        &["kv", "put", "-mount=secrets", &kv1, "a=b"],
        &["kv", "delete", "-mount=secrets", &kv1],
        &["kv", "metadata", "delete", "-mount=secrets", &kv1],
    ] {
        assert!(!may(args), "{args:?}");
    }
}

#[test]
fn the_agent_writes_where_the_unit_reads() {
    let file = "/etc/nico-rewrap/secrets.json";
    let agent = std::fs::read_to_string(deployed("agent.hcl")).unwrap();
    let unit = include_str!("../deploy/systemd/root-only-secrets.conf");
    let destination = agent.lines().find(|line| line.contains("destination"));
    assert!(destination.unwrap().ends_with(&quote(file)));
    assert!(unit.contains(&format!("\nLoadCredential=secrets:{file}\n")));
    assert!(unit.contains(&format!("\nAssertPathExists={file}\n")));
}
