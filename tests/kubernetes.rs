//! The manifests of `deploy/kubernetes`, as kustomize renders them: what they mount and set is what the program reads, and
//! their Job makes the call. The kubelet's part (files under the mount paths, variables, probes) is done by hand, since
//! there is no cluster; `scripts/check_deploy.sh` checks the manifests against Kubernetes' schemas.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::certs;
use crate::database::Database;
use crate::leaks;
use crate::pg::PASSWORD;
use crate::pki::Leaf;
use crate::process::{self, temp_dir};
use crate::seal::key;
use crate::seed::Org;
use crate::server::Server;

/// nico-api's base config, with the paths that its chart mounts.
const NICO_API_CONFIG: &str = r#"
listen = "[::]:1079"
database_url = "postgres://replaced-by-env-var"
[machine_identity]
enabled = true
current_encryption_key_id = "kv1"
algorithm = "ES256"
[tls]
identity_pemfile_path = "/var/run/secrets/spiffe.io/tls.crt"
identity_keyfile_path = "/var/run/secrets/spiffe.io/tls.key"
root_cafile_path = "/var/run/secrets/spiffe.io/ca.crt"
admin_root_cafile_path = "/etc/forge/carbide-api/site/admin_root_cert_pem"
[auth.trust]
spiffe_trust_domain = "nico.local"
spiffe_service_base_paths = ["/nico-system/sa/", "/default/sa/"]
spiffe_machine_base_path = "/nico-system/machine/"
additional_issuer_cns = []
"#;

/// The manifests of a folder, by kind.
fn rendered(folder: &str) -> BTreeMap<String, Value> {
    let kubectl = std::env::var_os("KUBECTL").unwrap_or_else(|| "kubectl".into());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy/kubernetes")
        .join(folder);
    let text = process::run(Command::new(kubectl).arg("kustomize").arg(folder));
    let manifests: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    let by_kind = |manifest: Value| (manifest["kind"].as_str().unwrap().to_owned(), manifest);
    manifests.into_iter().map(by_kind).collect()
}

fn container<'a>(manifest: &'a Value, name: &str) -> &'a Value {
    let containers = manifest["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap();
    containers.iter().find(|one| one["name"] == name).unwrap()
}

fn named<'a>(list: &'a Value, name: &Value) -> &'a Value {
    let list = list.as_array().unwrap();
    list.iter()
        .find(|one| one["name"] == *name)
        .unwrap_or_else(|| panic!("no {name}"))
}

/// What the cluster has before: the data of ConfigMaps and Secrets, by name.
type Objects = BTreeMap<String, BTreeMap<String, String>>;

fn data(items: &[(&str, String)]) -> BTreeMap<String, String> {
    items
        .iter()
        .map(|(key, text)| ((*key).to_owned(), text.clone()))
        .collect()
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap()
}

fn tls(leaf: &Leaf) -> BTreeMap<String, String> {
    data(&[
        ("tls.crt", read(&leaf.cert_chain)),
        ("tls.key", read(&leaf.key)),
        ("ca.crt", read(&certs::root_ca().cert)),
    ])
}

fn cluster(database: &Database, certificate: &str) -> Objects {
    let keys = json!({"kv1": BASE64_STANDARD.encode(key("kv1")), "kv2": BASE64_STANDARD.encode(key("kv2"))});
    let secrets = json!({"machine_identity": {"encryption_keys": keys}});
    let url: tokio_postgres::Config = database.url().parse().unwrap();
    let tokio_postgres::config::Host::Tcp(host) = &url.get_hosts()[0] else {
        panic!("the database is at a host")
    };
    let site = format!(
        "[machine_identity]\ncurrent_encryption_key_id = \"kv2\"\n[auth.trust]\nadditional_issuer_cns = [\"{}\"]\n",
        certs::ADMIN_ISSUER_CN
    );
    let objects = [
        (
            "nico-api-config-files",
            data(&[("nico-api-config.toml", NICO_API_CONFIG.to_owned())]),
        ),
        (
            "nico-api-site-config-files",
            data(&[
                ("nico-api-site-config.toml", site),
                ("admin_root_cert_pem", read(&certs::admin_root().cert)),
            ]),
        ),
        (certificate, tls(certs::server())),
        ("nico-rewrap-admin", tls(certs::admin())),
        (
            "nico-credentials",
            data(&[("credentials.yaml", secrets.to_string())]),
        ),
        (
            "nico-system.nico.nico-pg-cluster.credentials",
            data(&[
                ("username", url.get_user().unwrap().to_owned()),
                ("password", PASSWORD.to_owned()),
            ]),
        ),
        (
            "nico-system-nico-database-config",
            data(&[
                ("DB_HOST", host.clone()),
                ("DB_PORT", url.get_ports()[0].to_string()),
                ("DB_NAME", database.name().to_owned()),
            ]),
        ),
    ];
    objects
        .into_iter()
        .map(|(name, data)| (name.to_owned(), data))
        .collect()
}

/// Every mounted file under `root`, with the mount paths in its text moved there, too.
fn mount(root: &Path, pod: &Value, container: &Value, objects: &Objects) {
    let mounts = container["volumeMounts"].as_array().unwrap();
    for mount in mounts {
        assert_eq!(mount["readOnly"], true, "{mount}");
        let volume = named(&pod["volumes"], &mount["name"]);
        let name = volume["configMap"]["name"].as_str();
        let name = name
            .or_else(|| volume["secret"]["secretName"].as_str())
            .unwrap();
        let files = objects
            .get(name)
            .unwrap_or_else(|| panic!("no object {name}"));
        let directory = root.join(mount["mountPath"].as_str().unwrap().trim_start_matches('/'));
        std::fs::create_dir_all(&directory).unwrap();
        for (file, text) in files {
            std::fs::write(directory.join(file), moved(root, text)).unwrap();
        }
    }
}

fn moved(root: &Path, text: &str) -> String {
    let to = |below: &str| format!("{}{below}", root.display());
    text.replace("/etc/", &to("/etc/"))
        .replace("/var/run/", &to("/var/run/"))
}

/// The container's variables, `$(NAME)` of earlier ones put in.
fn environment(container: &Value, objects: &Objects) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    for variable in container["env"].as_array().unwrap() {
        let value = match &variable["value"] {
            Value::String(value) => expanded(value, &variables),
            _ => {
                let from = &variable["valueFrom"];
                let from = [&from["secretKeyRef"], &from["configMapKeyRef"]];
                let from = from.into_iter().find(|one| one.is_object()).unwrap();
                objects[from["name"].as_str().unwrap()][from["key"].as_str().unwrap()].clone()
            }
        };
        variables.push((variable["name"].as_str().unwrap().to_owned(), value));
    }
    variables
}

fn expanded(text: &str, variables: &[(String, String)]) -> String {
    let put_in =
        |text: String, (name, value): &(String, String)| text.replace(&format!("$({name})"), value);
    variables.iter().fold(text.to_owned(), put_in)
}

fn arguments(root: &Path, container: &Value, variables: &[(String, String)]) -> Vec<String> {
    let arguments = container["args"].as_array().unwrap().iter();
    arguments
        .map(|argument| moved(root, &expanded(argument.as_str().unwrap(), variables)))
        .collect()
}

/// The program as a container of these manifests runs it, but for what a test has to have otherwise.
async fn started(
    manifests: &BTreeMap<String, Value>,
    database: &Database,
    certificate: &str,
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
        // The database of the tests has no TLS.
        ("DATABASE_SSLMODE", "prefer"),
    ] {
        variables.push((format!("NICO_REWRAP__{name}"), value.to_owned()));
    }
    let server = Server::spawn(dir, &args, &variables).await;
    server.wait_ready().await;
    leaks::assert_none(&server.log_text());
    server
}

/// The report of the Job in this folder, made by the real grpcurl at `server`.
fn called(folder: &str, database: &Database, server: &Server) -> Value {
    let manifests = rendered(folder);
    let job = &manifests["Job"];
    let container = container(job, "call");
    let objects = cluster(database, "nico-rewrap-certificate");
    let dir = temp_dir("job");
    mount(
        dir.path(),
        &job["spec"]["template"]["spec"],
        container,
        &objects,
    );
    let variables = environment(container, &objects);
    let mut args = arguments(dir.path(), container, &variables);
    let service = "nico-rewrap.nico-system.svc.cluster.local:1179";
    let address = args.iter().position(|one| one == service).unwrap();
    args[address] = server.grpc.clone();
    let grpcurl = std::env::var_os("GRPCURL").unwrap_or_else(|| "grpcurl".into());
    serde_json::from_str(&process::run(Command::new(grpcurl).args(args))).unwrap()
}

#[tokio::test]
async fn what_the_manifests_mount_is_what_the_program_reads() {
    let database = Database::migrated().await;
    Org::under("acme", "kv1")
        .insert(&database.client().await)
        .await;
    let sidecar = started(&rendered("sidecar"), &database, "nico-api-certificate").await;
    let dry = called("call", &database, &sidecar);
    assert_eq!(
        (&dry["rowsUpdated"], &dry["rowsFailed"]),
        (&json!(1), &json!(0))
    );
    assert_eq!(
        dry["currentEncryptionKeyId"], "kv2",
        "the site's file wins over the base file"
    );

    let standalone = started(
        &rendered("standalone"),
        &database,
        "nico-rewrap-certificate",
    )
    .await;
    let again = called("call", &database, &standalone);
    assert_eq!(
        again["rowsUpdated"], 1,
        "the first one was a dry run: {again}"
    );
    assert_eq!(
        called("call-apply", &database, &standalone)["rowsUpdated"],
        1
    );
    let after = called("call", &database, &standalone);
    assert_eq!(after["rowsSkippedAllOnTarget"], 1, "{after}");
}

#[tokio::test]
async fn ports_and_probes_are_those_of_the_program() {
    let database = Database::migrated().await;
    for (folder, certificate) in [
        ("standalone", "nico-rewrap-certificate"),
        ("sidecar", "nico-api-certificate"),
    ] {
        let manifests = rendered(folder);
        let container = container(&manifests["Deployment"], "nico-rewrap");
        let config = manifests["ConfigMap"]["data"]["rewrap.toml"]
            .as_str()
            .unwrap();
        let config: toml::Table = config.parse().unwrap();
        let set = |name: &str| {
            config["rewrap"][name]
                .as_str()
                .unwrap()
                .rsplit(':')
                .next()
                .unwrap()
                .parse::<u16>()
        };
        let readme = include_str!("../README.md");
        let server = started(&manifests, &database, certificate).await;
        for (port, setting) in [
            ("rewrap-grpc", "listen"),
            ("rewrap-http", "metrics_endpoint"),
        ] {
            let number = named(&container["ports"], &json!(port))["containerPort"]
                .as_u64()
                .unwrap();
            assert_eq!(
                u64::from(set(setting).unwrap()),
                number,
                "{folder} {setting}"
            );
            assert!(
                readme.contains(&format!("| `{setting}` | `[::]:{number}` |")),
                "the default"
            );
            let of_service = manifests["Service"]["spec"]["ports"].as_array().unwrap();
            let of_service = of_service
                .iter()
                .find(|one| one["targetPort"] == port)
                .unwrap();
            assert_eq!(of_service["port"], number);
        }
        let endpoint = &manifests["ServiceMonitor"]["spec"]["endpoints"][0];
        let scraped = named(&manifests["Service"]["spec"]["ports"], &endpoint["port"]);
        assert_eq!(scraped["targetPort"], "rewrap-http");
        for probe in [
            &container["livenessProbe"],
            &container["readinessProbe"],
            &json!({"httpGet": endpoint}),
        ] {
            // A sidecar has no readiness probe, on purpose.
            let Some(path) = probe["httpGet"]["path"].as_str() else {
                assert_eq!(folder, "sidecar");
                continue;
            };
            assert!(probe["httpGet"]["port"] == "rewrap-http" || path == "/metrics");
            assert_eq!(server.get(path).await.0, 200, "{path}");
        }
        // The Service and the monitor find the Pods, and the monitor the Service.
        let labels = &manifests["Deployment"]["spec"]["template"]["metadata"]["labels"];
        for (label, value) in manifests["Service"]["spec"]["selector"]
            .as_object()
            .unwrap()
        {
            assert_eq!(labels[label], *value, "{folder} {label}");
        }
        let service = &manifests["Service"]["metadata"]["labels"];
        let monitor = &manifests["ServiceMonitor"]["spec"]["selector"]["matchLabels"];
        for (label, value) in monitor.as_object().unwrap() {
            assert_eq!(service[label], *value, "{folder} {label}");
        }
    }
}
