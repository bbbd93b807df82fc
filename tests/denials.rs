//! The texts of a denial. The log and the audit record have the rule, the value that it saw and
//! the value that it expected. The client gets only the reason.

use serde_json::{Value, json};

use crate::anchors::impostor;
use crate::callers::site;
use crate::certs::{
    self, ADMIN_ISSUER_CN, SERVICE_BASE, admin_cert, root_ca, service, service_cert,
};
use crate::grpcurl::Call;
use crate::pki::{Cert, Leaf, Strings};
use crate::server::{Server, field};

const SAN: &str = "[auth.trust].spiffe_trust_domain";
const BASE: &str = "[auth.trust].spiffe_service_base_paths and spiffe_machine_base_path";
const EXTERNAL: &str = "[auth.trust].additional_issuer_cns and [auth.cli_certs]";
const ALLOWED: &str = "[rewrap].allowed_services";
const BUNDLE: &str = "[tls].admin_root_cafile_path";

fn with_san(san: &str) -> Leaf {
    Cert::new("/").san(san).signed_by(root_ca())
}

/// The text of a field of the only log line with this message and run id.
async fn line(server: &Server, message: &str, run_id: &str) -> Value {
    loop {
        server.wait_log(message).await;
        let mut lines = server.logs_with(message);
        lines.retain(|line| field(line, "run_id").is_some_and(|id| id == run_id));
        if let Some(line) = lines.pop() {
            assert!(lines.is_empty(), "once");
            return line;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_denial_names_rule_and_names_to_the_operator_and_not_to_the_client() {
    let server = site().await.start().await;
    let other_issuer = root_ca().intermediate("/O=NICo/CN=Other CA", Strings::Utf8);
    let two_names = service_cert("a").san(&format!("URI:{SERVICE_BASE}b"));
    let two_names = two_names.signed_by(root_ca());
    let table: [(Leaf, &str, &str, &str); 8] = [
        (
            with_san("URI:spiffe://other.local/nico-system/sa/nico-api"),
            SAN,
            "other.local",
            "nico.local",
        ),
        (
            with_san("URI:spiffe://nico.local/else/sa/nico-api"),
            BASE,
            "/else/sa/nico-api",
            "/nico-system/sa/",
        ),
        (
            with_san("URI:spiffe://nico.local/nico-system/sa/"),
            "X.509-SVID",
            "/nico-system/sa/",
            "SPIFFE id",
        ),
        (two_names, "X.509-SVID", "2 URIs", "one URI"),
        (
            admin_cert().signed_by(&other_issuer),
            EXTERNAL,
            "CN=Other CA",
            ADMIN_ISSUER_CN,
        ),
        (
            admin_cert().signed_by(&impostor()),
            BUNDLE,
            "root_cafile_path",
            "admin_issuers_in_root_ca",
        ),
        (service("nico-dhcp"), ALLOWED, "nico-dhcp", "nico-api"),
        (
            certs::machine().clone(),
            ALLOWED,
            "fm100ht0123456789",
            "an external user",
        ),
    ];
    for (leaf, rule, seen, expected) in &table {
        let call = Call::new(&server, leaf).without_reflection();
        let error = call.reencrypt(&json!({"dryRun": true})).await.unwrap_err();
        let run_id = error.run_id.clone().unwrap();
        let record = line(&server, "call", &run_id).await;
        let denied = line(&server, "call denied", &run_id).await;
        for (line, name) in [(&record, "denied_by"), (&denied, "rule")] {
            let text = |name: &str| field(line, name).unwrap().as_str().unwrap();
            assert_eq!(text(name), *rule, "{line}");
            assert!(text("seen").contains(seen), "{line}");
            assert!(text("expected").contains(expected), "{line}");
        }
        for name in [*seen, "other.local", ADMIN_ISSUER_CN, "nico-system"] {
            let is_setting = name == "root_cafile_path";
            assert!(
                is_setting || !error.message.contains(name),
                "{}",
                error.message
            );
        }
    }
    let allowed = Call::new(&server, certs::admin())
        .reencrypt(&json!({"dryRun": true}))
        .await;
    let record = line(&server, "call", &allowed.unwrap().run_id.unwrap()).await;
    assert_eq!(field(&record, "denied_by"), None);
}
