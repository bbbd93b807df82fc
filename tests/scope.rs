//! The scope of a call: one organization or the site, and never more than the request names.

use serde_json::json;

use crate::certs;
use crate::grpcurl::{Report, reencrypt};
use crate::outcome::{Counters, assert_rewrapped, counters, seeded, serve};
use crate::seed::{Org, VERSION, snapshot};
use crate::server::Server;
use crate::site::Site;

/// Three organizations, two of them with ids similar to the third, and one organization that fails.
fn orgs() -> Vec<Org> {
    vec![
        Org::under("acme", "kv1"),
        Org::under("Acme", "kv1"),
        Org::under("acme_1-X", "kv1"),
        Org::under("broken", "kv1").text(1, "no envelope"),
    ]
}

async fn apply(server: &Server, organization_id: &str) -> Report {
    let request = json!({"organizationId": organization_id});
    reencrypt(server, certs::admin(), request).await.unwrap()
}

const ONE: Counters = Counters {
    updated: 1,
    skipped: 0,
    failed: 0,
    reencrypted: 2,
    on_target: 0,
};

#[tokio::test]
async fn a_run_for_one_organization_changes_only_that_one() {
    let (_database, client, server) = serve(&orgs()).await;
    let mut expected = snapshot(&client).await;
    for id in ["acme", "acme_1-X"] {
        let request = json!({"organizationId": id, "dryRun": true});
        let said = reencrypt(&server, certs::admin(), request).await.unwrap();
        assert_eq!(counters(&said), ONE);
        assert_eq!(snapshot(&client).await, expected);

        let done = apply(&server, id).await;
        assert_eq!(counters(&done), ONE);
        assert_eq!(done.current_encryption_key_id, "kv2");
        let after = snapshot(&client).await;
        assert_rewrapped(&expected[id], &after[id], "kv2");
        expected.insert(id.into(), after[id].clone());
        assert_eq!(after, expected);
    }
    let again = apply(&server, "acme").await;
    let nothing = Counters {
        skipped: 1,
        on_target: 2,
        ..Counters::default()
    };
    assert_eq!(counters(&again), nothing);
    let broken = apply(&server, "broken").await;
    assert_eq!((broken.rows_examined, broken.rows_failed), (1, 1));
    assert_eq!(broken.failures[0].organization_id, "broken");
    assert_eq!(snapshot(&client).await, expected);
}

#[tokio::test]
async fn surrounding_white_space_is_trimmed() {
    let spellings = [
        " acme",
        "acme ",
        "\tacme\r\n",
        "  \n acme \n ",
        "\u{a0}acme\u{2003}",
    ];
    let (database, client) = seeded(&orgs()).await;
    // The target alternates, so that every spelling has something to re-wrap.
    let servers = [
        Site::new(&database).start().await,
        Site::new(&database).target("kv1").start().await,
    ];
    for (spelling, server) in spellings.iter().zip(servers.iter().cycle()) {
        let mut expected = snapshot(&client).await;
        let report = apply(server, spelling).await;
        assert_eq!(counters(&report), ONE, "{spelling:?}");
        let after = snapshot(&client).await;
        assert_ne!(after["acme"], expected["acme"]);
        expected.insert("acme".into(), after["acme"].clone());
        assert_eq!(after, expected);
    }
}

#[tokio::test]
async fn without_an_organization_a_call_covers_the_site() {
    let whole_site = Counters {
        updated: 3,
        failed: 1,
        reencrypted: 6,
        ..Counters::default()
    };
    let (_database, client, server) = serve(&orgs()).await;
    let before = snapshot(&client).await;
    // By the defaults of proto3, an empty request is an apply for the whole site.
    for request in [json!({"dryRun": true}), json!({})] {
        assert_eq!(snapshot(&client).await, before);
        let report = reencrypt(&server, certs::admin(), request).await.unwrap();
        assert_eq!(counters(&report), whole_site);
    }
    let after = snapshot(&client).await;
    for id in ["acme", "Acme", "acme_1-X"] {
        assert_rewrapped(&before[id], &after[id], "kv2");
    }
    assert_eq!(after["broken"], before["broken"]);
}

#[tokio::test]
async fn a_site_wide_run_covers_ids_that_no_call_can_name() {
    let ids = ["a b", "org.example", "é", " acme", "x/y", "\u{1f511}"];
    let orgs: Vec<_> = ids.iter().map(|id| Org::under(id, "kv1")).collect();
    let (_database, client, server) = serve(&orgs).await;
    let before = snapshot(&client).await;
    let report = reencrypt(&server, certs::admin(), json!({})).await.unwrap();
    assert_eq!(report.rows_updated, 6);
    for (id, row) in snapshot(&client).await {
        assert_rewrapped(&before[&id], &row, "kv2");
    }
}

#[tokio::test]
async fn an_organization_that_is_blank_malformed_or_unknown_is_refused_and_nothing_is_written() {
    const BLANK: (&str, &str) = ("INVALID_ARGUMENT", "BLANK_ORGANIZATION_ID");
    const INVALID: (&str, &str) = ("INVALID_ARGUMENT", "INVALID_ORGANIZATION_ID");
    const UNKNOWN: (&str, &str) = ("NOT_FOUND", "UNKNOWN_ORGANIZATION");
    let long = "a".repeat(2000);
    let cases = [
        ("", BLANK),
        (" ", BLANK),
        ("\t\r\n", BLANK),
        ("\u{a0}\u{3000}", BLANK),
        ("a c", INVALID),
        ("acme,Acme", INVALID),
        ("acme\u{0}", INVALID),
        ("acme.", INVALID),
        ("*", INVALID),
        ("%", INVALID),
        ("acme/", INVALID),
        ("acme'--", INVALID),
        ("\"acme\"", INVALID),
        ("${ORG}", INVALID),
        ("acmé", INVALID),
        ("\u{200b}acme", INVALID),
        ("ａcme", INVALID),
        // A pattern, another case, a prefix, and a tenant without a row of secrets.
        ("acm_", UNKNOWN),
        ("ACME", UNKNOWN),
        ("acm", UNKNOWN),
        ("-", UNKNOWN),
        ("0", UNKNOWN),
        ("tenant-only", UNKNOWN),
        (&long, UNKNOWN),
    ];
    let (_database, client, server) = serve(&orgs()).await;
    let sql = "INSERT INTO tenants (organization_id, version, organization_name) VALUES ('tenant-only', $1, '')";
    client.execute(sql, &[&VERSION]).await.unwrap();
    let before = snapshot(&client).await;
    for (organization_id, expected) in cases {
        for dry_run in [true, false] {
            let request = json!({"organizationId": organization_id, "dryRun": dry_run});
            let error = reencrypt(&server, certs::admin(), request)
                .await
                .unwrap_err();
            let reason = error.reason().unwrap();
            assert_eq!(
                (error.code.as_str(), reason.as_str()),
                expected,
                "{organization_id:?}"
            );
            assert!(error.run_id.is_some(), "{error:?}");
        }
    }
    assert_eq!(snapshot(&client).await, before);
}
