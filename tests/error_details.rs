//! The parts of an error: the code, the reason, the metadata of `google.rpc.ErrorInfo`, and the
//! metadata of nico-api's errors.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use crate::certs::{self, admin_cert, root_ca, service};
use crate::database::Database;
use crate::faults::orgs;
use crate::grpcurl::{Call, GrpcError};
use crate::pki::Leaf;
use crate::process::lasting_dir;
use crate::seed;
use crate::server::Server;
use crate::site::{Site, path};

/// The metadata without the run id, which must be that of the header.
fn metadata(error: &GrpcError) -> BTreeMap<String, String> {
    let mut metadata = error.error_info().unwrap().metadata;
    assert_eq!(metadata.remove("run_id"), error.run_id, "{error:?}");
    metadata.into_iter().collect()
}

/// Checks the reason, the metadata, and the error of nico-api.
fn assert_error(error: &GrpcError, reason: &str, number: u16, expected: &[(&str, &str)]) {
    assert_eq!(error.reason().as_deref(), Some(reason), "{error:?}");
    let expected = expected.iter().copied();
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(metadata(error), expected.collect(), "{reason}");
    let header = |name: &str| error.headers[name].as_str();
    assert_eq!(
        header("nico-error-code"),
        format!("NICO-API-{number}"),
        "{reason}"
    );
    assert_eq!(header("nico-error-text"), error.message, "{reason}");
    assert!(!header("nico-error-mitigation").is_empty(), "{reason}");
}

async fn refused(server: &Server, leaf: &Leaf, header: &str, request: &Value) -> GrpcError {
    let call = Call::new(server, leaf).without_reflection().header(header);
    call.reencrypt(request).await.unwrap_err()
}

/// Certificate, header and request; then the reason, the number and the metadata of the error.
type Case<'a> = (
    &'a Leaf,
    &'a str,
    Value,
    &'a str,
    u16,
    &'a [(&'a str, &'a str)],
);

#[tokio::test]
async fn every_error_of_a_request_carries_its_parts() {
    let database = Database::migrated().await;
    let server = Site::new(&database).start().await;
    let (admin, machine) = (certs::admin(), certs::machine());
    let nobody = admin_cert().signed_by(root_ca());
    let expect = "x-expect-target-key-id: kv9";
    let large = format!("x-unrelated: {}", "a".repeat(17_000));
    let with_id = |id: &str| json!({"organizationId": id, "dryRun": true});
    let cases: [Case<'_>; 9] = [
        (
            admin,
            expect,
            json!({}),
            "UNEXPECTED_TARGET_KEY",
            412,
            &[("target", "kv2"), ("expected", "kv9")],
        ),
        (
            admin,
            "a: b",
            with_id("acme"),
            "UNKNOWN_ORGANIZATION",
            404,
            &[("organization_id", "acme")],
        ),
        (
            admin,
            "a: b",
            with_id(" "),
            "BLANK_ORGANIZATION_ID",
            400,
            &[],
        ),
        (
            admin,
            "a: b",
            with_id("a b"),
            "INVALID_ORGANIZATION_ID",
            400,
            &[],
        ),
        (
            admin,
            "a: b",
            with_id(&"a".repeat(17_000)),
            "MALFORMED_REQUEST",
            400,
            &[],
        ),
        (admin, &large, json!({}), "METADATA_TOO_LARGE", 400, &[]),
        (machine, "a: b", json!({}), "NOT_ALLOWED", 403, &[]),
        (machine, &large, json!({}), "NOT_ALLOWED", 403, &[]),
        (&nobody, "a: b", json!({}), "NO_IDENTITY", 401, &[]),
    ];
    for (leaf, header, request, reason, number, expected) in cases {
        let error = refused(&server, leaf, header, &request).await;
        assert_error(&error, reason, number, expected);
    }
    // The server refuses these two calls before a handler sees them.
    let file = lasting_dir("unknown").join("unknown.proto");
    fs::write(&file, UNKNOWN).unwrap();
    for (leaf, reason, number) in [
        (admin, "UNKNOWN_METHOD", 404),
        (machine, "NOT_ALLOWED", 403),
    ] {
        let call = Call::new(&server, leaf).proto(&file);
        let error = call.unary("forge.Forge/Rotate", &json!({})).await;
        assert_error(&error.unwrap_err(), reason, number, &[]);
    }
}

#[tokio::test]
async fn every_error_of_a_site_carries_its_parts() {
    let database = Database::migrated().await;
    let site = || Site::new(&database);
    let disabled = site()
        .set("machine_identity.enabled", "false")
        .start()
        .await;
    let error = refused(&disabled, certs::admin(), "a: b", &json!({})).await;
    assert_error(&error, "MACHINE_IDENTITY_DISABLED", 409, &[]);

    let with_policy = site();
    let file = with_policy.dir().join("policy.csv");
    fs::write(&file, "p, external-role/nobody, forge/*\n").unwrap();
    let with_policy = with_policy
        .set("auth.casbin_policy_file", path(file))
        .start()
        .await;
    let error = refused(&with_policy, certs::admin(), "a: b", &json!({})).await;
    let action = [("action", "forge/ReencryptTenantIdentitySecrets")];
    assert_error(&error, "DENIED_BY_POLICY", 403, &action);
    // The client does not get the names that the policy was asked about.
    assert!(!error.message.contains("external-role"), "{error:?}");

    let unreachable = Site::with_url("postgres://nobody@127.0.0.1:1/none")
        .start_unready()
        .await;
    unreachable.wait_log("waiting for the database").await;
    let error = refused(&unreachable, certs::admin(), "a: b", &json!({})).await;
    let cause = metadata(&error).remove("cause").unwrap();
    assert!(cause.contains("refused"), "{cause}");
    assert_error(&error, "NOT_READY", 503, &[("cause", &cause)]);
    let service = refused(&unreachable, &service("nico-dhcp"), "a: b", &json!({})).await;
    assert_error(&service, "NOT_ALLOWED", 403, &[]);
}

#[tokio::test]
async fn an_error_that_ends_a_run_carries_its_counts() {
    let database = Database::migrated().await;
    let client = database.client().await;
    seed::insert(&client, &orgs(3)).await;
    let server = Site::new(&database).start().await;
    // The policy of the owner applies to the owner only with FORCE.
    let hide =
        "ALTER TABLE tenant_identity_config ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY";
    client.batch_execute(hide).await.unwrap();
    for (dry_run, words) in [(true, "0 to update"), (false, "0 updated")] {
        let request = json!({"dryRun": dry_run});
        let error = refused(&server, certs::admin(), "a: b", &request).await;
        let words = format!("The run examined 0 rows: {words}, 0 failed; 0 in doubt");
        assert!(error.message.ends_with(&words), "{}", error.message);
        let dry_run = dry_run.to_string();
        let expected = [
            ("dry_run", dry_run.as_str()),
            ("durable", "true"),
            ("role", "nico"),
            ("rows_examined", "0"),
            ("rows_failed", "0"),
            ("rows_in_doubt", "0"),
            ("rows_updated", "0"),
            ("tables", "tenant_identity_config"),
        ];
        assert_error(&error, "ROWS_NOT_VISIBLE", 503, &expected);
    }
}

const UNKNOWN: &str = r#"syntax = "proto3";
package forge;
message Empty {}
service Forge { rpc Rotate(Empty) returns (Empty); }
"#;
