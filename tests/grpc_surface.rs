//! The parts of every answer: run id, error details and audit record. Also the services beside the
//! re-wrap method.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::certs::{self, ADMIN_ISSUER_CN, admin_cert, admin_root, root_ca, service};
use crate::database::Database;
use crate::grpcurl::{Call, GrpcError, Report};
use crate::pki::{Cert, Leaf, Strings};
use crate::process::{lasting_dir, run};
use crate::seed::{Org, insert, snapshot};
use crate::server::{Server, field};
use crate::site::Site;

const HEALTH: &str = "grpc.health.v1.Health/Check";

/// A database with an organization to re-wrap, one on target, and one whose row fails.
async fn database() -> Database {
    let database = Database::migrated().await;
    let orgs = [
        Org::under("acme", "kv1"),
        Org::under("done", "kv2"),
        Org::under("torn", "kv1").text(1, "no envelope"),
    ];
    insert(&database.client().await, &orgs).await;
    database
}

/// A certificate that verifies but gives no identity.
fn nobody() -> Leaf {
    admin_cert().signed_by(root_ca())
}

/// The only audit record of a run. The server writes it before the answer, but the test may read it
/// a moment later.
async fn audit(server: &Server, run_id: &str) -> Value {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let mut records = server.logs_with("call");
        records.retain(|record| field(record, "run_id").is_some_and(|id| id == run_id));
        if let [record] = &records[..] {
            assert_eq!(record["target"], "audit");
            return record.clone();
        }
        assert!(records.is_empty(), "{records:?}");
        assert!(Instant::now() < deadline, "no record of {run_id}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn run_id(answer: &Result<Report, GrpcError>) -> &str {
    let run_id = match answer {
        Ok(report) => &report.run_id,
        Err(error) => &error.run_id,
    };
    run_id
        .as_deref()
        .unwrap_or_else(|| panic!("no run id: {answer:?}"))
}

/// The serial number of a chain's leaf as `openssl` prints it: hexadecimal digits.
fn serial(leaf: &Leaf) -> String {
    let mut openssl = Command::new("openssl");
    openssl.args(["x509", "-noout", "-serial", "-in"]);
    let serial = run(openssl.arg(&leaf.cert_chain));
    serial.trim().strip_prefix("serial=").unwrap().to_owned()
}

#[tokio::test]
async fn every_call_leaves_one_audit_record_under_the_run_id_of_its_answer() {
    let server = Site::new(&database().await).start().await;
    let (admin, dhcp, nobody) = (certs::admin(), service("nico-dhcp"), nobody());
    let acme_issuer = format!("O=Acme, CN={ADMIN_ISSUER_CN}");
    let site_issuer = "O=NICo, CN=site-root";
    let alice = ("external", json!("alice"), acme_issuer.as_str());
    let the_dhcp = ("service", json!("nico-dhcp"), site_issuer);
    let unknown = ("none", Value::Null, site_issuer);
    let dry_run = json!({"dryRun": true});
    let one = json!({"organizationId": " acme ", "dryRun": true});
    let calls = [
        (admin, &dry_run, "OK", &alice, "site"),
        (admin, &json!({}), "OK", &alice, "site"),
        (admin, &one, "OK", &alice, "organization acme"),
        (
            admin,
            &json!({"organizationId": "x"}),
            "UNKNOWN_ORGANIZATION",
            &alice,
            "organization x",
        ),
        (
            admin,
            &json!({"organizationId": "", "dryRun": true}),
            "BLANK_ORGANIZATION_ID",
            &alice,
            "organization (invalid)",
        ),
        (&dhcp, &one, "NOT_ALLOWED", &the_dhcp, "organization acme"),
        (&dhcp, &json!({}), "NOT_ALLOWED", &the_dhcp, "site"),
        (&nobody, &dry_run, "NO_IDENTITY", &unknown, "site"),
    ];
    let mut run_ids = Vec::new();
    for (leaf, request, outcome, (kind, name, issuer), scope) in calls {
        let call = Call::new(&server, leaf).without_reflection();
        let answer = call.reencrypt(request).await;
        let record = audit(&server, run_id(&answer)).await;
        run_ids.push(run_id(&answer).to_owned());

        let text = |name: &str| field(&record, name).cloned().unwrap_or_default();
        assert_eq!(text("outcome"), outcome);
        assert_eq!(
            (text("identity_kind"), text("identity")),
            ((*kind).into(), name.clone()),
            "{record}"
        );
        assert_eq!(text("certificate_issuer"), *issuer);
        let recorded = text("certificate_serial")
            .as_str()
            .unwrap()
            .replace(':', "");
        assert_eq!(recorded.to_uppercase(), serial(leaf));
        let peer = text("peer");
        assert!(peer.as_str().unwrap().starts_with("127.0.0.1:"), "{record}");
        assert_eq!(text("scope"), scope, "{record}");
        let is_dry = request["dryRun"].as_bool().unwrap_or_default();
        assert_eq!(text("dry_run"), is_dry, "{record}");
        assert!(text("duration_ms").is_u64() && text("timestamp").is_string());

        let report = match &answer {
            Ok(report) => report.clone(),
            Err(error) => {
                assert_eq!(text("error"), error.message.as_str());
                Report::default()
            }
        };
        let counters = [
            ("rows_examined", report.rows_examined),
            ("rows_updated", report.rows_updated),
            (
                "rows_skipped_all_on_target",
                report.rows_skipped_all_on_target,
            ),
            ("rows_failed", report.rows_failed),
            ("fields_reencrypted", report.fields_reencrypted),
            ("fields_skipped_on_target", report.fields_skipped_on_target),
        ];
        for (name, count) in counters {
            assert_eq!(text(name), count, "{name}: {record}");
        }
    }
    // No line of these calls is without its run id.
    let logs = server.logs();
    let lines = logs
        .iter()
        .skip_while(|line| line["message"] != "database reached");
    for line in lines.skip(1) {
        let run_id = field(line, "run_id").and_then(Value::as_str);
        assert!(run_ids.iter().any(|id| Some(&**id) == run_id), "{line}");
    }
    let counts = ["run started", "row failed", "call"].map(|text| server.logs_with(text).len());
    assert_eq!(counts, [4, 2, 8]);
    run_ids.sort();
    run_ids.dedup();
    assert_eq!(run_ids.len(), 8, "a run id of its own for every call");
}

#[tokio::test]
async fn no_text_of_a_certificate_can_forge_a_line() {
    let odd =
        "a\\\"b\" outcome=\"FORGED\"\n{\"message\":\"forged\"}\r\u{2028}ts=forged\u{85}\u{2029}";
    let quoted = "mal\"lory\" outcome=FORGED level=error '\\\\";
    let separators = "mallory\u{2028}ts=forged\u{2029}ts=forged\u{202e}";
    let leaf = |text: &str| {
        let issuer = format!("/O={text}/CN={ADMIN_ISSUER_CN}");
        let issuer = admin_root().intermediate(&issuer, Strings::Utf8);
        let cert = Cert::new(&format!("/O={text}/OU={text}/CN={text}"));
        cert.strings(Strings::Utf8).signed_by(&issuer)
    };
    let leaves = [leaf(odd), leaf(quoted), leaf(separators)];
    let names = [
        json!(""),
        json!("mal\"lory\" outcome=FORGED level=error '\\"),
        json!(""),
    ];
    for format in ["\"json\"", "\"logfmt\""] {
        let site = Site::new(&database().await).set("rewrap.log_format", format);
        let server = site.start().await;
        for (leaf, name) in leaves.iter().zip(&names) {
            let call = Call::new(&server, leaf).without_reflection();
            let answer = call.reencrypt(&json!({"dryRun": true})).await;
            let record = audit(&server, run_id(&answer)).await;
            assert_eq!(record["outcome"], "OK");
            // In logfmt the value is as it was written, escapes included.
            let written = name.as_str().unwrap();
            let escaped = written.escape_debug().to_string();
            for field in ["identity", "identity_organization", "identity_group"] {
                // An absent text has no field, except the name.
                let recorded = record[field].as_str().unwrap_or_default();
                assert!(recorded == written || recorded == escaped, "{record}");
            }
        }
        for line in server.logs() {
            // Every other line of the log is in its format, too.
            assert!(line.is_object(), "{line}");
            assert_ne!(line["message"], "forged");
        }
        let breaks = ['\u{85}', '\u{2028}', '\u{2029}', '\u{202e}'];
        assert!(!server.log_text().contains(breaks));
    }
}

#[tokio::test]
async fn an_issuer_reads_unambiguously_in_the_audit_record() {
    let server = Site::new(&database().await).start().await;
    let leaf =
        |subject: &str| admin_cert().signed_by(&admin_root().intermediate(subject, Strings::Utf8));
    let real = leaf(&format!("/O=Acme/CN=X/CN={ADMIN_ISSUER_CN}"));
    let pretended = leaf(&format!("/O=Acme/CN=X, CN={ADMIN_ISSUER_CN}"));
    let mut issuers = Vec::new();
    for leaf in [real, pretended] {
        let call = Call::new(&server, &leaf).without_reflection();
        let answer = call.reencrypt(&json!({"dryRun": true})).await;
        let record = audit(&server, run_id(&answer)).await;
        issuers.push(record["certificate_issuer"].as_str().unwrap().to_owned());
    }
    assert_eq!(issuers[0], format!("O=Acme, CN=X, CN={ADMIN_ISSUER_CN}"));
    assert_eq!(issuers[1], format!("O=Acme, CN=X\\, CN={ADMIN_ISSUER_CN}"));
}

#[tokio::test]
async fn every_error_carries_its_reason_and_domain() {
    let server = Site::new(&database().await).start().await;
    let (admin, dhcp, nobody) = (certs::admin(), service("nico-dhcp"), nobody());
    let id = |id: &str| json!({"organizationId": id});
    let expect = "x-expect-target-key-id: kv1";
    let table = [
        (Call::new(&server, &nobody), json!({}), "NO_IDENTITY"),
        (Call::new(&server, &dhcp), json!({}), "NOT_ALLOWED"),
        (Call::new(&server, admin), id(" "), "BLANK_ORGANIZATION_ID"),
        (
            Call::new(&server, admin),
            id("a b"),
            "INVALID_ORGANIZATION_ID",
        ),
        (Call::new(&server, admin), id("x"), "UNKNOWN_ORGANIZATION"),
        (
            Call::new(&server, admin).header(expect),
            json!({}),
            "UNEXPECTED_TARGET_KEY",
        ),
    ];
    for (call, request, reason) in table {
        // With reflection, so that grpcurl prints the details in readable form, as for an operator.
        let error = call.reencrypt(&request).await.unwrap_err();
        assert!(error.details[0]["reason"].is_string(), "{error:?}");
        let info = error.error_info().unwrap();
        assert_eq!((&*info.reason, &*info.domain), (reason, "nico-rewrap"));
        let section = format!("docs/troubleshooting.md#{}", reason.to_lowercase());
        assert_eq!(error.details[1]["links"][0]["url"], section);
        assert!(error.run_id.is_some(), "{error:?}");
    }
}

#[tokio::test]
async fn a_caller_that_expects_another_target_changes_nothing() {
    let database = database().await;
    let client = database.client().await;
    let server = Site::new(&database).start().await;
    let before = snapshot(&client).await;
    let apply = async |expected: &[&str]| {
        let call = Call::new(&server, certs::admin()).without_reflection();
        let header = |call: Call, id: &&str| call.header(&format!("x-expect-target-key-id: {id}"));
        expected
            .iter()
            .fold(call, header)
            .reencrypt(&json!({}))
            .await
    };
    for expected in [
        &["kv1"][..],
        &["KV2"],
        &["kv"],
        &[""],
        &["kv2,kv2"],
        &["kv1", "kv2"],
        &["kv2", "kv1"],
    ] {
        let error = apply(expected).await.unwrap_err();
        assert_eq!(error.code, "FAILED_PRECONDITION", "{expected:?}");
        assert_eq!(error.reason().unwrap(), "UNEXPECTED_TARGET_KEY");
    }
    assert!(snapshot(&client).await == before);
    let report = apply(&["kv2", "kv2"]).await.unwrap();
    assert_eq!(
        (
            report.rows_updated,
            report.current_encryption_key_id.as_str()
        ),
        (1, "kv2")
    );
    assert!(snapshot(&client).await != before);
    apply(&["kv2"]).await.unwrap();
}

#[tokio::test]
async fn reflection_and_health_are_open_to_every_verified_certificate() {
    let server = Site::new(&database().await).start().await;
    for leaf in [&nobody(), certs::machine(), certs::admin()] {
        let call = Call::new(&server, leaf);
        let listed = call.verb(&["list"]).await.unwrap();
        for service in [
            "forge.Forge",
            "nico.rewrap.v1.Rewrap",
            "grpc.health.v1.Health",
        ] {
            assert!(listed.lines().any(|line| line == service), "{listed}");
        }
        let described = call.verb(&["describe", "forge.Forge"]).await.unwrap();
        assert!(
            described.contains("ReencryptTenantIdentitySecrets ("),
            "{described}"
        );
        for name in ["", "forge.Forge"] {
            let (health, _) = call.unary(HEALTH, &json!({"service": name})).await.unwrap();
            assert_eq!(health["status"], "SERVING", "{name}");
        }
        let unknown = call.unary(HEALTH, &json!({"service": "forge.Other"})).await;
        assert_eq!(unknown.unwrap_err().code, "NOT_FOUND");
        let may = call.reencrypt(&json!({"dryRun": true})).await;
        assert_eq!(may.is_ok(), leaf.key == certs::admin().key);
    }
    let stranger = certs::service_cert("nico-api").signed_by(certs::other_ca());
    let no_call = Call::new(&server, &stranger).option(&["-connect-timeout", "1"]);
    no_call.verb(&["list"]).await.unwrap_err();
}

#[tokio::test]
async fn health_follows_readiness() {
    let site = Site::with_url("postgres://nobody@127.0.0.1:1/none");
    let server = site.start_unready().await;
    let call = Call::new(&server, certs::machine());
    for name in ["", "forge.Forge"] {
        let (health, _) = call.unary(HEALTH, &json!({"service": name})).await.unwrap();
        assert_eq!(health["status"], "NOT_SERVING", "{name}");
    }
}

#[tokio::test]
async fn both_versions_of_reflection_are_served() {
    let server = Site::new(&database().await).start().await;
    let dir = lasting_dir("reflection");
    for version in ["v1", "v1alpha"] {
        let file = dir.join(format!("{version}.proto"));
        fs::write(&file, REFLECTION.replace("VERSION", version)).unwrap();
        let method = format!("grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
        let call = Call::new(&server, certs::machine()).proto(&file);
        let (answer, _) = call
            .unary(&method, &json!({"listServices": "*"}))
            .await
            .unwrap();
        let services = answer["listServicesResponse"]["service"]
            .as_array()
            .unwrap();
        let own = format!("grpc.reflection.{version}.ServerReflection");
        let expected = [
            "forge.Forge",
            "nico.rewrap.v1.Rewrap",
            "grpc.health.v1.Health",
            &own,
        ];
        for name in expected {
            assert!(
                services.contains(&json!({"name": name})),
                "{name}: {answer}"
            );
        }
        // An unknown symbol gets an error in the stream, and the stream stays open.
        let unknown = json!({"fileContainingSymbol": "no.Such"});
        let (answer, _) = call.unary(&method, &unknown).await.unwrap();
        assert_eq!(answer["errorResponse"]["errorCode"], 5, "{answer}");
        assert_eq!(answer["originalRequest"], unknown);
    }
}

#[tokio::test]
async fn what_is_not_there_is_unimplemented_and_only_for_those_who_may_call() {
    let server = Site::new(&database().await).start().await;
    let dir = lasting_dir("unknown");
    let unknown = [
        ("forge", "Forge", "RotateTenantIdentitySecrets"),
        ("forge", "Forge", "reencryptTenantIdentitySecrets"),
        ("forge", "Other", "ReencryptTenantIdentitySecrets"),
        ("other", "Forge", "ReencryptTenantIdentitySecrets"),
    ];
    for (package, service, method) in unknown {
        let file = dir.join("unknown.proto");
        let text = UNKNOWN
            .replace("PACKAGE", package)
            .replace("SERVICE", service);
        fs::write(&file, text.replace("METHOD", method)).unwrap();
        for (leaf, code, reason) in [
            (certs::admin(), "UNIMPLEMENTED", "UNKNOWN_METHOD"),
            (&nobody(), "UNAUTHENTICATED", "NO_IDENTITY"),
        ] {
            let call = Call::new(&server, leaf).proto(&file);
            let method = format!("{package}.{service}/{method}");
            let error = call.unary(&method, &json!({})).await.unwrap_err();
            assert_eq!(error.code, code, "{method}");
            assert_eq!(error.reason().unwrap(), reason, "{method}");
            let record = audit(&server, error.run_id.as_deref().unwrap()).await;
            assert_eq!(field(&record, "outcome").unwrap(), reason);
            assert_eq!(
                *field(&record, "method").unwrap(),
                json!(format!("/{method}"))
            );
        }
    }
    assert_eq!(server.logs_with("run started"), Vec::<Value>::new());
}

/// The part of the reflection protocol that lists services. The two versions differ only in the
/// package.
const REFLECTION: &str = r#"syntax = "proto3";
package grpc.reflection.VERSION;
service ServerReflection {
  rpc ServerReflectionInfo(stream ServerReflectionRequest) returns (stream ServerReflectionResponse);
}
message ServerReflectionRequest { oneof request { string file_containing_symbol = 4; string list_services = 7; } }
message ServerReflectionResponse {
  ServerReflectionRequest original_request = 2;
  ListServiceResponse list_services_response = 6;
  ErrorResponse error_response = 7;
}
message ErrorResponse { int32 error_code = 1; string error_message = 2; }
message ListServiceResponse { repeated ServiceResponse service = 1; }
message ServiceResponse { string name = 1; }
"#;

const UNKNOWN: &str = r#"syntax = "proto3";
package PACKAGE;
message Empty {}
service SERVICE { rpc METHOD(Empty) returns (Empty); }
"#;
