//! How the client finds and reaches a server.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::certs;
use crate::operator::Operator;
use crate::outcome::{seeded, serve};
use crate::process::temp_dir;
use crate::seed::Org;
use crate::site::{BINARY, Site};

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn options_win_over_the_environment_and_the_environment_over_the_context() {
    let (_database, _client, server) = serve(&[]).await;
    let home = temp_dir("home");
    let config = home.path().join(".config/nico-rewrap/config.toml");
    std::fs::create_dir_all(config.parent().unwrap()).unwrap();
    let admin = certs::admin();
    let contexts = format!(
        "# my sites\n[context.here]\nendpoint = \"{}\"\ncacert = \"{}\"\ncert = \"{}\"\nkey = \"{}\"\nsite = \"fra-1\"\n\
         [context.gone]\nendpoint = \"127.0.0.1:1\"\ncacert = \"ca.pem\"\n",
        server.grpc,
        text(&certs::root_ca().cert),
        text(&admin.cert_chain),
        text(&admin.key),
    );
    std::fs::write(&config, &contexts).unwrap();
    let operator = Operator::without_options().env("HOME", home.path());

    // Nothing is named, and there is no current context.
    let nothing = operator.call(&["whoami"]).await;
    assert_eq!(nothing.code, 6, "{nothing:?}");
    assert!(nothing.stderr.contains("no server is named"), "{nothing:?}");

    assert_eq!(operator.call(&["context", "use", "nowhere"]).await.code, 78);
    assert_eq!(operator.call(&["context", "use", "here"]).await.code, 0);
    let changed = std::fs::read_to_string(&config).unwrap();
    assert_eq!(
        changed,
        contexts.replacen("[context", "current = \"here\"\n[context", 1)
    );
    let list = operator.call(&["context", "list"]).await;
    assert!(list.stdout.contains("*  here"), "{}", list.stdout);
    let show = operator.call(&["context", "show", "gone"]).await;
    // A path is relative to the directory of the file.
    let ca = text(&config.with_file_name("ca.pem"));
    assert!(show.stdout.contains(&ca), "{}", show.stdout);

    let (code, me) = operator.json(&["whoami"]).await;
    assert_eq!((code, &me["name"]), (0, &json!("alice")));
    let (_, status) = operator.json(&["status"]).await;
    assert_eq!(
        (&status["context"], &status["site"]),
        (&json!("here"), &json!("fra-1"))
    );

    // The environment wins over the current context, and an explicit context over the environment.
    let elsewhere = operator.clone().env("REWRAP_ENDPOINT", "127.0.0.1:1");
    let incomplete = elsewhere.call(&["whoami"]).await;
    assert_eq!(incomplete.code, 78, "{incomplete:?}");
    assert!(
        incomplete.stderr.contains("REWRAP_CACERT"),
        "{incomplete:?}"
    );
    assert_eq!(
        elsewhere
            .clone()
            .option(&["--context", "here"])
            .json(&["whoami"])
            .await
            .0,
        0
    );
    let options = ["--endpoint", &server.grpc];
    let full = elsewhere
        .option(&options)
        .env("REWRAP_CACERT", &certs::root_ca().cert)
        .env("REWRAP_CERT", &admin.cert_chain)
        .env("REWRAP_KEY", &admin.key);
    assert_eq!(full.json(&["whoami"]).await.0, 0);
}

#[tokio::test]
async fn a_key_that_others_can_read_is_refused_with_its_mode() {
    let (_database, _client, server) = serve(&[]).await;
    let dir = temp_dir("key");
    let key = dir.path().join("key.pem");
    std::fs::copy(&certs::admin().key, &key).unwrap();
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
    let operator = Operator::of(&server).option(&[]);
    let args: Vec<_> = operator
        .args(&["whoami"])
        .into_iter()
        .map(|arg| {
            if arg == text(&certs::admin().key) {
                text(&key)
            } else {
                arg
            }
        })
        .collect();
    let exit = crate::site::run_binary(&args, &[]).await;
    assert_eq!(exit.code, 78, "{exit:?}");
    assert!(exit.stderr.contains("has mode 0644"), "{}", exit.stderr);
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(crate::site::run_binary(&args, &[]).await.code, 0);
}

#[tokio::test]
async fn a_command_can_give_the_credentials() {
    let (_database, _client, server) = serve(&[]).await;
    let home = temp_dir("home");
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    let credential = json!({
        "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
        "status": {
            "clientCertificateData": read(&certs::admin().cert_chain),
            "clientKeyData": read(&certs::admin().key),
        },
    });
    let file = home.path().join("credential.json");
    std::fs::write(&file, credential.to_string()).unwrap();
    let config = home.path().join("nico-rewrap/config.toml");
    std::fs::create_dir_all(config.parent().unwrap()).unwrap();
    let write = |command: &str| {
        let text = format!(
            "current = \"x\"\n[context.x]\nendpoint = \"{}\"\ncacert = \"{}\"\ncredential_command = {command}\n",
            server.grpc,
            text(&certs::root_ca().cert),
        );
        std::fs::write(&config, text).unwrap();
    };
    let operator = Operator::without_options().env("XDG_CONFIG_HOME", home.path());
    write(&format!("[\"cat\", \"{}\"]", text(&file)));
    let (code, me) = operator.json(&["whoami"]).await;
    assert_eq!((code, &me["name"]), (0, &json!("alice")));
    for (command, words) in [
        ("[\"false\"]", "false failed"),
        ("[\"/nonexistent\"]", "cannot be started"),
        ("[\"echo\", \"secret\"]", "printed no ExecCredential"),
    ] {
        write(command);
        let exit = operator.call(&["whoami"]).await;
        assert_eq!(exit.code, 78, "{command}: {exit:?}");
        assert!(exit.stderr.contains(words), "{command}: {}", exit.stderr);
        assert!(!exit.stderr.contains("\"secret\""), "{}", exit.stderr);
    }
}

#[tokio::test]
async fn tls_problems_name_the_option() {
    let (_database, _client, server) = serve(&[]).await;
    let other = text(&certs::other_ca().cert);
    let base = Operator::of(&server);
    let replaced = |from: &str, to: &str| {
        let args = base.args(&["whoami"]).into_iter();
        args.map(|arg| if arg == from { to.to_owned() } else { arg })
            .collect::<Vec<_>>()
    };
    let ca = text(&certs::root_ca().cert);
    let exit = crate::site::run_binary(&replaced(&ca, &other), &[]).await;
    assert_eq!(exit.code, 6, "{exit:?}");
    assert!(exit.stderr.contains("check --cacert"), "{}", exit.stderr);
    let exit = base
        .clone()
        .option(&["--server-name", "wrong.example"])
        .call(&["whoami"])
        .await;
    assert_eq!(exit.code, 6, "{exit:?}");
    assert!(exit.stderr.contains("set --server-name"), "{}", exit.stderr);
    assert_eq!(
        base.option(&["--server-name", "localhost"])
            .call(&["whoami"])
            .await
            .code,
        0
    );
    let stranger = certs::admin_cert().signed_by(certs::other_ca());
    let exit = Operator::with(&[&server], &stranger)
        .call(&["whoami"])
        .await;
    assert_eq!(exit.code, 7, "{exit:?}");
    assert!(
        exit.stderr.contains("refused the TLS connection"),
        "{}",
        exit.stderr
    );
}

#[tokio::test]
async fn instances_that_disagree_are_shown() {
    let (database, _client) = seeded(&[Org::under("a", "kv1")]).await;
    let one = Site::new(&database)
        .set("rewrap.instance_name", "\"one\"")
        .start()
        .await;
    let mut keys = crate::seal::keys(&["kv1", "kv2"]);
    keys.insert("kv2".to_owned(), [7; 32]);
    let other = Site::new(&database)
        .keys(&keys)
        .target("kv1")
        .set("rewrap.instance_name", "\"two\"");
    let two = other.start().await;
    let both = Operator::with(&[&one, &two], certs::admin());
    let (code, status) = both.json(&["status"]).await;
    assert_eq!((code, &status["agree"]), (0, &json!(false)));
    assert_eq!(status["instances"].as_array().unwrap().len(), 2);
    let problems = status["disagreements"].to_string();
    assert!(problems.contains("the target key differs"), "{problems}");
    assert!(
        problems.contains("the key \\\"kv2\\\" differs"),
        "{problems}"
    );
    let text = both.call(&["status"]).await.stdout;
    assert!(
        text.contains("✗ the target key differs") && text.contains("Restart the instances"),
        "{text}"
    );
    let ascii = both
        .clone()
        .option(&["--ascii"])
        .call(&["status"])
        .await
        .stdout;
    assert!(
        ascii.contains("x the target key differs") && ascii.is_ascii(),
        "{ascii}"
    );
    // The worst verdict counts: kv1 is a target.
    both.json(&["census"]).await;
    let (code, verdict) = both.json(&["can-i-delete", "kv1"]).await;
    assert_eq!(
        (code, &verdict["state"], &verdict["instances"]),
        (8, &json!("TARGET"), &json!(2))
    );
    assert_eq!(two.terminate().await, 0);
    // An instance that is gone is named, and the other one is asked.
    let (code, status) = both.json(&["status"]).await;
    assert_eq!((code, &status["agree"]), (0, &json!(true)));
    assert!(
        status["instances"][1]["problem"]
            .as_str()
            .unwrap()
            .contains("cannot connect")
    );
}

#[tokio::test]
async fn a_reader_that_leaves_is_no_error() {
    let (_database, _client, server) = serve(&[Org::under("a", "kv1")]).await;
    let mut process = Command::new(BINARY)
        .args(Operator::of(&server).args(&["status"]))
        .env_clear()
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(process.stdout.take());
    let output = process.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[tokio::test]
async fn the_admin_socket_needs_no_certificate() {
    let (database, _client) = seeded(&[Org::under("a", "kv1")]).await;
    let (site, socket) = crate::admin_socket::with_socket(Site::new(&database));
    let _server = site.start().await;
    let option = ["--socket", socket.to_str().unwrap()];
    let operator = Operator::without_options().option(&option);
    let (code, me) = operator.json(&["whoami"]).await;
    assert_eq!((code, &me["callerKind"]), (0, &json!("local")), "{me}");
    assert_eq!(operator.json(&["status"]).await.0, 0);
    let from_environment = Operator::without_options().env("REWRAP_SOCKET", &socket);
    assert_eq!(from_environment.json(&["check"]).await.0, 0);
    // By default, a local caller may only read.
    let exit = operator
        .call(&["reencrypt", "--expect-target", "kv2"])
        .await;
    assert_eq!(exit.code, 7, "{exit:?}");
    assert!(exit.stderr.contains("admin_socket_may_apply"), "{exit:?}");
    let absent = Operator::without_options().option(&["--socket", "/nonexistent/s"]);
    assert_eq!(absent.call(&["status"]).await.code, 6);
}
