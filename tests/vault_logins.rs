//! The ways to log in to Vault. The server sees the files of a Pod in a mount namespace of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::json;

use crate::certs;
use crate::database::Database;
use crate::grpcurl::run;
use crate::leaks;
use crate::openbao::{ROOT_TOKEN, Vault, bao, deployed};
use crate::process::{self, temp_dir};
use crate::seed::one_under_kv1;
use crate::site::Site;

/// The uid of the service account `nico-rewrap`.
const UID: &str = "0b3b9a1c-7a52-4f7e-9d0e-0d8c5f1f2a11";

fn doc_commands() -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/doc_commands.sh"))
}

/// Runs the commands that `print` prints, as an administrator of Vault, in its directory.
fn documented(vault: &Vault, print: &mut Command) {
    let commands = process::run(print);
    let dir = vault.dir.path();
    std::fs::copy(deployed("policy.hcl"), dir.join("policy.hcl")).unwrap();
    if !dir.join("vault").exists() {
        std::os::unix::fs::symlink(bao(), dir.join("vault")).unwrap();
    }
    let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
    let mut environment = vault.command(ROOT_TOKEN, &[]);
    let mut bash = Command::new("bash");
    bash.args(["-euc", &commands]).current_dir(dir).env_clear();
    for (name, value) in environment.env("PATH", path).get_envs() {
        bash.env(name, value.unwrap_or_default());
    }
    process::run(&mut bash);
}

async fn rewraps(site: Site) {
    let server = site.start().await;
    assert_eq!(run(&server, true).await.rows_updated, 1);
    leaks::assert_none(&server.log_text());
}

#[tokio::test]
async fn an_app_role_logs_in_with_variables_or_files() {
    let database = one_under_kv1().await;
    let vault = Vault::start("secrets").with_key("kv1").with_key("kv2");
    vault.root(&["delete", "auth/approle/role/nico-rewrap"]);
    vault.root(&["policy", "delete", "nico-rewrap"]);
    let mut print = doc_commands();
    documented(&vault, print.args(["install/vault", "Policy"]));
    let mut print = doc_commands();
    documented(&vault, print.args(["install/vault", "AppRole"]));
    let [role_id, secret_id] = ["role-id", "secret-id"].map(|name| vault.id_file(name));
    let text = |file| std::fs::read_to_string(file).unwrap();
    let site = vault
        .site(&database)
        .env("VAULT_ROLE_ID", &text(&role_id))
        .env("VAULT_SECRET_ID", &text(&secret_id));
    rewraps(site).await;
    // An AppRole is for this program only, so it goes before a token.
    let site = vault
        .site(&database)
        .env("VAULT_TOKEN", "unknown")
        .env("VAULT_ROLE_ID_FILE", &role_id)
        .env("VAULT_SECRET_ID_FILE", &secret_id);
    rewraps(site).await;

    let exit = vault
        .site(&database)
        .env("VAULT_ROLE_ID", "unknown")
        .env("VAULT_SECRET_ID_FILE", &secret_id)
        .run_to_exit()
        .await;
    let words = "the login at auth/approle/login was refused (HTTP 400): enable this auth method, and set VAULT_ROLE_ID and";
    assert!(exit.code == 78 && exit.stderr.contains(words), "{exit:?}");
}

/// A Kubernetes API server that only reviews tokens.
struct Kubernetes {
    address: String,
}

impl Kubernetes {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                // A connection may end early.
                let _ = review(stream);
            }
        });
        Self { address }
    }
}

fn review(stream: std::net::TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    let mut first = String::new();
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().unwrap();
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    assert!(first.starts_with("POST /apis/authentication.k8s.io/v1/tokenreviews "));
    let request: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let token = request["spec"]["token"].as_str().unwrap();
    let status = json!({
        "authenticated": token == jwt("nico-rewrap"),
        "audiences": request["spec"]["audiences"],
        "user": {
            "username": "system:serviceaccount:nico-system:nico-rewrap",
            "uid": UID,
            "groups": ["system:serviceaccounts"],
        },
    });
    let answer = json!({
        "kind": "TokenReview",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {},
        "spec": request["spec"],
        "status": status,
    })
    .to_string();
    write!(
        reader.get_mut(),
        "HTTP/1.1 201 Created\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{answer}",
        answer.len()
    )
}

/// A token of a service account, as Kubernetes mounts it. Only the API server checks it.
fn jwt(account: &str) -> String {
    let claims = json!({
        "aud": ["https://kubernetes.default.svc"],
        "exp": 4_102_444_800_u64,
        "iat": 1_700_000_000,
        "nbf": 1_700_000_000,
        "iss": "https://kubernetes.default.svc",
        "kubernetes.io": {
            "namespace": "nico-system",
            "serviceaccount": {"name": account, "uid": UID},
        },
        "sub": format!("system:serviceaccount:nico-system:{account}"),
    });
    let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
    let header = part(r#"{"alg":"RS256","typ":"JWT"}"#);
    format!(
        "{header}.{}.{}",
        part(&claims.to_string()),
        part("signature")
    )
}

/// The directory /var/run/secrets of a Pod.
fn pod(directory: &Path, account: &str, ca: Option<&Path>) {
    let token = directory.join("kubernetes.io/serviceaccount");
    std::fs::create_dir_all(&token).unwrap();
    std::fs::write(token.join("token"), jwt(account)).unwrap();
    if let Some(ca) = ca {
        let roots = directory.join("forge-roots");
        std::fs::create_dir(&roots).unwrap();
        std::fs::copy(ca, roots.join("ca.crt")).unwrap();
    }
}

fn set_up(vault: &Vault, kubernetes: &Kubernetes) {
    vault.root(&["auth", "enable", "kubernetes"]);
    vault.root(&[
        "write",
        "auth/kubernetes/config",
        &format!("kubernetes_host={}", kubernetes.address),
        "disable_local_ca_jwt=true",
        // Required, although the API server of the test has no TLS.
        &format!("kubernetes_ca_cert=@{}", certs::root_ca().cert.display()),
        "token_reviewer_jwt=reviewer",
    ]);
    let mut print = doc_commands();
    documented(vault, print.args(["install/vault", "Kubernetes"]));
}

#[tokio::test]
async fn a_pod_logs_in_with_its_service_account() {
    let database = one_under_kv1().await;
    let vault = Vault::with_tls().with_key("kv1").with_key("kv2");
    let kubernetes = Kubernetes::start();
    set_up(&vault, &kubernetes);
    let secrets = temp_dir("run-secrets");
    pod(secrets.path(), "nico-rewrap", Some(&vault.ca_file()));
    // The service account goes before a token, and the mounted CA before VAULT_CACERT.
    let site = vault
        .site(&database)
        .env("VAULT_CACERT", "/nowhere")
        .env("VAULT_TOKEN", "unknown")
        .run_secrets(secrets.path());
    let server = site.start().await;
    let log = server.log_text();
    assert_eq!(run(&server, true).await.rows_updated, 1, "{log}");
    let read = &server.logs_with("Vault read")[0];
    assert_eq!(read["login"], "the Kubernetes role of this service account");
    assert!(!log.contains(&jwt("nico-rewrap")), "{log}");
    leaks::assert_none(&log);
}

#[tokio::test]
async fn a_service_account_without_a_role_is_a_configuration_error() {
    let database = Database::migrated().await;
    let vault = Vault::start("secrets").with_key("kv2");
    let login = async |account: &str| {
        let secrets = temp_dir("run-secrets");
        pod(secrets.path(), account, None);
        let site = vault.site(&database).run_secrets(secrets.path());
        let exit = site.run_to_exit().await;
        assert_eq!(exit.code, 78, "{exit:?}");
        assert!(!exit.stderr.contains(&jwt(account)));
        exit.stderr.replace("\\\"", "\"")
    };
    let said = login("nico-rewrap").await;
    let words = "the login at auth/kubernetes/login was refused (HTTP 403): enable this auth method, \
                 create the role \"nico-rewrap\" for the service account \"nico-rewrap\"";
    assert!(said.contains(words), "{said}");
    let kubernetes = Kubernetes::start();
    set_up(&vault, &kubernetes);
    let said = login("another").await;
    assert!(
        said.contains("create the role \"another\" for the service account \"another\""),
        "{said}"
    );
}
