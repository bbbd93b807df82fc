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
use crate::kubelet::{arguments, cluster, container, environment, mount, moved, named, rendered};
use crate::leaks;
use crate::operator::Operator;
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

/// The command of the Job, with `server` in place of the address of the Service.
///
/// The files of the command exist until the test process ends.
fn job(folder: &str, database: &Database, server: &Server, more: &[&str]) -> Command {
    let manifests = rendered(folder);
    let job = &manifests["Job"];
    let container = container(job, "call");
    assert!(
        container.get("command").is_none(),
        "the entry point of the image"
    );
    let objects = cluster(database, (STANDALONE, certs::server()));
    let dir = process::lasting_dir("job");
    mount(&dir, &job["spec"]["template"]["spec"], container, &objects);
    let mut variables = environment(container, &objects);
    let set = |(name, value): &mut (String, String)| match name.as_str() {
        "TARGET" => "kv2".clone_into(value),
        "REWRAP_ENDPOINT" => {
            assert_eq!(*value, address_of("Service nico-rewrap-instances"));
            value.clone_from(&server.grpc);
        }
        // The client verifies this name, unless an option names another one.
        "REWRAP_SERVER_NAME" => {
            let service = address_of("Service");
            assert_eq!(*value, service.rsplit_once(':').unwrap().0);
        }
        _ => *value = moved(&dir, value),
    };
    variables.iter_mut().for_each(set);
    let mut command = Command::new(BINARY);
    command.env_clear();
    command.args(arguments(&dir, container, &variables));
    command.args(more).envs(variables);
    command
}

/// Host and port of a Service in the cluster.
fn address_of(service: &str) -> String {
    let service = &rendered("standalone")[service];
    let port = &named(&service["spec"]["ports"], &json!("grpc"))["port"];
    let text = |key: &str| service["metadata"][key].as_str().unwrap();
    format!(
        "{}.{}.svc.cluster.local:{port}",
        text("name"),
        text("namespace")
    )
}

/// What a Job that succeeds prints, with `-o json`.
fn called(folder: &str, database: &Database, server: &Server, more: &[&str]) -> Value {
    let more = [&["-o", "json"], more].concat();
    let text = process::run(&mut job(folder, database, server, &more));
    serde_json::from_str(&text).unwrap()
}

/// The rows that the dry run of a check would re-wrap.
fn to_rewrap(check: &Value) -> &Value {
    assert_eq!(
        (&check["kind"], &check["ok"]),
        (&json!("Check"), &json!(true))
    );
    assert_eq!(check["dryRun"]["report"]["rowsFailed"], 0, "{check}");
    &check["dryRun"]["report"]["rowsUpdated"]
}

#[tokio::test]
async fn the_job_calls_the_deployment() {
    let database = one_under_kv1().await;
    let manifests = rendered("standalone");
    let certificate = issued(&manifests["Certificate"]);
    let server = started(&manifests, &database, (STANDALONE, &certificate)).await;
    for _ in 0..2 {
        assert_eq!(to_rewrap(&called("call", &database, &server, &[])), 1);
    }
    let rotation = called("call-apply", &database, &server, &[]);
    assert_eq!(rotation["targetKeyId"], "kv2", "{rotation}");
    assert_eq!(rotation["applies"][0]["report"]["rowsUpdated"], 1);
    let keys = rotation["keys"].as_array().unwrap();
    assert!(
        keys.iter().all(|key| key["verdict"]["state"].is_string()),
        "{rotation}"
    );
    assert_eq!(to_rewrap(&called("call", &database, &server, &[])), 0);
}

#[tokio::test]
async fn the_job_fails_with_the_code_of_the_client() {
    let database = one_under_kv1().await;
    let client = database.client().await;
    Org::under("under-a-lost-key", "kv0").insert(&client).await;
    let manifests = rendered("standalone");
    let certificate = issued(&manifests["Certificate"]);
    let server = started(&manifests, &database, (STANDALONE, &certificate)).await;
    for folder in ["call", "call-apply"] {
        let output = job(folder, &database, &server, &[]).output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{folder}");
        let text = String::from_utf8_lossy(&output.stdout);
        for expected in ["KEY_NOT_IN_SECRETS", "under-a-lost-key"] {
            assert!(text.contains(expected), "{text}");
        }
    }
    let mut without_key = job("call", &database, &server, &[]);
    without_key.env("REWRAP_KEY", "/nonexistent");
    assert_eq!(without_key.output().unwrap().status.code(), Some(78));
}

/// A server that still has the old target key has nothing to do. The Job must not succeed there.
#[tokio::test]
async fn the_job_of_another_target_key_changes_nothing() {
    let database = one_under_kv1().await;
    let manifests = rendered("standalone");
    let certificate = issued(&manifests["Certificate"]);
    let server = started(&manifests, &database, (STANDALONE, &certificate)).await;
    for (folder, code) in [("call", 3), ("call-apply", 4)] {
        let usual = job(folder, &database, &server, &[]);
        let args = usual.get_args().map(|argument| argument.to_str().unwrap());
        let args: Vec<_> = args
            .map(|argument| argument.replace("kv2", "kv9"))
            .collect();
        assert!(args.contains(&"--expect-target=kv9".to_owned()));
        let envs = usual.get_envs();
        let envs = envs.map(|(name, value)| (name.to_owned(), value.unwrap().to_owned()));
        let mut other = Command::new(BINARY);
        let output = other.env_clear().args(args).envs(envs).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{text}");
        let line = "the target key is kv2, and --expect-target is kv9";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("#check-expected-target"), "{text}");
    }
    assert_eq!(to_rewrap(&called("call", &database, &server, &[])), 1);
}

#[tokio::test]
async fn the_job_calls_a_sidecar_by_nico_apis_name() {
    let database = one_under_kv1().await;
    let server = started(&rendered("sidecar"), &database, (SIDECAR, &of_nico_api())).await;
    let argument = "--server-name=nico-api.nico-system.svc.cluster.local";
    assert!(include_str!("../docs/install/kubernetes.md").contains(&format!("`{argument}`")));
    let dry = called("call", &database, &server, &[argument]);
    assert_eq!(to_rewrap(&dry), 1);
    let refused = job("call", &database, &server, &[]).output().unwrap();
    assert_eq!(refused.status.code(), Some(6));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("is not for the name"), "{said}");
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
        // As with `kubectl exec`.
        let exec = Operator::without_options().env("REWRAP_SOCKET", socket);
        let exit = exec.call(&["status"]).await;
        assert_eq!(exit.code, 0, "{exit:?}");
        assert!(exit.stdout.contains("kv2"), "{}", exit.stdout);
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
