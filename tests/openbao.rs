//! A server of OpenBao, Vault's free fork, with the keys of a site. It keeps everything in memory.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::pg_host::free_port;
use crate::pki::Leaf;
use crate::process::{self, Supervised, temp_dir};
use crate::seal::key;
use crate::site::Site;

pub(crate) const ROOT_TOKEN: &str = "root";
pub(crate) const KEYS: &str = "machine_identity/encryption_keys";

pub(crate) fn bao() -> PathBuf {
    std::env::var_os("BAO").map_or_else(|| "bao".into(), PathBuf::from)
}

/// A file of `deploy/vault`.
pub(crate) fn deployed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy/vault")
        .join(name)
}

/// A server with a KV v2 engine, the policy of `policy.hcl`, and an AppRole with this policy.
pub(crate) struct Vault {
    pub(crate) dir: TempDir,
    pub(crate) address: String,
    pub(crate) mount: String,
    namespace: Option<String>,
    pub(crate) port: u16,
    is_tls: bool,
    server: Option<Supervised>,
}

impl Vault {
    /// A server without TLS.
    pub(crate) fn start(mount: &str) -> Self {
        let mut vault = Self::absent(mount);
        vault.run();
        vault
    }

    /// A server with TLS, and a certificate of its own CA.
    pub(crate) fn with_tls() -> Self {
        let mut vault = Self::absent("secrets");
        vault.is_tls = true;
        vault.address = vault.address.replace("http://", "https://");
        vault.run();
        vault
    }

    /// A server without TLS, and the address of its second listener, which has TLS with this
    /// certificate.
    pub(crate) fn with_certificate(leaf: &Leaf) -> (Self, String) {
        let mut vault = Self::absent("secrets");
        let address = format!("127.0.0.1:{}", free_port());
        let config = json!({"listener": [{"tcp": {
            "address": address,
            "tls_cert_file": leaf.cert_chain,
            "tls_key_file": leaf.key,
        }}]});
        std::fs::write(vault.config_file(), config.to_string()).unwrap();
        vault.run();
        (vault, format!("https://{address}"))
    }

    fn config_file(&self) -> PathBuf {
        self.dir.path().join("config.json")
    }

    /// The address of a server that does not run yet.
    pub(crate) fn absent(mount: &str) -> Self {
        let port = free_port();
        Self {
            dir: temp_dir("vault"),
            address: format!("http://127.0.0.1:{port}"),
            mount: mount.to_owned(),
            namespace: None,
            port,
            is_tls: false,
            server: None,
        }
    }

    /// Starts the server and sets up its engine.
    fn run(&mut self) {
        self.run_server();
        self.set_up();
    }

    fn run_server(&mut self) {
        let mut args = vec![
            "server".to_owned(),
            "-dev".to_owned(),
            "-dev-no-store-token".to_owned(),
            format!("-dev-root-token-id={ROOT_TOKEN}"),
            format!("-dev-listen-address=127.0.0.1:{}", self.port),
        ];
        if self.is_tls {
            args.push("-dev-tls".to_owned());
            args.push(format!("-dev-tls-cert-dir={}", self.dir.path().display()));
        }
        if self.config_file().exists() {
            args.push(format!("-config={}", self.config_file().display()));
        }
        let log = std::fs::File::create(self.dir.path().join("server.log")).unwrap();
        let home = self.dir.path().to_owned();
        let server = Supervised::spawn(&bao(), args, "KILL", |command| {
            command.env("HOME", home).stderr(log);
        });
        self.server = Some(server);
        let deadline = Instant::now() + Duration::from_secs(60);
        let is_ready = || {
            let status = self.command(ROOT_TOKEN, &["status"]).output().unwrap();
            status.status.success()
        };
        while !is_ready() {
            let log = self.log();
            assert!(Instant::now() < deadline, "{log}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Everything that the server has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("server.log")).unwrap()
    }

    /// Makes a namespace, and an engine and an AppRole in it. Everything after this happens there.
    pub(crate) fn in_namespace(mut self, name: &str) -> Self {
        self.root(&["namespace", "create", name]);
        self.namespace = Some(name.to_owned());
        self.set_up();
        self
    }

    fn set_up(&self) {
        // The development server already has an engine at "secret".
        let path = format!("-path={}", self.mount);
        self.root(&["secrets", "enable", &path, "kv-v2"]);
        let policy = std::fs::read_to_string(deployed("policy.hcl")).unwrap();
        self.write_policy(&policy.replace("\"secrets/", &format!("\"{}/", self.mount)));
        self.root(&["auth", "enable", "approle"]);
        let role = "auth/approle/role/nico-rewrap";
        self.root(&["write", role, "token_policies=nico-rewrap"]);
        for (name, args) in [
            ("role-id", &["read", "-field=role_id"][..]),
            ("secret-id", &["write", "-f", "-field=secret_id"]),
        ] {
            let id = self.root(&[args, &[&format!("{role}/{name}")]].concat());
            std::fs::write(self.id_file(name), id).unwrap();
        }
    }

    /// Replaces the policy `nico-rewrap`.
    pub(crate) fn write_policy(&self, text: &str) {
        let file = self.dir.path().join("policy.hcl");
        std::fs::write(&file, text).unwrap();
        self.root(&["policy", "write", "nico-rewrap", file.to_str().unwrap()]);
    }

    /// The file with `role-id` or `secret-id`.
    pub(crate) fn id_file(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("vault-{name}"))
    }

    /// The file with the CA of a server with TLS.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.dir.path().join("vault-ca.pem")
    }

    pub(crate) fn command(&self, token: &str, args: &[&str]) -> Command {
        let mut command = Command::new(bao());
        command
            .args(args)
            .env_clear()
            .env("HOME", self.dir.path())
            .env("VAULT_ADDR", &self.address)
            .env("VAULT_TOKEN", token)
            .env("VAULT_NAMESPACE", self.namespace.as_deref().unwrap_or(""))
            .stdin(Stdio::null());
        if self.is_tls {
            command.env("VAULT_CACERT", self.ca_file());
        }
        command
    }

    /// Runs `bao` with the root token.
    pub(crate) fn root(&self, args: &[&str]) -> String {
        process::run(&mut self.command(ROOT_TOKEN, args))
    }

    /// A token with the policy `nico-rewrap`.
    pub(crate) fn token(&self) -> String {
        let token = self.root(&["token", "create", "-policy=nico-rewrap", "-field=token"]);
        token.trim().to_owned()
    }

    /// Adds a key in the format of nico-api.
    pub(crate) fn with_key(self, id: &str) -> Self {
        self.put_key(id, id);
        self
    }

    /// Writes the bytes of the key `other` under the id `id`.
    pub(crate) fn put_key(&self, id: &str, other: &str) {
        let pair = json!({"username": id, "password": BASE64_STANDARD.encode(key(other))});
        self.put(
            &format!("{KEYS}/{id}"),
            &json!({ "data": {"UsernamePassword": pair} }),
        );
    }

    pub(crate) fn put(&self, path: &str, value: &Value) {
        let file = self.dir.path().join("value.json");
        std::fs::write(&file, value.to_string()).unwrap();
        let path = format!("{}/data/{path}", self.mount);
        self.root(&["write", &path, &format!("@{}", file.display())]);
    }

    /// A site without a secrets file, whose keys are in this Vault.
    pub(crate) fn site(&self, database: &crate::database::Database) -> Site {
        let mut site = Site::new(database)
            .unset("rewrap.secrets_file")
            .env("VAULT_ADDR", &self.address);
        if self.mount != "secrets" {
            site = site.env("VAULT_KV_MOUNT_LOCATION", &self.mount);
        }
        if let Some(namespace) = &self.namespace {
            site = site.env("VAULT_NAMESPACE", namespace);
        }
        if self.is_tls {
            site = site.env("VAULT_CACERT", &self.ca_file());
        }
        site
    }

    /// The same site, with a token of the policy `nico-rewrap`.
    pub(crate) fn site_with_token(&self, database: &crate::database::Database) -> Site {
        self.site(database).env("VAULT_TOKEN", &self.token())
    }
}
