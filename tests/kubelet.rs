//! Simulates a cluster for the manifests of `deploy/kubernetes`: kustomize renders them, and this
//! module does the part of the kubelet, which is files under mount paths, variables and arguments.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::certs;
use crate::database::Database;
use crate::pg::PASSWORD;
use crate::pki::Leaf;
use crate::process;
use crate::seal::key;

/// nico-api's base config, with the paths that its chart mounts.
const NICO_API_CONFIG: &str = r#"
listen = "[::]:1079"
database_url = "postgres://replaced-by-env-var"
[credentials.file]
path = "/var/run/secrets/nico/credentials/credentials.yaml"
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

/// The rendered manifests of a folder, by kind. The second one of a kind has its name, too:
/// `Service nico-rewrap-instances`.
pub(crate) fn rendered(folder: &str) -> BTreeMap<String, Value> {
    let kubectl = std::env::var_os("KUBECTL").unwrap_or_else(|| "kubectl".into());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy/kubernetes")
        .join(folder);
    let text = process::run(Command::new(kubectl).arg("kustomize").arg(&folder));
    let manifests: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut by_kind = BTreeMap::new();
    for manifest in manifests {
        let kind = text(&manifest["kind"]);
        let key = match by_kind.contains_key(&kind) {
            false => kind,
            true => format!("{kind} {}", text(&manifest["metadata"]["name"])),
        };
        assert_eq!(by_kind.insert(key, manifest), None, "{folder:?}");
    }
    by_kind
}

/// A container in the Pod template of a Deployment or Job.
pub(crate) fn container<'a>(manifest: &'a Value, name: &str) -> &'a Value {
    let containers = manifest["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap();
    containers.iter().find(|one| one["name"] == name).unwrap()
}

/// The entry with this name.
pub(crate) fn named<'a>(list: &'a Value, name: &Value) -> &'a Value {
    let list = list.as_array().unwrap();
    list.iter()
        .find(|one| one["name"] == *name)
        .unwrap_or_else(|| panic!("no {name}"))
}

/// The objects that exist in the cluster: the data of ConfigMaps and Secrets, by name.
pub(crate) type Objects = BTreeMap<String, BTreeMap<String, String>>;

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

/// The objects of a cluster. `certificate` is the name and content of the Secret with nico-rewrap's
/// certificate.
pub(crate) fn cluster(database: &Database, certificate: (&str, &Leaf)) -> Objects {
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
        (certificate.0, tls(certificate.1)),
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

/// Writes every mounted file under `root`, and adds `root` to the mount paths in its text. An
/// `emptyDir` is an empty directory.
pub(crate) fn mount(root: &Path, pod: &Value, container: &Value, objects: &Objects) {
    let mounts = container["volumeMounts"].as_array().unwrap();
    for mount in mounts {
        let volume = named(&pod["volumes"], &mount["name"]);
        let directory = root.join(mount["mountPath"].as_str().unwrap().trim_start_matches('/'));
        std::fs::create_dir_all(&directory).unwrap();
        if volume["emptyDir"].is_object() {
            continue;
        }
        assert_eq!(mount["readOnly"], true, "{mount}");
        let name = volume["configMap"]["name"].as_str();
        let name = name
            .or_else(|| volume["secret"]["secretName"].as_str())
            .unwrap();
        let files = objects
            .get(name)
            .unwrap_or_else(|| panic!("no object {name}"));
        let mode = volume["secret"]["defaultMode"].as_u64().unwrap_or(0o644);
        for (file, text) in files {
            let file = directory.join(file);
            std::fs::write(&file, moved(root, text)).unwrap();
            // In a cluster, the file belongs to root, so a client accepts that the group reads it.
            let is_root = file.metadata().unwrap().uid() == 0;
            let mode = if is_root { mode } else { mode & 0o700 };
            let mode = u32::try_from(mode).unwrap();
            std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
        }
    }
}

/// The text with `root` before its mount paths.
pub(crate) fn moved(root: &Path, text: &str) -> String {
    let to = |below: &str| format!("{}{below}", root.display());
    text.replace("/etc/", &to("/etc/"))
        .replace("/var/run/", &to("/var/run/"))
        .replace("/run/nico-rewrap/", &to("/run/nico-rewrap/"))
}

/// The container's variables, with `$(NAME)` of earlier ones replaced.
pub(crate) fn environment(container: &Value, objects: &Objects) -> Vec<(String, String)> {
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

/// The container's arguments, with `$(NAME)` replaced and `root` added to mount paths.
pub(crate) fn arguments(
    root: &Path,
    container: &Value,
    variables: &[(String, String)],
) -> Vec<String> {
    let arguments = container["args"].as_array().unwrap().iter();
    arguments
        .map(|argument| moved(root, &expanded(argument.as_str().unwrap(), variables)))
        .collect()
}
