//! Runs for a whole site: the dry run, the apply, the second dry run, and the way back to the old
//! key.

use std::collections::BTreeSet;

use serde_json::json;

use crate::certs;
use crate::grpcurl::{Failure, reencrypt, run};
use crate::outcome::{
    Counters, assert_rewrapped, counters, dry_run_then_apply, linguistic, seeded, serve, without_id,
};
use crate::pg::OWNER;
use crate::seal::{key_id, keys, open, seal};
use crate::seed::{DELEGATION, Org, signing_key_pem, snapshot};
use crate::site::Site;

/// One organization of every kind, and the counters of a run to `kv2`.
fn one_of_each() -> (Vec<Org>, Counters) {
    let mixed = Org::under("mixed", "kv1").text(1, seal(signing_key_pem(), "kv2"));
    let orgs = vec![
        Org::under("usual", "kv1"),
        Org::under("Full", "kv1").text(1, seal(signing_key_pem(), "kv1")),
        mixed,
        Org::under("done", "kv2"),
        Org::new("empty").text(0, "").text(2, ""),
        Org::new("none"),
        Org::under("broken", "kv1").text(1, "no envelope"),
    ];
    let expected = Counters {
        updated: 3,
        skipped: 3,
        failed: 1,
        reencrypted: 2 + 3 + 2,
        on_target: 1 + 2,
    };
    (orgs, expected)
}

#[tokio::test]
async fn a_dry_run_predicts_the_report_of_the_apply_and_writes_nothing() {
    let (orgs, expected) = one_of_each();
    let (_database, client, server) = serve(&orgs).await;
    let before = snapshot(&client).await;
    let said = run(&server, true).await;
    assert_eq!(counters(&said), expected);
    assert_eq!(said.current_encryption_key_id, "kv2");
    assert_eq!(snapshot(&client).await, before);

    let done = run(&server, false).await;
    assert_ne!(snapshot(&client).await, before);
    assert_ne!(said.run_id, done.run_id);
    assert_eq!(without_id(said), without_id(done));
}

#[tokio::test]
async fn a_run_rewraps_only_secrets_that_are_not_on_target() {
    let (orgs, expected) = one_of_each();
    let (_database, client, server) = serve(&orgs).await;
    let before = snapshot(&client).await;
    assert_eq!(counters(&run(&server, false).await), expected);
    let after = snapshot(&client).await;
    assert!(after.keys().eq(before.keys()));
    for (id, row) in &before {
        match id.as_str() {
            "usual" | "Full" | "mixed" => {
                assert_rewrapped(row, &after[id], "kv2");
            }
            _ => assert_eq!(&after[id], row, "{id}"),
        }
    }
}

#[tokio::test]
async fn a_second_run_writes_nothing() {
    let (orgs, first) = one_of_each();
    let (_database, client, server) = serve(&orgs).await;
    run(&server, false).await;
    let before = snapshot(&client).await;
    let expected = Counters {
        skipped: first.updated + first.skipped,
        failed: first.failed,
        on_target: first.reencrypted + first.on_target,
        ..Counters::default()
    };
    assert_eq!(counters(&dry_run_then_apply(&server).await), expected);
    assert_eq!(snapshot(&client).await, before);
}

#[tokio::test]
async fn a_site_without_organizations_has_nothing_to_report() {
    let (_database, _client, server) = serve(&[]).await;
    let report = dry_run_then_apply(&server).await;
    assert_eq!(counters(&report), Counters::default());
    assert!(report.failures.is_empty());
}

#[tokio::test]
async fn each_row_and_its_version_are_written_in_one_transaction() {
    let orgs: Vec<_> = (0..9)
        .map(|i| Org::under(&format!("org{i}"), "kv1"))
        .collect();
    let (_database, client, server) = serve(&orgs).await;
    run(&server, false).await;
    let after = snapshot(&client).await;
    let mut transactions = BTreeSet::new();
    for row in after.values() {
        let (config, tenant) = &row.written_by;
        assert_eq!(config, tenant);
        assert!(transactions.insert(config), "two rows in one transaction");
    }
}

/// A trap that ends every transaction in which the service writes a row, even if Postgres undoes
/// the write.
const TRAP: &str = "
    CREATE FUNCTION no_write() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE 'a transaction that writes'; END $$;
    CREATE TRIGGER trap BEFORE INSERT OR UPDATE OR DELETE ON tenant_identity_config
        FOR EACH STATEMENT EXECUTE FUNCTION no_write();
    CREATE TRIGGER trap BEFORE INSERT OR UPDATE OR DELETE ON tenants
        FOR EACH STATEMENT EXECUTE FUNCTION no_write();";

#[tokio::test]
async fn a_dry_run_uses_read_only_transactions() {
    let (orgs, mut expected) = one_of_each();
    let (database, client) = seeded(&orgs).await;
    client.batch_execute(TRAP).await.unwrap();
    let admin = database.admin().await;
    let before = snapshot(&admin).await;
    let read_only = |value: &str| {
        format!(
            "ALTER ROLE {OWNER} IN DATABASE {} SET default_transaction_read_only = {value}",
            database.name()
        )
    };
    admin.batch_execute(&read_only("on")).await.unwrap();
    let server = Site::new(&database).start().await;
    assert_eq!(counters(&run(&server, true).await), expected);
    let one = json!({"organizationId": "usual", "dryRun": true});
    let one = reencrypt(&server, certs::admin(), one).await.unwrap();
    assert_eq!(one.rows_updated, 1);
    let refused = reencrypt(&server, certs::admin(), json!({}))
        .await
        .unwrap_err();
    assert_eq!(refused.reason().as_deref(), Some("DATABASE_READ_ONLY"));
    drop(server);

    // In an apply, the trap makes each write fail, and so each row.
    admin.batch_execute(&read_only("off")).await.unwrap();
    let server = Site::new(&database).start().await;
    assert_eq!(counters(&run(&server, true).await), expected);
    expected.failed += expected.updated;
    (expected.updated, expected.reencrypted, expected.on_target) = (0, 0, 2);
    let report = run(&server, false).await;
    assert_eq!(counters(&report), expected);
    let refused = |failure: &&Failure| failure.field.is_empty() && failure.error.contains("P0001");
    assert_eq!(
        report.failures.iter().filter(refused).count(),
        3,
        "{report:?}"
    );
    assert_eq!(snapshot(&admin).await, before);
}

#[tokio::test]
async fn reverting_the_target_brings_every_row_back() {
    let three = Org::under("three", "kv1").text(1, seal(signing_key_pem(), "kv3"));
    let orgs = [
        Org::under("one", "kv1"),
        Org::under("two", "kv2"),
        Org::under("Three", "kv3"),
        three.text(2, seal(DELEGATION, "kv2")),
    ];
    let (database, client) = seeded(&orgs).await;
    let start = async |target: &str, ids: &[&str]| {
        let site = Site::new(&database).keys(&keys(ids)).target(target);
        site.start().await
    };
    let before = snapshot(&client).await;

    let server = start("kv2", &["kv1", "kv2", "kv3"]).await;
    let there = Counters {
        updated: 3,
        skipped: 1,
        reencrypted: 2 + 2 + 2,
        on_target: 1 + 2,
        failed: 0,
    };
    assert_eq!(counters(&dry_run_then_apply(&server).await), there);
    let under_kv2 = snapshot(&client).await;
    for id in ["one", "Three", "three"] {
        assert_rewrapped(&before[id], &under_kv2[id], "kv2");
    }
    assert_eq!(under_kv2["two"], before["two"]);

    let server = start("kv1", &["kv1", "kv2", "kv3"]).await;
    let back = Counters {
        updated: 4,
        reencrypted: 2 + 2 + 2 + 3,
        ..Counters::default()
    };
    assert_eq!(counters(&dry_run_then_apply(&server).await), back);
    let under_kv1 = snapshot(&client).await;
    for (id, row) in &under_kv1 {
        assert_rewrapped(&under_kv2[id], row, "kv1");
        assert_ne!(row.texts, before[id].texts, "every sealing has a new nonce");
    }

    // Only now are all other keys unused.
    let report = run(&start("kv1", &["kv1"]).await, true).await;
    assert_eq!(
        (report.rows_failed, report.fields_skipped_on_target),
        (0, 9)
    );
    let report = run(&start("kv2", &["kv2"]).await, true).await;
    assert_eq!((report.rows_failed, report.failures.len()), (4, 9));
}

#[tokio::test]
async fn versions_count_up_by_one() {
    let versions = [
        ("V0-T0", 1),
        ("V1-T1666644937952267", 2),
        ("V99-T9223372036854775807", 100),
        ("V4294967295-T1", 4_294_967_296),
        ("V9223372036854775807-T1", 9_223_372_036_854_775_808),
        ("V18446744073709551614-T1", u64::MAX),
    ];
    let id = |i: usize| format!("org{i}");
    let orgs: Vec<_> = (0..)
        .zip(versions)
        .map(|(i, (version, _))| Org::under(&id(i), "kv1").version(version))
        .collect();
    let (_database, client, server) = serve(&orgs).await;
    let before = snapshot(&client).await;
    assert_eq!(dry_run_then_apply(&server).await.rows_updated, 6);
    let after = snapshot(&client).await;
    for (i, (_, number)) in (0..).zip(versions) {
        assert_eq!(after[&id(i)].version_parts().0, number);
        assert_rewrapped(&before[&id(i)], &after[&id(i)], "kv2");
    }
}

#[tokio::test]
async fn a_version_that_cannot_be_bumped_fails_only_rows_that_need_a_write() {
    let versions = [
        "",
        "1",
        "V1",
        "V-T1",
        "V1-T",
        "v1-t1",
        "V1-T1 ",
        "V1-T1\n",
        "V+1-T1",
        "V-1-T1",
        "V1-T-1",
        "V1.5-T1",
        "V1-T1-T1",
        "V1-T2026-01-01",
        "V\u{661}-T1",
        "V1-T9223372036854775808",
        "V18446744073709551615-T1700000000000000",
        "V18446744073709551616-T1",
        "V99999999999999999999999-T1",
    ];
    let mut orgs = Vec::new();
    for (i, version) in versions.iter().enumerate() {
        orgs.push(Org::under(&format!("done{i:02}"), "kv2").version(version));
        orgs.push(Org::new(&format!("none{i:02}")).version(version));
        orgs.push(Org::under(&format!("todo{i:02}"), "kv1").version(version));
    }
    orgs.push(Org::under("well-versioned", "kv1"));
    let (_database, client, server) = serve(&orgs).await;
    let before = snapshot(&client).await;
    let report = dry_run_then_apply(&server).await;
    let n = u32::try_from(versions.len()).unwrap();
    let expected = Counters {
        updated: 1,
        skipped: 2 * n,
        failed: n,
        reencrypted: 2,
        on_target: 2 * n,
    };
    assert_eq!(counters(&report), expected);
    assert_eq!(report.failures.len(), versions.len());
    for (i, failure) in report.failures.iter().enumerate() {
        assert_eq!(
            (failure.organization_id.as_str(), failure.field.as_str()),
            (format!("todo{i:02}").as_str(), "")
        );
        assert!(failure.error.contains("tenants.version"), "{failure:?}");
    }
    let mut after = snapshot(&client).await;
    let written = after.insert("well-versioned".into(), before["well-versioned"].clone());
    assert_eq!(written.unwrap().version_parts().0, 8);
    assert_eq!(after, before);
}

#[tokio::test]
async fn every_plaintext_survives_and_new_texts_are_canonical() {
    let odd = format!("a \"key\"\\ of\t\u{1} ключ ✓ 🔑{}", "é".repeat(20));
    let longest = "k".repeat(255);
    let longest_in_bytes = format!("{}x", "ü".repeat(127));
    let ids = ["kv1", &odd, &longest, &longest_in_bytes];
    let every_byte: Vec<u8> = (0..=255).collect();
    let plaintexts: [&[u8]; 9] = [
        b"",
        b"{}",
        b"\0",
        signing_key_pem().as_bytes(),
        DELEGATION.as_bytes(),
        "{\"client_id\": \"ü✓\", \"client_secret\": \"🔑\"}".as_bytes(),
        b"not UTF-8: \xff\xfe",
        &every_byte,
        &[0xa5; 16 << 10],
    ];
    // Every plaintext in every column, under every key id.
    let mut orgs = Vec::new();
    for (i, from) in ids.iter().enumerate() {
        for j in 0..plaintexts.len() {
            let text = |k: usize| Some(seal(plaintexts[(j + k) % plaintexts.len()], from));
            orgs.push(Org::new(&format!("org-{i}-{j}")).texts([0, 1, 2].map(text)));
        }
    }
    let (database, client) = seeded(&orgs).await;
    let kv = keys(&ids);
    for target in ids {
        let site = Site::new(&database).keys(&kv).target(target);
        let server = site.start().await;
        let before = snapshot(&client).await;
        let report = run(&server, false).await;
        assert_eq!(report.rows_failed, 0, "{report:?}");
        assert_eq!(report.current_encryption_key_id, target);
        for (id, row) in snapshot(&client).await {
            if before[&id] == row {
                assert_eq!(key_id(row.texts[0].as_ref().unwrap()), target);
            } else {
                assert_rewrapped(&before[&id], &row, target);
            }
        }
    }
    for (id, row) in snapshot(&client).await {
        let j: usize = id.rsplit('-').next().unwrap().parse().unwrap();
        for (k, text) in row.texts.iter().enumerate() {
            let (_, plaintext) = open(text.as_ref().unwrap(), &kv).unwrap();
            assert_eq!(plaintext, plaintexts[(j + k) % plaintexts.len()]);
        }
    }
}

#[tokio::test]
async fn pages_of_any_size_cover_every_row_once_under_any_collation() {
    let ids = [
        "a", "A", "b", "B", "_", "-", "--", "a-a", "aa", "a_a", "Z", "z", "0", "10", "2", "é", "ß",
        "ss", "A b", "org.x", "ab", "aB", "Ab",
    ];
    let orgs = ids.map(|id| Org::under(id, "kv1"));
    let (database, client) = linguistic(&orgs).await;
    for (target, page_size) in [
        ("kv2", 1),
        ("kv1", 3),
        ("kv2", 22),
        ("kv1", 23),
        ("kv2", 24),
    ] {
        let site = Site::new(&database)
            .target(target)
            .set("rewrap.page_size", page_size.to_string());
        let server = site.start().await;
        let before = snapshot(&client).await;
        let report = dry_run_then_apply(&server).await;
        let expected = Counters {
            updated: 23,
            reencrypted: 2 * 23,
            ..Counters::default()
        };
        assert_eq!(counters(&report), expected, "page_size = {page_size}");
        for (id, row) in snapshot(&client).await {
            assert_rewrapped(&before[&id], &row, target);
        }
    }
}
