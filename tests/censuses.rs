//! A census counts every secret once, even if the texts are invalid, and needs little memory.

use serde_json::{Value, json};

use crate::database::Database;
use crate::faults::orgs;
use crate::memory_peak::MemoryPeak;
use crate::outcome::seeded;
use crate::pg;
use crate::rewrap_client::{ask, ended, key, migrate_state, number, reason, run};
use crate::seal::{self, encode, seal, seal_object};
use crate::seed::{self, DELEGATION, Org, signing_key_pem};
use crate::server::Server;
use crate::site::Site;
use crate::unreadable::with_damaged_texts;
use crate::visibility::{follow_the_index, insert_past_the_index, with_role};

const CENSUS: &str = "RUN_KIND_CENSUS";

/// Takes a census, which must finish, and returns what `ListKeys` says about it.
async fn census(server: &Server) -> Value {
    let run = run(server, CENSUS).await;
    assert_eq!(run["state"], "RUN_STATE_FINISHED", "{run}");
    ask(server, "ListKeys", json!({})).await["census"].clone()
}

#[tokio::test]
async fn a_row_that_is_missing_from_the_index_is_counted() {
    let (database, _client) = seeded(&orgs(20)).await;
    follow_the_index(&database).await;
    insert_past_the_index(&database, "lost").await;
    for pooler in ["session", "transaction"] {
        let site = Site::new(&database).set("rewrap.pool_mode", format!("\"{pooler}\""));
        let server = site.start().await;
        let census = census(&server).await;
        assert_eq!(
            (&census["rows"], &census["secrets"]),
            (&json!("21"), &json!("42"))
        );
        assert_eq!(key(&server, "kv1").await["organizations"], "21", "{pooler}");
    }
}

#[tokio::test]
async fn a_text_that_postgres_cannot_read_counts_as_unreadable() {
    let (_postgres, database) = with_damaged_texts().await;
    for pooler in ["session", "transaction"] {
        let site = Site::new(&database).set("rewrap.pool_mode", format!("\"{pooler}\""));
        let server = site.start().await;
        let census = census(&server).await;
        assert_eq!(
            (&census["rows"], &census["secrets"], &census["unreadable"]),
            (&json!("300"), &json!("302"), &json!("2"))
        );
        assert_eq!(
            census["unreadableOrganizationIds"],
            json!(["org150", "org299"])
        );
        assert_eq!(key(&server, "kv1").await["secrets"], "300");
        // A verify names these texts.
        let verify = run(&server, "RUN_KIND_VERIFY").await;
        assert_eq!(verify["state"], "RUN_STATE_FINISHED", "{verify}");
        assert_eq!(verify["report"]["rowsExamined"], "300");
        let groups = verify["failureGroups"].as_array().unwrap();
        let unreadable = groups
            .iter()
            .find(|group| group["reason"] == "ROW_UNREADABLE");
        assert_eq!(unreadable.unwrap()["organizations"], "2", "{verify}");
    }
}

#[tokio::test]
async fn rows_that_a_policy_can_hide_end_a_census_and_a_verify() {
    let postgres = pg::Server::start();
    let (database, admin, url) = with_role(&postgres).await;
    seed::insert(&database.client().await, &orgs(5)).await;
    let hide = "ALTER TABLE tenant_identity_config ENABLE ROW LEVEL SECURITY";
    admin.batch_execute(hide).await.unwrap();
    let server = Site::with_url(&url).start().await;
    for kind in [CENSUS, "RUN_KIND_VERIFY"] {
        let run = run(&server, kind).await;
        assert_eq!(
            (run["state"].as_str(), reason(&run)),
            (Some("RUN_STATE_FAILED"), "ROWS_NOT_VISIBLE"),
            "{run}"
        );
    }
    assert_eq!(
        ask(&server, "ListKeys", json!({})).await["census"],
        Value::Null
    );
}

#[tokio::test]
async fn large_texts_need_little_memory_and_texts_over_the_limit_are_unreadable() {
    let (database, client) = seeded(&orgs(30)).await;
    // Readable up to 1 MiB. The key id is at the end, so the whole text must be read.
    let object = seal_object("s".repeat(180_000), "kv1", &seal::key("kv1"));
    let [nonce, ciphertext] = ["nonce", "ciphertext"].map(|member| &object[member]);
    let late = encode(&format!(
        r#"{{"nonce":{nonce},"ciphertext":{ciphertext},"scheme_version":1,"key_id":"kv1"}}"#
    ));
    assert!(late.len() < 1 << 20, "{}", late.len());
    let texts = [Some(late.clone()), Some(late.clone()), Some(late)];
    for i in 0..20 {
        let org = Org::new(&format!("large{i:03}")).texts(texts.clone());
        org.insert(&client).await;
    }
    let too_long =
        "UPDATE tenant_identity_config SET encrypted_signing_key_2 = repeat('x', 30000000)
        WHERE organization_id IN ('org000', 'org017')";
    client.batch_execute(too_long).await.unwrap();
    let server = Site::new(&database)
        .set("rewrap.statement_timeout", "\"60s\"")
        .start()
        .await;
    let memory = MemoryPeak::of(&server);
    let census = census(&server).await;
    assert_eq!(
        (&census["rows"], &census["unreadable"]),
        (&json!("50"), &json!("2")),
        "{census}"
    );
    assert_eq!(key(&server, "kv1").await["secrets"], "120");
    assert_eq!(
        run(&server, "RUN_KIND_VERIFY").await["state"],
        "RUN_STATE_FINISHED"
    );
    let peak = memory.end();
    assert!(peak < 64, "{peak} MiB");
}

#[tokio::test]
async fn a_key_id_is_read_in_every_form() {
    let with_id = |json_id: &str, order: [usize; 4]| {
        let object = seal_object(DELEGATION, "kv1", &seal::key("kv1"));
        let members = [
            r#""scheme_version": 1"#.to_owned(),
            format!(r#""key_id" : {json_id}"#),
            format!(r#""nonce":{}"#, object["nonce"]),
            format!("\n\"ciphertext\":{}", object["ciphertext"]),
        ];
        encode(&format!(
            "{{{}}}",
            order.map(|i| members[i].as_str()).join(", ")
        ))
    };
    let usual = [0, 1, 2, 3];
    // 255 bytes in 510 characters.
    let (escaped, long) = ("\\u20ac".repeat(85), "\u{20ac}".repeat(85));
    let odd = "a\"b\\c\u{0}d\ne";
    let odd_json = serde_json::to_string(odd).unwrap();
    let kv2 = r#""\u006bv2""#;
    let orgs = [
        Org::new("a").text(0, with_id(&format!("\"{escaped}\""), usual)),
        Org::new("b").text(0, with_id(&format!("\"{escaped}\""), [3, 2, 1, 0])),
        Org::new("c").text(0, with_id(&odd_json, usual)),
        Org::new("d")
            .text(0, with_id(kv2, usual))
            .text(1, with_id(kv2, [2, 3, 0, 1])),
        Org::new("e").text(2, seal(signing_key_pem(), "kv2")),
        // 256 bytes are too many.
        Org::new("f").text(2, with_id(&format!("\"{escaped}x\""), usual)),
    ];
    let (database, _client) = seeded(&orgs).await;
    let site = Site::new(&database);
    migrate_state(&site);
    let server = site.start().await;
    let census = census(&server).await;
    assert_eq!(
        (&census["secrets"], &census["unreadable"]),
        (&json!("7"), &json!("1")),
        "{census}"
    );
    for (id, secrets) in [(long.as_str(), "2"), (odd, "1"), ("kv2", "3")] {
        assert_eq!(key(&server, id).await["secrets"], secrets, "{id}");
    }
    // Postgres stores no NUL, but the history keeps the failure.
    let dry_run = run(&server, "RUN_KIND_DRY_RUN").await;
    assert_eq!(number(&dry_run["report"]["rowsFailed"]), 5);
    let stored = "SELECT count(*) FROM nico_rewrap.failures WHERE organization_id = 'c'";
    let stored: i64 = database
        .client()
        .await
        .query_one(stored, &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(stored, 1);
}

#[tokio::test]
async fn each_kind_of_run_can_follow_each_other_kind() {
    let (database, _client) = seeded(&orgs(5)).await;
    for pooler in ["session", "transaction"] {
        let site = Site::new(&database).set("rewrap.pool_mode", format!("\"{pooler}\""));
        let server = site.start().await;
        for kind in [
            CENSUS,
            "RUN_KIND_VERIFY",
            CENSUS,
            "RUN_KIND_DRY_RUN",
            "RUN_KIND_VERIFY",
        ] {
            let run = run(&server, kind).await;
            assert_eq!(run["state"], "RUN_STATE_FINISHED", "{kind} {pooler}: {run}");
            assert_eq!(run["report"]["rowsExamined"], "5");
        }
    }
}

#[tokio::test]
async fn a_verify_stops_after_the_allowed_number_of_failures() {
    let (database, _client) = seeded(&orgs(2000)).await;
    let server = Site::new(&database).start().await;
    let request = json!({"kind": "RUN_KIND_VERIFY", "site": {}, "stopAfterFailures": 1});
    let started = ask(&server, "StartRun", request).await;
    let run = ended(&server, &started).await;
    assert_eq!(
        (run["state"].as_str(), reason(&run)),
        (Some("RUN_STATE_STOPPED"), "FAILURE_LIMIT"),
        "{run}"
    );
}

/// A site whose role has exactly the privileges of `role.sql`, and a verify without one of them.
#[tokio::test]
async fn a_verify_without_a_privilege_says_so() {
    let postgres = pg::Server::start();
    let (database, admin, url) = with_role(&postgres).await;
    seed::insert(&database.client().await, &orgs(3)).await;
    let server = Site::with_url(&url).start().await;
    for scope in [json!({"site": {}}), json!({"organizationId": "org001"})] {
        let verify = async || {
            let mut request = scope.clone();
            request["kind"] = json!("RUN_KIND_VERIFY");
            let started = ask(&server, "StartRun", request).await;
            ended(&server, &started).await
        };
        assert_eq!(verify().await["state"], "RUN_STATE_FINISHED", "{scope}");
        for column in [
            "signing_key_public_1",
            "signing_key_public_2",
            "auth_method",
        ] {
            let change = async |verb: &str, to: &str| {
                let sql =
                    format!("{verb} SELECT ({column}) ON tenant_identity_config {to} nico_rewrap");
                admin.batch_execute(&sql).await.unwrap();
            };
            change("REVOKE", "FROM").await;
            let run = verify().await;
            assert_eq!(
                (run["state"].as_str(), reason(&run)),
                (Some("RUN_STATE_FAILED"), "DATABASE_PRIVILEGE"),
                "{run}"
            );
            change("GRANT", "TO").await;
        }
    }
}

/// The automatic census of a site with the usual settings.
#[tokio::test]
async fn the_background_census_of_a_usual_site_ends_with_the_server() {
    let database = Database::migrated().await;
    seed::insert(&database.client().await, &orgs(10)).await;
    let server = Site::new(&database)
        .unset("rewrap.census_interval")
        .start()
        .await;
    while ask(&server, "ListKeys", json!({})).await["census"].is_null() {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(server.terminate().await, 0);
}
