//! A site: its configuration file, secrets file and certificates, in its own directory.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tempfile::TempDir;

use crate::certs;
use crate::database::Database;
use crate::process::temp_dir;
use crate::seal::{Keys, keys};
use crate::server::Server;

/// The binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_nico-rewrap");

/// Other content of `nico-api`'s own file.
const UNRELATED: &str = r#"
[pools.lo-ip]
type = "ipv4"
prefix = "10.180.62.1/26"

[host_models."1"]
components = [{ type = "bmc", preingest_upgrade_when_below = "9" }]

[rack_types]
"#;

/// The result of a program that has ended.
#[derive(Debug)]
pub(crate) struct Exit {
    /// The exit code, -1 after a signal.
    pub(crate) code: i32,
    /// All of stdout.
    pub(crate) stdout: String,
    /// All of stderr.
    pub(crate) stderr: String,
}

/// A builder of a site. The defaults are the keys `kv1` and `kv2`, the target `kv2`, and the issuer
/// CN and bundles of `certs.rs`.
pub(crate) struct Site {
    dir: TempDir,
    settings: BTreeMap<(String, String), String>,
    raw: String,
    whole: Option<String>,
    second_config: Option<String>,
    secrets: (String, Option<String>),
    env: Vec<(String, OsString)>,
    run_secrets: Option<PathBuf>,
    prefix: Vec<String>,
}

/// Mounts a copy of the directory `$1` at /run/secrets, which is /var/run/secrets too, in a mount
/// namespace of its own, and runs the rest of the arguments there.
const WITH_RUN_SECRETS: &str = r#"
set -e
copy=$(mktemp -d)
cp -r "$1/." "$copy"
mount -t tmpfs tmpfs /run
mkdir /run/secrets
mv "$copy"/* /run/secrets/
rmdir "$copy"
shift
exec "$@"
"#;

impl Site {
    /// The usual site on this database.
    pub(crate) fn new(database: &Database) -> Self {
        Self::with_url(&database.url())
    }

    /// The usual site on any database URL.
    pub(crate) fn with_url(database_url: &str) -> Self {
        let dir = temp_dir("site");
        let site = Self {
            dir,
            settings: BTreeMap::new(),
            raw: UNRELATED.into(),
            whole: None,
            second_config: None,
            secrets: (String::new(), None),
            env: Vec::new(),
            run_secrets: None,
            prefix: Vec::new(),
        };
        let leaf = certs::server();
        site.set("database_url", quote(database_url))
            .set("rapid_iterations", "true")
            .set("dpu_ipmi_reboot_attempts", "3")
            .set("machine_identity.enabled", "true")
            .set("machine_identity.algorithm", "\"ES256\"")
            .set("machine_identity.token_ttl_max_sec", "86400")
            .set("tls.identity_pemfile_path", path(&leaf.cert_chain))
            .set("tls.identity_keyfile_path", path(&leaf.key))
            .set("tls.root_cafile_path", path(&certs::root_ca().cert))
            .set(
                "tls.admin_root_cafile_path",
                path(&certs::admin_root().cert),
            )
            .set("auth.permissive_mode", "false")
            .set("auth.trust.spiffe_trust_domain", "\"nico.local\"")
            .set(
                "auth.trust.spiffe_service_base_paths",
                r#"["/nico-system/sa/", "/default/sa/"]"#,
            )
            .set(
                "auth.trust.spiffe_machine_base_path",
                "\"/nico-system/machine/\"",
            )
            .set(
                "auth.trust.additional_issuer_cns",
                format!("[{}]", quote(certs::ADMIN_ISSUER_CN)),
            )
            .set("rewrap.listen", "\"127.0.0.1:0\"")
            .set("rewrap.metrics_endpoint", "\"127.0.0.1:0\"")
            .set("rewrap.log_format", "\"json\"")
            // Most tests are about their own calls only.
            .set("rewrap.census_interval", "\"0s\"")
            .target("kv2")
            .keys(&keys(&["kv1", "kv2"]))
    }

    /// Sets `section.key` (or a key without section) to a value in TOML syntax, including quotes.
    pub(crate) fn set(mut self, key: &str, toml: impl Into<String>) -> Self {
        self.settings.insert(split(key), toml.into());
        self
    }

    /// Removes a key.
    pub(crate) fn unset(mut self, key: &str) -> Self {
        self.settings
            .remove(&split(key))
            .unwrap_or_else(|| panic!("{key} is not set"));
        self
    }

    /// Removes a section and its subsections.
    pub(crate) fn without_section(mut self, name: &str) -> Self {
        let below = format!("{name}.");
        self.settings
            .retain(|(section, _), _| section != name && !section.starts_with(&below));
        self
    }

    /// Replaces the whole first file with this text.
    pub(crate) fn whole_config(mut self, toml: &str) -> Self {
        self.whole = Some(toml.into());
        self
    }

    /// Adds a second `--config` file with this text.
    pub(crate) fn second_config(mut self, toml: &str) -> Self {
        self.second_config = Some(toml.into());
        self
    }

    /// Sets the target key id.
    pub(crate) fn target(self, key_id: &str) -> Self {
        self.set("machine_identity.current_encryption_key_id", quote(key_id))
    }

    /// Sets the keys of the secrets file, with other credentials around them.
    pub(crate) fn keys(self, keys: &Keys) -> Self {
        let keys: BTreeMap<_, _> = keys
            .iter()
            .map(|(id, key)| (id, BASE64_STANDARD.encode(key)))
            .collect();
        let secrets = serde_json::json!({
            "database": {"username": "nico", "password": "unrelated"},
            "machine_identity": {"encryption_keys": keys, "other": 1},
        });
        self.secrets("secrets.json", &secrets.to_string())
    }

    /// Writes a secrets file with this name and exactly this text.
    pub(crate) fn secrets(mut self, name: &str, text: &str) -> Self {
        self.secrets = (name.into(), Some(text.into()));
        let file = path(self.dir.path().join(name));
        self.set("rewrap.secrets_file", file)
    }

    /// Writes no secrets file, but keeps the setting.
    pub(crate) fn missing_secrets(mut self) -> Self {
        self.secrets.1 = None;
        self
    }

    /// Sets an environment variable of the process. The only other variable is `PATH`.
    pub(crate) fn env(mut self, name: &str, value: &(impl AsRef<OsStr> + ?Sized)) -> Self {
        self.env.push((name.into(), value.as_ref().into()));
        self
    }

    /// Shows the program the content of this directory at /var/run/secrets, as in a Pod.
    pub(crate) fn run_secrets(mut self, directory: &Path) -> Self {
        self.run_secrets = Some(directory.to_owned());
        self
    }

    /// Starts the program with this program and its arguments, like `unshare -U`.
    pub(crate) fn prefix(mut self, words: &[&str]) -> Self {
        self.prefix = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// The command line of the program, with `args`.
    fn command(&self, args: Vec<String>) -> Vec<String> {
        let mut command = self.prefix.clone();
        if let Some(directory) = &self.run_secrets {
            let directory = directory.to_str().unwrap();
            let words = [
                "unshare",
                "-rm",
                "sh",
                "-c",
                WITH_RUN_SECRETS,
                "sh",
                directory,
            ];
            command.extend(words.map(str::to_owned));
        }
        command.push(BINARY.to_owned());
        command.extend(args);
        command
    }

    /// The directory of the files `site.toml` and `secrets.json`.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Writes the files, also for a test that changes them under a running server. Returns the
    /// command line.
    pub(crate) fn write(&self, subcommand: &str) -> Vec<String> {
        let mut files = vec![("site.toml", self.toml())];
        files.extend(self.second_config.clone().map(|text| ("second.toml", text)));
        let mut args = vec![subcommand.to_owned()];
        for (name, text) in files {
            let file = self.dir.path().join(name);
            std::fs::write(&file, text).unwrap();
            args.extend(["--config".to_owned(), file.to_str().unwrap().to_owned()]);
        }
        if let (name, Some(text)) = &self.secrets {
            std::fs::write(self.dir.path().join(name), text).unwrap();
        }
        args
    }

    /// Starts the server and waits until it is ready.
    pub(crate) async fn start(self) -> Server {
        let server = self.start_unready().await;
        server.wait_ready().await;
        server
    }

    /// Starts the server and waits only until it has logged its addresses.
    pub(crate) async fn start_unready(self) -> Server {
        let command = self.command(self.write("serve"));
        Server::spawn_command(self.dir, &command, &self.env).await
    }

    /// Runs `serve` until it exits.
    pub(crate) async fn run_to_exit(self) -> Exit {
        self.run("serve").await
    }

    /// Runs a subcommand with `--config` until it exits.
    pub(crate) async fn run(self, subcommand: &str) -> Exit {
        let command = self.command(self.write(subcommand));
        run_command(&command, &self.env).await
    }

    /// The text of the first file.
    pub(crate) fn toml(&self) -> String {
        if let Some(whole) = &self.whole {
            return whole.clone();
        }
        let mut text = String::new();
        let mut current = "";
        for ((section, key), value) in &self.settings {
            if section != current {
                text += &format!("\n[{section}]\n");
                current = section;
            }
            text += &format!("{key} = {value}\n");
        }
        text + &self.raw
    }
}

/// Runs the binary with these arguments until it exits.
pub(crate) async fn run_binary(args: &[String], env: &[(String, OsString)]) -> Exit {
    run_command(&[&[BINARY.to_owned()], args].concat(), env).await
}

async fn run_command(words: &[String], env: &[(String, OsString)]) -> Exit {
    let mut command = tokio::process::Command::new(&words[0]);
    command
        .args(&words[1..])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
        .envs(env.iter().cloned())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(60), command.output()).await;
    let output = output
        .unwrap_or_else(|_| panic!("{words:?} does not end"))
        .unwrap();
    Exit {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A text as a TOML string.
pub(crate) fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A path as a TOML string.
pub(crate) fn path(path: impl Into<PathBuf>) -> String {
    quote(path.into().to_str().unwrap())
}

fn split(key: &str) -> (String, String) {
    let (section, key) = key.rsplit_once('.').unwrap_or(("", key));
    (section.into(), key.into())
}
