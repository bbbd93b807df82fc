//! Checks that the manifests of `deploy/kubernetes` agree with each other and with the program:
//! ports, selectors, names and modes. No schema compares these, and a cluster would accept a
//! mismatch.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::kubelet::{container, named, rendered};

type Manifests = BTreeMap<String, Value>;

fn pods(manifest: &Value) -> &Value {
    &manifest["spec"]["template"]
}

fn labels(manifest: &Value) -> &Value {
    &pods(manifest)["metadata"]["labels"]
}

/// Whether the labels match the selector. An empty selector would match everything.
fn selects(selector: &Value, labels: &Value) -> bool {
    let selector = selector.as_object().unwrap();
    assert!(!selector.is_empty());
    selector.iter().all(|(name, value)| labels[name] == *value)
}

/// The number of a named port.
fn number(manifests: &Manifests, port: &str) -> u64 {
    let container = container(&manifests["Deployment"], "nico-rewrap");
    let port = named(&container["ports"], &json!(port));
    port["containerPort"].as_u64().unwrap()
}

#[test]
fn ports_match_the_addresses_of_the_program() {
    for folder in ["standalone", "sidecar"] {
        let manifests = rendered(folder);
        let config = manifests["ConfigMap"]["data"]["rewrap.toml"].as_str();
        let config: toml::Table = config.unwrap().parse().unwrap();
        let page = include_str!("../docs/reference/configuration.md");
        for (port, setting) in [
            ("rewrap-grpc", "listen"),
            ("rewrap-http", "metrics_endpoint"),
        ] {
            let number = number(&manifests, port);
            let set = config["rewrap"][setting].as_str().unwrap();
            assert_eq!(set, format!("[::]:{number}"), "{folder} {setting}");
            assert!(
                page.contains(&format!("| `{setting}` | `{set}` |")),
                "the default"
            );
            let of_service = manifests["Service"]["spec"]["ports"].as_array().unwrap();
            let of_service = of_service.iter().find(|one| one["targetPort"] == port);
            assert_eq!(of_service.unwrap()["port"], number);
        }
        let endpoint = &manifests["ServiceMonitor"]["spec"]["endpoints"][0];
        let scraped = named(&manifests["Service"]["spec"]["ports"], &endpoint["port"]);
        assert_eq!(scraped["targetPort"], "rewrap-http");
    }
}

/// The client asks every address of a name. The name of a Service with a cluster IP has one address.
#[test]
fn the_job_asks_every_instance() {
    for folder in ["standalone", "sidecar"] {
        let manifests = rendered(folder);
        let instances = &manifests["Service nico-rewrap-instances"];
        assert_eq!(instances["spec"]["clusterIP"], "None", "{folder}");
        let service = &manifests["Service"]["spec"];
        assert_eq!(instances["spec"]["selector"], service["selector"]);
        let ports = instances["spec"]["ports"].as_array().unwrap();
        // A headless Service translates no port.
        assert_eq!(ports[0]["port"], number(&manifests, "rewrap-grpc"));
        let monitor = &manifests["ServiceMonitor"]["spec"]["selector"]["matchLabels"];
        let is_scraped = selects(monitor, &instances["metadata"]["labels"]);
        assert!(!is_scraped, "each Pod twice");
    }
    let job = rendered("call")["Job"].clone();
    let endpoint = named(&container(&job, "call")["env"], &json!("REWRAP_ENDPOINT"));
    let host = endpoint["value"].as_str().unwrap();
    assert!(host.starts_with("nico-rewrap-instances."), "{host}");
}

#[test]
fn selectors_match_the_intended_objects() {
    for folder in ["standalone", "sidecar"] {
        let manifests = rendered(folder);
        let deployment = &manifests["Deployment"];
        let service = &manifests["Service"];
        let monitor = &manifests["ServiceMonitor"]["spec"]["selector"]["matchLabels"];
        assert!(selects(
            &deployment["spec"]["selector"]["matchLabels"],
            labels(deployment)
        ));
        assert!(
            selects(&service["spec"]["selector"], labels(deployment)),
            "{folder}"
        );
        assert!(selects(monitor, &service["metadata"]["labels"]), "{folder}");
        for folder in ["call", "migrate-state"] {
            let job = labels(&rendered(folder)["Job"]).clone();
            let is_server = selects(&service["spec"]["selector"], &job);
            assert!(!is_server, "the Job {folder} is no server");
        }
    }
    let standalone = rendered("standalone");
    let pods_of_rewrap = labels(&standalone["Deployment"]);
    let of = |kind: &str, selector: &str| &standalone[kind]["spec"][selector]["matchLabels"];
    assert!(selects(
        of("PodDisruptionBudget", "selector"),
        pods_of_rewrap
    ));
    assert!(selects(of("NetworkPolicy", "podSelector"), pods_of_rewrap));
    let spread = &pods(&standalone["Deployment"])["spec"]["topologySpreadConstraints"][0];
    assert!(selects(
        &spread["labelSelector"]["matchLabels"],
        pods_of_rewrap
    ));
    // The patch must not become nico-api's policy, budget or name.
    let of_nico_api = labels(&rendered("sidecar")["Deployment"]).clone();
    assert!(!selects(
        of("PodDisruptionBudget", "selector"),
        &of_nico_api
    ));
}

#[test]
fn the_network_policy_allows_only_the_necessary_traffic() {
    let standalone = rendered("standalone");
    let policy = &standalone["NetworkPolicy"]["spec"];
    let ingress = policy["ingress"].as_array().unwrap();
    let on = |port: u64, labels: &Value| {
        ingress.iter().any(|rule| {
            let from = rule["from"].as_array().unwrap();
            rule["ports"] == json!([{"protocol": "TCP", "port": port}])
                && from.iter().any(|peer| {
                    let selector = &peer["podSelector"]["matchLabels"];
                    selector.is_object() && selects(selector, labels)
                })
        })
    };
    let (grpc, http) = (
        number(&standalone, "rewrap-grpc"),
        number(&standalone, "rewrap-http"),
    );
    let job = rendered("call")["Job"].clone();
    let nico_api = rendered("sidecar")["Deployment"].clone();
    for caller in [labels(&job), labels(&nico_api)] {
        assert!(on(grpc, caller) && !on(http, caller), "{caller}");
    }
    let own = labels(&standalone["Deployment"]);
    assert!(!on(grpc, own), "one replica has nothing to ask of another");
    assert!(!on(grpc, &json!({"app.kubernetes.io/name": "other"})));
    let scraped = json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]);
    assert!(
        ingress
            .iter()
            .any(|rule| rule["from"] == scraped && rule["ports"][0]["port"] == http)
    );
    assert_eq!(ingress.len(), 2);

    assert_eq!(policy["policyTypes"], json!(["Ingress", "Egress"]));
    let dns = json!([{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]);
    let postgres = json!([{"protocol": "TCP", "port": 5432}]);
    assert_eq!(
        policy["egress"],
        json!([{"ports": dns}, {"ports": postgres}])
    );
}

#[test]
fn the_mounted_certificate_has_the_name_of_the_service() {
    let standalone = rendered("standalone");
    let certificate = &standalone["Certificate"]["spec"];
    let volumes = &pods(&standalone["Deployment"])["spec"]["volumes"];
    let mounted = &named(volumes, &json!("spiffe"))["secret"]["secretName"];
    assert_eq!(certificate["secretName"], *mounted);
    let service = &standalone["Service"]["metadata"];
    let (name, namespace) = (
        service["name"].as_str().unwrap(),
        service["namespace"].as_str().unwrap(),
    );
    let host = format!("{name}.{namespace}.svc.cluster.local");
    assert!(
        certificate["dnsNames"]
            .as_array()
            .unwrap()
            .contains(&json!(host))
    );
    assert_eq!(certificate["commonName"], host);
    let account = standalone["ServiceAccount"]["metadata"]["name"]
        .as_str()
        .unwrap();
    let id = format!("spiffe://nico.local/{namespace}/sa/{account}");
    assert_eq!(certificate["uris"], json!([id]));
}

/// A file of a Secret belongs to root, and to the Pod's `fsGroup` if there is one.
#[test]
fn mounted_files_are_readable_for_the_non_root_user() {
    for (folder, kind, name) in [
        ("standalone", "Deployment", "nico-rewrap"),
        ("sidecar", "Deployment", "nico-rewrap"),
        ("call", "Job", "call"),
        ("migrate-state", "Job", "migrate-state"),
    ] {
        let manifests = rendered(folder);
        let pod = &pods(&manifests[kind])["spec"];
        let container = container(&manifests[kind], name);
        let own = |what: &str| {
            let of_container = &container["securityContext"][what];
            if of_container.is_null() {
                &pod["securityContext"][what]
            } else {
                of_container
            }
        };
        assert_eq!(
            (own("runAsUser"), own("runAsGroup")),
            (&json!(65532), &json!(65532))
        );
        let in_group = pod["securityContext"]["fsGroup"] == 65532;
        for mount in container["volumeMounts"].as_array().unwrap() {
            let volume = named(&pod["volumes"], &mount["name"]);
            // Writable for everybody in the container.
            if volume["emptyDir"].is_object() {
                continue;
            }
            let source = if volume["secret"].is_object() {
                &volume["secret"]
            } else {
                &volume["configMap"]
            };
            let mode = source["defaultMode"].as_u64().unwrap_or(0o644);
            assert!(
                mode & 0o004 != 0 || (in_group && mode & 0o040 != 0),
                "{folder} {volume}"
            );
            // In our own Pod, other users must not read a Secret.
            let closed = folder == "sidecar" || volume["secret"].is_null() || mode & 0o007 == 0;
            assert!(closed, "{folder} {volume}");
        }
    }
    let dockerfile = include_str!("../Dockerfile");
    assert!(dockerfile.contains("\nUSER 65532:65532\n"));
}

/// The path of the admin socket and whether it may start an apply, of a settings file.
fn socket_settings(text: &str) -> (String, bool) {
    let settings: toml::Table = text.parse().unwrap();
    let settings = &settings["rewrap"];
    let may_apply = settings.get("admin_socket_may_apply");
    let may_apply = may_apply.is_some_and(|value| value.as_bool().unwrap());
    let path = settings["admin_socket"].as_str().unwrap();
    (path.to_owned(), may_apply)
}

#[test]
fn the_admin_socket_has_a_directory_of_its_own_and_is_read_only_in_a_cluster() {
    let expected = "/run/nico-rewrap/admin.sock".to_owned();
    for folder in ["standalone", "sidecar"] {
        let manifests = rendered(folder);
        let settings = manifests["ConfigMap"]["data"]["rewrap.toml"].as_str();
        assert_eq!(
            socket_settings(settings.unwrap()),
            (expected.clone(), false)
        );
        let pod = &pods(&manifests["Deployment"])["spec"];
        let writable = |mount: &&Value| mount["readOnly"] != true;
        for one in pod["containers"].as_array().unwrap() {
            let mounts = one["volumeMounts"].as_array().map(Vec::as_slice);
            let mounts: Vec<_> = mounts.unwrap_or_default().iter().filter(writable).collect();
            if one["name"] != "nico-rewrap" {
                assert_eq!(mounts, Vec::<&Value>::new(), "{folder}: {}", one["name"]);
                continue;
            }
            assert_eq!(mounts.len(), 1, "{folder}: {mounts:?}");
            assert_eq!(mounts[0]["mountPath"], "/run/nico-rewrap");
            let volume = named(&pod["volumes"], &mounts[0]["name"]);
            assert_eq!(
                volume["emptyDir"],
                json!({"medium": "Memory", "sizeLimit": "1Mi"})
            );
            assert_eq!(one["securityContext"]["readOnlyRootFilesystem"], true);
        }
    }
    let compose = include_str!("../deploy/compose/rewrap.toml");
    assert_eq!(socket_settings(compose), (expected.clone(), false));
    let compose = include_str!("../deploy/compose/docker-compose.yml");
    assert!(compose.contains(r#"tmpfs: ["/run/nico-rewrap:uid=65532,gid=65532,mode=0700"]"#));
    // On a machine, root may apply.
    let debian = include_str!("../deploy/debian/rewrap.toml");
    assert_eq!(socket_settings(debian), (expected, true));
    let unit = include_str!("../deploy/systemd/nico-rewrap.service");
    assert!(unit.contains("\nRuntimeDirectory=nico-rewrap\nRuntimeDirectoryMode=0700\n"));
}

#[test]
fn the_image_has_the_tag_of_this_version() {
    let image = format!("nico-rewrap:{}", env!("CARGO_PKG_VERSION"));
    for (folder, kind, name) in [
        ("standalone", "Deployment", "nico-rewrap"),
        ("sidecar", "Deployment", "nico-rewrap"),
        ("migrate-state", "Job", "migrate-state"),
        ("call", "Job", "call"),
        ("call-apply", "Job", "call"),
    ] {
        let manifests = rendered(folder);
        assert_eq!(container(&manifests[kind], name)["image"], image);
    }
    assert!(
        include_str!("../docs/install/kubernetes.md").contains(&format!("| image `{image}` |"))
    );
}

#[test]
fn the_grace_period_of_a_pod_is_longer_than_a_shutdown() {
    // [rewrap].shutdown_grace, and the time for the last answers.
    let needed = 15 + 5;
    let page = include_str!("../docs/reference/configuration.md");
    assert!(page.contains("| `shutdown_grace` | `15s` |"));
    for folder in ["standalone", "sidecar"] {
        let pod = pods(&rendered(folder)["Deployment"])["spec"].clone();
        let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap_or(30);
        assert!(grace > needed, "{folder}");
    }
    let compose = include_str!("../deploy/compose/docker-compose.yml");
    assert!(
        compose.contains("stop_grace_period: 30s"),
        "Docker's own is 10 s"
    );
    let unit = include_str!("../deploy/systemd/nico-rewrap.service");
    assert!(unit.contains("\nTimeoutStopSec=30s\n"));
}

/// Before the clock is set, no certificate is valid.
#[test]
fn the_unit_starts_after_the_clock_is_set() {
    let unit = include_str!("../deploy/systemd/nico-rewrap.service");
    let mut after = unit
        .lines()
        .filter_map(|line| line.strip_prefix("After="))
        .flat_map(str::split_whitespace);
    assert!(after.any(|name| name == "time-sync.target"));
}

/// By default, `kubectl logs` and `exec` use the first container, which is the one of kustomize's
/// patch.
#[test]
fn nico_api_stays_the_default_container() {
    let sidecar = rendered("sidecar");
    let annotations = &pods(&sidecar["Deployment"])["metadata"]["annotations"];
    assert_eq!(
        annotations["kubectl.kubernetes.io/default-container"],
        "nico-api"
    );
}
