//! Failures: the report names each failing field, the row keeps every byte, and other rows are not
//! affected.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use nico_rewrap::domain::envelope::{ParseError, SealError};
use nico_rewrap::domain::rewrap::FieldError;
use nico_rewrap::domain::tenant_version::VersionError;
use nico_rewrap::store::RowError;
use serde_json::{Value, json};

use crate::bad_texts::{Bad, bad_texts};
use crate::grpcurl::{Failure, run};
use crate::outcome::{
    Counters, assert_rewrapped, counters, dry_run_then_apply, linguistic, seeded, serve,
};
use crate::seal::{Key, Keys, key, open, seal, seal_with};
use crate::seed::{COLUMNS, DELEGATION, Org, signing_key_pem, snapshot};
use crate::server::Server;
use crate::site::Site;

/// A marker in every plaintext, so that tests can search for leaks.
const SECRET: &str = "the secret of a test";

#[tokio::test]
async fn a_bad_field_fails_its_row_only_and_leaves_the_row_unchanged() {
    let bad = bad_texts();
    let mut orgs = Vec::new();
    let mut expected = BTreeMap::new();
    for (i, Bad { begins, text, .. }) in bad.iter().enumerate() {
        let column = i % 3;
        let alone = Org::new(&format!("alone-{i:02}")).text(column, text);
        let beside = Org::new(&format!("beside-{i:02}"))
            .text((column + 1) % 3, seal(DELEGATION, "kv1"))
            .text((column + 2) % 3, seal(DELEGATION, "kv2"))
            .text(column, text);
        orgs.extend([alone, beside, Org::under(&format!("good-{i:02}"), "kv1")]);
        for id in ["alone", "beside"] {
            expected.insert(format!("{id}-{i:02}"), (COLUMNS[column], begins, i));
        }
    }
    let (_database, client, server) = serve(&orgs).await;
    let before = snapshot(&client).await;
    let report = dry_run_then_apply(&server).await;

    let n = u32::try_from(bad.len()).unwrap();
    let counted = Counters {
        updated: n,
        failed: 2 * n,
        reencrypted: 2 * n,
        ..Counters::default()
    };
    for (failure, (id, (column, begins, i))) in report.failures.iter().zip(&expected) {
        assert_eq!(
            (&failure.organization_id, failure.field.as_str()),
            (id, *column)
        );
        let Bad { name, text, .. } = &bad[*i];
        assert!(
            failure.error.starts_with(begins.as_str()),
            "{name}: {failure:?}"
        );
        assert_quotes_nothing(&failure.error, text);
    }
    assert_eq!(report.failures.len(), expected.len());
    assert_eq!(counters(&report), counted);
    assert_logs_nothing_secret(&server).await;

    for (id, row) in snapshot(&client).await {
        match id.starts_with("good") {
            true => assert_rewrapped(&before[&id], &row, "kv2"),
            false => assert_eq!(row, before[&id], "{id}"),
        }
    }
}

/// Checks that the message contains no part of the text. It may contain a key id, which is in the
/// text only in base64.
fn assert_quotes_nothing(message: &str, text: &str) {
    let letters: Vec<char> = message.chars().collect();
    for stretch in letters.windows(12) {
        let stretch: String = stretch.iter().collect();
        assert!(!text.contains(&stretch), "{message}");
    }
    assert!(!message.contains(SECRET), "{message}");
}

/// Checks the log of a server that has had two calls.
async fn assert_logs_nothing_secret(server: &Server) {
    // The audit record is the last line of a call, so all other lines have arrived, too.
    let audited = async {
        while server.logs_with("call").len() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let audited = tokio::time::timeout(Duration::from_secs(60), audited).await;
    audited.expect("two records of calls");
    let log = server.log_text();
    assert!(log.contains("row failed"));
    let pem = signing_key_pem().lines().nth(1).unwrap();
    let secrets = [
        SECRET,
        pem,
        &BASE64_STANDARD.encode(key("kv1")),
        &BASE64_STANDARD.encode(key("kv2")),
    ];
    for secret in secrets {
        assert!(!log.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn each_bad_field_of_a_row_has_an_entry_and_a_bad_version_adds_none() {
    let unknown = || seal(DELEGATION, "kv9");
    let tampered = seal_with(DELEGATION, "kv2", &key("kv1"));
    let three = Org::new("three")
        .text(0, "!")
        .text(1, unknown())
        .text(2, tampered);
    let two = Org::under("two", "kv1")
        .text(1, unknown())
        .text(2, unknown());
    let (_database, client, server) = serve(&[three.version("odd"), two.version("odd")]).await;
    let before = snapshot(&client).await;
    let report = dry_run_then_apply(&server).await;
    let summary = |failure: &Failure| {
        let kind = failure.error.split([':', '"']).next().unwrap().to_owned();
        (failure.organization_id.clone(), failure.field.clone(), kind)
    };
    let failures: Vec<_> = report.failures.iter().map(summary).collect();
    let expected = [
        ("three", COLUMNS[0], "unreadable envelope"),
        ("three", COLUMNS[1], "key id "),
        ("three", COLUMNS[2], "authentication failed under key id "),
        ("two", COLUMNS[1], "key id "),
        ("two", COLUMNS[2], "key id "),
    ];
    assert_eq!(
        failures,
        expected.map(|(a, b, c)| (a.into(), b.into(), c.into()))
    );
    assert_eq!((report.rows_failed, report.rows_examined), (2, 2));
    assert_eq!(snapshot(&client).await, before);
}

#[tokio::test]
async fn a_repaired_row_is_rewrapped_by_the_next_run() {
    let (_database, client, server) = serve(&[Org::under("acme", "kv1").text(1, "!")]).await;
    assert_eq!(dry_run_then_apply(&server).await.rows_failed, 1);
    let mend = "UPDATE tenant_identity_config SET encrypted_signing_key_2 = NULL";
    client.execute(mend, &[]).await.unwrap();
    let before = snapshot(&client).await;
    assert_eq!(dry_run_then_apply(&server).await.rows_updated, 1);
    assert_rewrapped(&before["acme"], &snapshot(&client).await["acme"], "kv2");
}

#[tokio::test]
async fn a_text_may_have_at_most_1_mib() {
    let padded = |bytes: usize| {
        let text = seal(DELEGATION, "kv1");
        let spaces = " ".repeat(bytes - text.len());
        spaces + &text
    };
    let mib = 1 << 20;
    let orgs = [
        Org::new("just").text(0, padded(mib)),
        Org::new("over").text(0, padded(mib + 1)),
    ];
    let (_database, client, server) = serve(&orgs).await;
    let before = snapshot(&client).await;
    let report = dry_run_then_apply(&server).await;
    assert_eq!((report.rows_updated, report.rows_failed), (1, 1));
    assert!(report.failures[0].error.contains("1 MiB"), "{report:?}");
    let after = snapshot(&client).await;
    assert_rewrapped(&before["just"], &after["just"], "kv2");
    assert_eq!(before["over"], after["over"]);
}

#[tokio::test]
async fn test_vectors_of_the_reference_product_are_rewrapped_or_refused_as_there() {
    let vectors: Value = serde_json::from_str(include_str!("vectors/envelope_v1.json")).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let bytes = |value: &Value| BASE64_STANDARD.decode(text(value)).unwrap();
    let kv: Keys = vectors["keys"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(id, value)| (id.clone(), Key::try_from(bytes(value)).unwrap()))
        .collect();
    let mut orgs = Vec::new();
    let mut plaintexts = BTreeMap::new();
    for (verdict, column) in [("valid", 0), ("invalid", 1)] {
        for vector in vectors[verdict].as_array().unwrap() {
            let name = format!("{verdict}-{}", text(&vector["name"]));
            orgs.push(Org::new(&name).text(column, text(&vector["envelope"])));
            if verdict == "valid" {
                plaintexts.insert(name, bytes(&vector["plaintext_b64"]));
            }
        }
    }
    let (database, client) = seeded(&orgs).await;
    let before = snapshot(&client).await;
    let server = Site::new(&database).keys(&kv).target("kv2").start().await;
    let report = dry_run_then_apply(&server).await;
    let after = snapshot(&client).await;
    for (name, plaintext) in &plaintexts {
        let (under, found) = open(after[name].texts[0].as_ref().unwrap(), &kv).unwrap();
        assert_eq!((under.as_str(), &found), ("kv2", plaintext), "{name}");
    }
    let failed: Vec<_> = report
        .failures
        .iter()
        .map(|failure| &failure.organization_id)
        .collect();
    // This program treats an empty text as an absent secret.
    let invalid = |name: &&String| name.starts_with("invalid-") && *name != "invalid-empty";
    assert_eq!(failed, before.keys().filter(invalid).collect::<Vec<_>>());
    for name in before.keys().filter(|name| !plaintexts.contains_key(*name)) {
        assert_eq!(before[name], after[name]);
    }
}

#[tokio::test]
async fn a_report_with_too_many_failures_is_cut_and_counts_them_all() {
    // Each failure contains an escaped id of 255 unprintable characters, and the id of the
    // organization is long, too.
    let key_id = "\u{1}".repeat(255);
    let text = seal(DELEGATION, &key_id);
    let id = |i: u32| format!("{i:04}{}", "x".repeat(200));
    let orgs: Vec<_> = (0..1000)
        .map(|i| Org::new(&id(i)).texts([0, 1, 2].map(|_| Some(text.clone()))))
        .chain([Org::under("last", "kv1")])
        .collect();
    let (_database, _client, server) = serve(&orgs).await;
    for (runs, dry_run) in [(1, true), (2, false)] {
        let report = run(&server, dry_run).await;
        let expected = Counters {
            updated: 1,
            failed: 1000,
            reencrypted: 2,
            ..Counters::default()
        };
        assert_eq!(counters(&report), expected);
        // The report has the first failures, as many as fit, and each is complete.
        let kept = report.failures.len();
        let size = |failure: &Failure| failure.error.len() + failure.organization_id.len();
        let all = 3000 * size(&report.failures[0]);
        assert!(all > 4 << 20, "all of them would not fit: {all}");
        assert!((500..3000).contains(&kept), "{kept}");
        for (n, failure) in (0..).zip(&report.failures) {
            assert_eq!(failure.organization_id, id(n / 3));
            assert_eq!(failure.field, COLUMNS[n as usize % 3]);
            assert_eq!(failure.error, report.failures[0].error);
        }
        let omitted = server
            .wait_log("more failures than a report can carry")
            .await;
        assert_eq!(omitted["omitted"], 3000 - kept);
        // The log has the first failures, and a summary of all.
        let causes = server.wait_logs("failures by cause", runs).await;
        for (name, value) in [
            ("reason", json!("KEY_NOT_IN_SECRETS")),
            ("secrets", json!(3000)),
            ("organizations", json!(1000)),
        ] {
            assert_eq!(causes[runs - 1][name], value);
        }
        let details = server.logs_with("row failed");
        assert_eq!(details.len(), 100 * runs);
        assert_eq!(details[99]["organization_id"], id(33));
        let only_the_first =
            "the log has only the first failures of this run: ListFailures has all of them";
        let only_the_first = server.wait_logs(only_the_first, runs).await;
        assert_eq!(only_the_first[runs - 1]["omitted"], 2900);
    }
}

#[tokio::test]
async fn failures_are_in_byte_order_of_the_organizations_under_any_collation() {
    let mut ids = [
        "b", "A", "é", "a", "B", "_", "-", "Z", "10", "2", "a-b", "aB", "ab", "a_b", "z", "ü",
    ];
    let mislabelled = || seal_with("x", "kv2", &key("kv1"));
    // If no secret under kv2 opened, the apply would be refused.
    let mut orgs = vec![Org::under("0", "kv2")];
    orgs.extend(ids.map(|id| Org::new(id).text(2, mislabelled()).text(0, mislabelled())));
    let (database, client) = linguistic(&orgs).await;
    ids.sort_unstable();
    let sql = "SELECT array_agg(organization_id ORDER BY organization_id) FROM tenants";
    let order: Vec<String> = client.query_one(sql, &[]).await.unwrap().get(0);
    let order = order.iter().filter(|id| *id != "0");
    assert!(order.ne(&ids), "the database has another order");

    let site = Site::new(&database).set("rewrap.page_size", "3");
    let report = run(&site.start().await, false).await;
    let expected = ids
        .iter()
        .flat_map(|id| [(*id, COLUMNS[0]), (*id, COLUMNS[2])]);
    let found = report.failures.iter();
    let found = found.map(|failure| (failure.organization_id.as_str(), failure.field.as_str()));
    assert!(found.eq(expected), "{report:?}");
    assert_eq!(report.rows_failed, 16);
}

/// All kinds of failures of a row. With a new kind, this function no longer compiles.
fn every_error() -> Vec<String> {
    let fields = [
        FieldError::Unreadable(ParseError::TooLong),
        FieldError::SchemeVersion,
        FieldError::UnknownKey("kv1".to_owned()),
        FieldError::NotAuthentic("kv1".to_owned()),
        FieldError::Seal(SealError),
        FieldError::TooLong,
        FieldError::ReadBack,
    ];
    let rows = [
        RowError::RowLocked,
        RowError::TableLocked,
        RowError::StatementTimeout,
        RowError::NotEnded,
        RowError::Conflicts("40P01".to_owned()),
        RowError::Version(VersionError::Malformed),
        RowError::Version(VersionError::Exhausted),
        RowError::Version(VersionError::Missing),
        RowError::Privilege,
        RowError::Policy,
        RowError::TextNotKept,
        RowError::NotBumped,
        RowError::Ignored,
        RowError::Unreadable {
            columns: Vec::new(),
            sqlstate: "XX001".to_owned(),
        },
        RowError::Refused("23514".to_owned()),
    ];
    let known = |error: &FieldError| match error {
        FieldError::Unreadable(_)
        | FieldError::SchemeVersion
        | FieldError::UnknownKey(_)
        | FieldError::NotAuthentic(_)
        | FieldError::Seal(_)
        | FieldError::TooLong
        | FieldError::ReadBack => error.to_string(),
    };
    fields
        .iter()
        .map(known)
        .chain(rows.iter().map(|error| match error {
            RowError::RowLocked
            | RowError::TableLocked
            | RowError::StatementTimeout
            | RowError::NotEnded
            | RowError::Conflicts(_)
            | RowError::Version(
                VersionError::Malformed | VersionError::Exhausted | VersionError::Missing,
            )
            | RowError::Privilege
            | RowError::Policy
            | RowError::TextNotKept
            | RowError::NotBumped
            | RowError::Ignored
            | RowError::Unreadable { .. }
            | RowError::Refused(_) => error.to_string(),
        }))
        .collect()
}

#[test]
fn every_failure_has_a_row_in_the_reference() {
    let page = include_str!("../docs/reference/errors.md");
    let section = page.split("## Failures").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let first_cells = section.lines().filter_map(|line| line.strip_prefix("| `"));
    // The text between backticks, up to the part that varies between failures.
    let beginnings: Vec<_> = first_cells
        .flat_map(|line| {
            let cell = line.split(" | ").next().unwrap();
            cell.split('`')
                .step_by(2)
                .map(|text| text.split('…').next().unwrap())
        })
        .filter(|text| !text.is_empty())
        .collect();
    assert!(beginnings.len() >= 10, "{beginnings:?}");
    for error in every_error() {
        assert!(
            beginnings
                .iter()
                .any(|beginning| error.starts_with(beginning)),
            "{error}: {beginnings:?}"
        );
    }
}
