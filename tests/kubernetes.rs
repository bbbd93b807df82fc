//! The manifests of `deploy/kubernetes` together with the program: the program reads what they
//! mount and set, it serves with the certificate that they request, and their Job makes the call.
//!
//! `manifests.rs` checks that the manifests are consistent. `scripts/check_deploy.sh` checks them
//! against the schemas of Kubernetes.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::admin_socket::ask;
use crate::certs;
use crate::database::Database;
use crate::grpcurl::Call;
use crate::kubelet::{arguments, cluster, container, environment, mount, named, rendered};
use crate::leaks;
use crate::pki::{Cert, Leaf};
use crate::process::{self, temp_dir};
use crate::seed::{Org, one_under_kv1};
use crate::server::{Server, field};
use crate::site::BINARY;

const STANDALONE: &str = "nico-rewrap-certificate";
const SIDECAR: &str = "nico-api-certificate";

/// A certificate as from cert-manager: exactly the names of the manifest, and a P-384 key in SEC1
/// format.
fn issued(certificate: &Value) -> Leaf {
    let spec = &certificate["spec"];
    assert_eq!(
        spec["privateKey"],
        json!({"algorithm": "ECDSA", "size": 384})
    );
    let subject = format!("/CN={}", spec["commonName"].as_str().unwrap());
    let mut cert = Cert::new(&subject).p384().traditional_key();
    for (kind, names) in [("DNS", &spec["dnsNames"]), ("URI", &spec["uris"])] {
        for name in names.as_array().unwrap() {
            cert = cert.san(&format!("{kind}:{}", name.as_str().unwrap()));
        }
    }
    cert.signed_by(certs::root_ca())
}

/// The certificate that nico-api's chart requests.
fn of_nico_api() -> Leaf {
    let names = [
        "DNS:nico-api.nico-system.svc.cluster.local",
        "DNS:localhost",
    ];
    let uri = format!("URI:{}nico-api", certs::SERVICE_BASE);
    let cert = Cert::new("/CN=nico-api")
        .san(names[0])
        .san(names[1])
        .san(&uri);
    cert.signed_by(certs::root_ca())
}

/// Starts the program as a container of these manifests does, except for changes that a test needs.
async fn started(
    manifests: &BTreeMap<String, Value>,
    database: &Database,
    certificate: (&str, &Leaf),
) -> Server {
    let mut objects = cluster(database, certificate);
    let config_map = &manifests["ConfigMap"];
    let generated = serde_json::from_value(config_map["data"].clone()).unwrap();
    objects.insert(
        config_map["metadata"]["name"].as_str().unwrap().to_owned(),
        generated,
    );
    let pod = &manifests["Deployment"]["spec"]["template"]["spec"];
    let container = container(&manifests["Deployment"], "nico-rewrap");
    let dir = temp_dir("kubernetes");
    mount(dir.path(), pod, container, &objects);
    let mut variables = environment(container, &objects);
    let args = arguments(dir.path(), container, &variables);
    for (name, value) in [
        ("LISTEN", "127.0.0.1:0"),
        ("METRICS_ENDPOINT", "127.0.0.1:0"),
        ("LOG_FORMAT", "json"),
    ] {
        variables.push((format!("NICO_REWRAP__{name}"), value.to_owned()));
    }
    let server = Server::spawn(dir, &args, &variables).await;
    server.wait_ready().await;
    leaks::assert_none(&server.log_text());
    server
}

/// The call of the Job, by the real grpcurl, to `server`. The address of the server is not that of
/// the Service, so grpcurl must verify another name: the name of the Service, or the one in `more`.
///
/// The files of the command exist until the test process ends.
fn call(folder: &str, database: &Database, server: &Server, more: &[&str]) -> Command {
    let manifests = rendered(folder);
    let job = &manifests["Job"];
    let container = container(job, "call");
    let objects = cluster(database, (STANDALONE, certs::server()));
    let dir = process::lasting_dir("job");
    mount(&dir, &job["spec"]["template"]["spec"], container, &objects);
    let mut variables = environment(container, &objects);
    let target = variables.iter_mut().find(|(name, _)| name == "TARGET");
    target.unwrap().1 = "kv2".to_owned();
    let mut args = arguments(&dir, container, &variables);
    let service = &address_of_service();
    let address = args.iter().position(|one| one == service).unwrap();
    args[address].clone_from(&server.grpc);
    let of_service = ["-authority", service.rsplit_once(':').unwrap().0];
    let name = if more.is_empty() { &of_service } else { more };
    // The shell of the Job looks for grpcurl along its PATH.
    let bin = dir.join("bin");
    std::fs::create_dir(&bin).unwrap();
    let grpcurl = std::env::var_os("GRPCURL").map_or_else(
        || {
            process::run(Command::new("which").arg("grpcurl"))
                .trim()
                .into()
        },
        std::path::PathBuf::from,
    );
    std::os::unix::fs::symlink(grpcurl, bin.join("grpcurl")).unwrap();
    let words = container["command"].as_array().unwrap().iter();
    let mut words = words.map(|word| word.as_str().unwrap());
    let mut command = Command::new(words.next().unwrap());
    let others = std::env::var("PATH").unwrap();
    command.envs(variables);
    command.env("PATH", format!("{}:{others}", bin.display()));
    command.args(words).args(name).args(args);
    command
}

/// Host and port of the Service in the cluster.
fn address_of_service() -> String {
    let service = &rendered("standalone")["Service"];
    let port = &named(&service["spec"]["ports"], &json!("grpc"))["port"];
    let text = |key: &str| service["metadata"][key].as_str().unwrap();
    format!(
        "{}.{}.svc.cluster.local:{port}",
        text("name"),
        text("namespace")
    )
}

/// The run and the keys that the Job prints.
fn printed(text: &str) -> (Value, Value) {
    let documents = text.find("\n{").map_or(text, |start| &text[start..]);
    let mut documents = serde_json::Deserializer::from_str(documents).into_iter();
    let mut next = || {
        documents
            .next()
            .unwrap_or_else(|| panic!("{text}"))
            .unwrap()
    };
    (next(), next())
}

/// The report of a Job that succeeds.
fn called(folder: &str, database: &Database, server: &Server, more: &[&str]) -> Value {
    let text = process::run(&mut call(folder, database, server, more));
    let (run, keys) = printed(&text);
    assert_eq!(
        (&run["state"], &run["targetKeyId"]),
        (&json!("RUN_STATE_FINISHED"), &json!("kv2"))
    );
    assert!(keys["keys"][0]["verdict"]["state"].is_string(), "{keys}");
    run["report"].clone()
}

#[tokio::test]
async fn the_job_calls_the_deployment() {
    let database = one_under_kv1().await;
    let manifests = rendered("standalone");
    let certificate = issued(&manifests["Certificate"]);
    let server = started(&manifests, &database, (STANDALONE, &certificate)).await;
    for _ in 0..2 {
        let dry = called("call", &database, &server, &[]);
        assert_eq!(
            (&dry["rowsUpdated"], &dry["rowsFailed"]),
            (&json!("1"), &json!("0"))
        );
    }
    let applied = called("call-apply", &database, &server, &[]);
    assert_eq!(applied["rowsUpdated"], "1");
    let after = called("call", &database, &server, &[]);
    assert_eq!(after["rowsOnTarget"], "1", "{after}");
}

#[tokio::test]
async fn the_job_fails_if_a_row_fails_and_prints_the_report() {
    let database = one_under_kv1().await;
    let client = database.client().await;
    Org::under("under-a-lost-key", "kv0").insert(&client).await;
    let certificate = issued(&rendered("standalone")["Certificate"]);
    let server = started(
        &rendered("standalone"),
        &database,
        (STANDALONE, &certificate),
    )
    .await;
    let output = call("call-apply", &database, &server, &[])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let (run, _) = printed(&String::from_utf8_lossy(&output.stdout));
    let report = &run["report"];
    assert_eq!(
        (&report["rowsUpdated"], &report["rowsFailed"]),
        (&json!("1"), &json!("1"))
    );
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("rows failed"), "{said}");
}

#[tokio::test]
async fn the_job_calls_a_sidecar_by_nico_apis_name() {
    let database = one_under_kv1().await;
    let server = started(&rendered("sidecar"), &database, (SIDECAR, &of_nico_api())).await;
    let argument = "-servername=nico-api.nico-system.svc.cluster.local";
    assert!(include_str!("../docs/install/kubernetes.md").contains(&format!("`{argument}`")));
    let dry = called("call", &database, &server, &[argument]);
    assert_eq!(dry["rowsUpdated"], "1");
    let refused = call("call", &database, &server, &[]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("certificate is valid for"), "{said}");
}

#[tokio::test]
async fn a_client_in_the_container_can_look_and_apply_nothing() {
    let database = one_under_kv1().await;
    for (folder, certificate) in [("standalone", STANDALONE), ("sidecar", SIDECAR)] {
        let server = started(&rendered(folder), &database, (certificate, &of_nico_api())).await;
        let listening = server.wait_log("listening").await;
        let socket = Path::new(field(&listening, "admin_socket").unwrap().as_str().unwrap());
        let status = ask(socket, "GetStatus", json!({})).await.unwrap();
        assert_eq!(status["targetKeyId"], "kv2");
        let local = Call::at_socket(socket);
        let dry = local.reencrypt(&json!({"dryRun": true})).await.unwrap();
        assert_eq!(dry.rows_updated, 1, "{folder}");
        let error = local.reencrypt(&json!({})).await.unwrap_err();
        assert_eq!(error.reason().unwrap(), "ADMIN_SOCKET_READ_ONLY");
    }
}

#[tokio::test]
async fn probes_and_the_monitor_use_existing_endpoints() {
    let database = Database::migrated().await;
    for (folder, certificate, probes) in [
        (
            "standalone",
            STANDALONE,
            &["livenessProbe", "readinessProbe"][..],
        ),
        // The sidecar has no readiness probe, so that nico-api does not wait for it.
        ("sidecar", SIDECAR, &["livenessProbe"]),
    ] {
        let manifests = rendered(folder);
        let server = started(&manifests, &database, (certificate, certs::server())).await;
        let container = container(&manifests["Deployment"], "nico-rewrap");
        let of_container = container.as_object().unwrap().keys();
        let found: Vec<_> = of_container.filter(|key| key.ends_with("Probe")).collect();
        assert_eq!(found, probes, "{folder}");
        for probe in probes {
            let get = &container[probe]["httpGet"];
            assert_eq!(get["port"], "rewrap-http");
            assert_eq!(server.get(get["path"].as_str().unwrap()).await.0, 200);
        }
        let endpoint = &manifests["ServiceMonitor"]["spec"]["endpoints"][0];
        let path = endpoint["path"].as_str().unwrap();
        assert!(server.get(path).await.1.contains("nico_rewrap_"));
    }
}

#[tokio::test]
async fn the_migration_job_creates_the_schema() {
    let database = Database::migrated().await;
    let manifests = rendered("migrate-state");
    let job = &manifests["Job"];
    let container = container(job, "migrate-state");
    let objects = cluster(&database, (STANDALONE, certs::server()));
    let dir = temp_dir("migrate-state");
    mount(
        dir.path(),
        &job["spec"]["template"]["spec"],
        container,
        &objects,
    );
    let mut variables = environment(container, &objects);
    let sslmode = variables.iter_mut();
    let mut sslmode = sslmode.filter(|(name, _)| name == "NICO_REWRAP__DATABASE_SSLMODE");
    // The database of the tests has no TLS.
    sslmode.next().unwrap().1 = "prefer".to_owned();
    drop(sslmode);
    let args = arguments(dir.path(), container, &variables);
    for _ in 0..2 {
        process::run(
            Command::new(BINARY)
                .args(&args)
                .env_clear()
                .envs(variables.clone()),
        );
    }
    let manifests = rendered("standalone");
    let certificate = issued(&manifests["Certificate"]);
    let server = started(&manifests, &database, (STANDALONE, &certificate)).await;
    server
        .wait_log("runs and censuses are kept in the schema nico_rewrap")
        .await;
}
