//! Runs that live on the server: start, progress, history, failures and stop.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::certs;
use crate::grpcurl::{self, Call};
use crate::outcome::seeded;
use crate::rewrap_client::{ask, ended, migrate_state, number, run, start, start_slow, try_ask};
use crate::seal::seal;
use crate::seed::{self, Org, signing_key_pem};
use crate::site::Site;

/// Three good organizations under kv1, one on target, and two that fail.
fn orgs() -> Vec<Org> {
    vec![
        Org::under("a", "kv1"),
        Org::under("b", "kv1"),
        Org::under("c", "kv1"),
        Org::under("done", "kv2"),
        Org::new("lost").text(0, seal(signing_key_pem(), "kv9")),
        Org::under("broken", "kv1").text(1, "no envelope"),
    ]
}

fn site(database: &crate::database::Database) -> Site {
    Site::new(database).set("rewrap.census_interval", "\"0s\"")
}

#[tokio::test]
async fn a_dry_run_and_an_apply_have_the_report_of_the_old_method() {
    let (database, _client) = seeded(&orgs()).await;
    let server = site(&database).start().await;
    let expected = grpcurl::run(&server, true).await;
    for kind in ["RUN_KIND_DRY_RUN", "RUN_KIND_APPLY"] {
        let run = run(&server, kind).await;
        assert_eq!(run["state"], "RUN_STATE_FINISHED", "{run}");
        assert_eq!(run["kind"], kind);
        assert_eq!(run["site"], json!({}));
        assert_eq!(run["targetKeyId"], "kv2");
        assert_eq!(run["caller"], "alice");
        assert_eq!(run["durable"], true);
        let report = &run["report"];
        let count = |name: &str| report[name].as_str().unwrap().parse::<u32>().unwrap();
        assert_eq!(count("rowsExamined"), expected.rows_examined);
        assert_eq!(count("rowsUpdated"), expected.rows_updated);
        assert_eq!(count("rowsOnTarget"), expected.rows_skipped_all_on_target);
        assert_eq!(count("rowsFailed"), expected.rows_failed);
        assert_eq!(count("secretsRewrapped"), expected.fields_reencrypted);
        assert_eq!(count("secretsOnTarget"), expected.fields_skipped_on_target);
        assert_eq!(run["progress"]["rowsDone"], "6");
    }
}

#[tokio::test]
async fn failures_are_grouped_and_listed_in_pages() {
    let (database, _client) = seeded(&orgs()).await;
    for persistent in [false, true] {
        let site = site(&database);
        if persistent {
            migrate_state(&site);
        }
        let server = site.start().await;
        let run = run(&server, "RUN_KIND_DRY_RUN").await;
        let groups = run["failureGroups"].as_array().unwrap();
        let group = |reason: &str| {
            let mut found = groups.iter().filter(|group| group["reason"] == reason);
            found.next().unwrap_or_else(|| panic!("{run}"))
        };
        let lost = group("KEY_NOT_IN_SECRETS");
        assert_eq!(lost["keyId"], "kv9");
        assert_eq!(lost["sampleOrganizationIds"], json!(["lost"]));
        assert!(lost["remedy"].as_str().unwrap().contains("Add the key"));
        assert_eq!(group("UNREADABLE_ENVELOPE")["secrets"], "1");

        let mut token = String::new();
        let mut listed = Vec::new();
        loop {
            let request = json!({"runId": run["id"], "pageSize": 1, "pageToken": token});
            let page = ask(&server, "ListFailures", request).await;
            listed.extend(page["failures"].as_array().unwrap().clone());
            token = page["nextPageToken"].as_str().unwrap().to_owned();
            if token.is_empty() {
                break;
            }
        }
        let ids: Vec<_> = listed
            .iter()
            .map(|failure| &failure["organizationId"])
            .collect();
        assert_eq!(ids, ["broken", "lost"], "persistent: {persistent}");
        assert_eq!(listed[0]["field"], "encrypted_signing_key_2");
        assert_eq!(listed[1]["reason"], "KEY_NOT_IN_SECRETS");
    }
}

#[tokio::test]
async fn a_request_id_starts_one_run() {
    let (database, _client) = seeded(&orgs()).await;
    let server = site(&database).start().await;
    let request = |kind: &str| json!({"requestId": "r-1", "kind": kind, "site": {}});
    let first = ask(&server, "StartRun", request("RUN_KIND_DRY_RUN")).await;
    ended(&server, &first).await;
    let again = ask(&server, "StartRun", request("RUN_KIND_DRY_RUN")).await;
    assert_eq!(again["id"], first["id"]);
    let other = try_ask(&server, "StartRun", request("RUN_KIND_VERIFY"))
        .await
        .unwrap_err();
    assert_eq!(
        (other.code.as_str(), other.reason().as_deref()),
        ("ALREADY_EXISTS", Some("REQUEST_ID_REUSED"))
    );
    let runs = ask(&server, "ListRuns", json!({})).await;
    assert_eq!(runs["runs"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn incomplete_requests_are_refused() {
    let (database, _client) = seeded(&[]).await;
    let server = site(&database).start().await;
    let apply = "RUN_KIND_APPLY";
    for (request, reason) in [
        (json!({"kind": "RUN_KIND_DRY_RUN"}), "INVALID_RUN"),
        (json!({"site": {}}), "INVALID_RUN"),
        (json!({"kind": apply, "site": {}}), "INVALID_RUN"),
        (
            json!({"kind": "RUN_KIND_CENSUS", "organizationId": "a"}),
            "INVALID_RUN",
        ),
        (
            json!({"kind": "RUN_KIND_DRY_RUN", "organizationId": " "}),
            "BLANK_ORGANIZATION_ID",
        ),
        (
            json!({"kind": apply, "site": {}, "expectTargetKeyId": "kv9"}),
            "UNEXPECTED_TARGET_KEY",
        ),
    ] {
        let error = try_ask(&server, "StartRun", request.clone())
            .await
            .unwrap_err();
        assert_eq!(error.reason().as_deref(), Some(reason), "{request}");
    }
    for method in ["GetRun", "WatchRun", "StopRun", "ListFailures"] {
        let error = try_ask(&server, method, json!({"runId": "x"}))
            .await
            .unwrap_err();
        assert_eq!(error.reason().as_deref(), Some("UNKNOWN_RUN"), "{method}");
    }
}

#[tokio::test]
async fn texts_that_postgres_cannot_store_are_refused() {
    let (database, _client) = seeded(&orgs()).await;
    for persistent in [false, true] {
        let site = site(&database);
        if persistent {
            migrate_state(&site);
        }
        let server = site.start().await;
        let dry_run = |part: &str, value: &str| {
            let mut request = json!({"kind": "RUN_KIND_DRY_RUN", "site": {}});
            if part == "organizationId" {
                request = json!({"kind": "RUN_KIND_DRY_RUN"});
            }
            request[part] = value.into();
            ("StartRun", request)
        };
        let mut requests = vec![
            dry_run("requestId", "a\0b"),
            dry_run("requestId", &"x".repeat(256)),
            dry_run("organizationId", "a\0"),
            ("ListRuns", json!({"pageToken": "a\0"})),
            (
                "ListFailures",
                json!({"runId": "x", "pageToken": "WyJhXHUwMDAwIiwiIl0"}),
            ),
        ];
        for method in ["GetRun", "WatchRun", "StopRun", "ListFailures"] {
            requests.push((method, json!({"runId": "a\0b"})));
        }
        for (method, request) in requests {
            let error = try_ask(&server, method, request.clone()).await.unwrap_err();
            assert_eq!(
                error.code, "INVALID_ARGUMENT",
                "{method} {request}: {error:?}"
            );
        }
        let (_, longest) = dry_run("requestId", &"x".repeat(255));
        let run = ask(&server, "StartRun", longest.clone()).await;
        assert_eq!(ask(&server, "StartRun", longest).await["id"], run["id"]);
        ended(&server, &run).await;
    }
}

#[tokio::test]
async fn equal_requests_at_the_same_time_give_one_run() {
    let (database, _client) = seeded(&orgs()).await;
    let first = site(&database);
    migrate_state(&first);
    let (one, two) = (first.start().await, site(&database).start().await);
    for i in 0..8 {
        let request = json!({
            "kind": "RUN_KIND_APPLY", "site": {}, "expectTargetKeyId": "kv2",
            "requestId": format!("request {i}"), "maxRowsPerSecond": 20,
        });
        let start = |server| ask(server, "StartRun", request.clone());
        let (a, b, c, d) = tokio::join!(start(&one), start(&two), start(&one), start(&two));
        for other in [b, c, d] {
            assert_eq!(other["id"], a["id"]);
        }
        ended(&one, &a).await;
    }
}

#[tokio::test]
async fn a_page_of_runs_begins_where_the_last_one_ended() {
    for persistent in [true, false] {
        let (database, client) = seeded(&orgs()).await;
        let site = site(&database).set("rewrap.census_interval", "\"0s\"");
        if persistent {
            migrate_state(&site);
        }
        let server = site.start().await;
        let mut ids = Vec::new();
        for _ in 0..5 {
            let run = run(&server, "RUN_KIND_DRY_RUN").await;
            ids.insert(0, run["id"].as_str().unwrap().to_owned());
        }
        let page = async |token: &str| {
            let request = json!({"pageSize": 2, "pageToken": token});
            let page = ask(&server, "ListRuns", request).await;
            let runs = page["runs"].as_array().unwrap().iter();
            let ids: Vec<_> = runs
                .map(|run| run["id"].as_str().unwrap().to_owned())
                .collect();
            (ids, page["nextPageToken"].as_str().unwrap().to_owned())
        };
        let (first, token) = page("").await;
        assert_eq!(first, ids[..2]);
        if persistent {
            // The list goes on, even if the last run of the page was deleted.
            let delete = "DELETE FROM nico_rewrap.runs WHERE id = $1";
            assert_eq!(client.execute(delete, &[&ids[1]]).await.unwrap(), 1);
        }
        let (second, token) = page(&token).await;
        assert_eq!(second, ids[2..4]);
        assert_eq!(page(&token).await, (ids[4..].to_vec(), String::new()));
        for wrong in ["x", " ", ids[3].as_str(), "e30"] {
            let request = json!({"pageToken": wrong});
            let error = try_ask(&server, "ListRuns", request).await.unwrap_err();
            assert_eq!(error.code, "INVALID_ARGUMENT", "{wrong}: {error:?}");
        }
    }
}

#[tokio::test]
async fn every_answer_is_short_enough_for_a_client() {
    let (database, client) = seeded(&[]).await;
    let site = site(&database).set("rewrap.census_interval", "\"0s\"");
    migrate_state(&site);
    // 7,000 key ids, which are long, and so are the ids of their organizations.
    let orgs: Vec<_> = (0..7000)
        .map(|i| Org::new(&format!("{i:0>200}")).text(0, seal("x", &format!("{i:k>250}"))))
        .collect();
    seed::insert(&client, &orgs).await;
    seed::insert(&client, &[Org::under("a", "kv1"), Org::under("b", "kv1")]).await;
    let server = site.start().await;
    run(&server, "RUN_KIND_CENSUS").await;
    // grpcurl refuses answers over 4 MiB, as most clients do.
    let keys = ask(&server, "ListKeys", json!({})).await;
    let list = keys["keys"].as_array().unwrap();
    let sum: u64 = list.iter().map(|key| number(&key["secrets"])).sum();
    assert_eq!(sum, 7004);
    assert_eq!(keys["census"]["secrets"], "7004");
    assert!(list.len() < 7000 && list.is_sorted_by_key(|key| key["keyId"].as_str()));
    // The loaded keys are there, and the first entry stands for the rest.
    for id in ["kv1", "kv2"] {
        assert!(list.iter().any(|key| key["keyId"] == id), "{id}");
    }
    let omitted = 7000 - (list.len() - 1 - 2);
    assert_eq!(list[0]["keyId"], "");
    assert_eq!(number(&list[0]["secrets"]), omitted as u64);
    let explanation = list[0]["verdict"]["explanation"].as_str().unwrap();
    assert!(
        explanation.contains(&format!("{omitted} further key ids")),
        "{explanation}"
    );

    for _ in 0..16 {
        run(&server, "RUN_KIND_DRY_RUN").await;
    }
    let mut token = String::new();
    let mut runs = 0;
    loop {
        let page = json!({"pageSize": 100, "pageToken": token});
        let page = ask(&server, "ListRuns", page).await;
        runs += page["runs"].as_array().unwrap().len();
        token = page["nextPageToken"].as_str().unwrap().to_owned();
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(runs, 17);
}

#[tokio::test]
async fn only_who_may_rewrap_may_use_the_service() {
    let (database, _client) = seeded(&[]).await;
    let server = site(&database).start().await;
    let machine = certs::machine();
    for method in [
        "StartRun",
        "WatchRun",
        "GetRun",
        "ListRuns",
        "StopRun",
        "ListFailures",
        "ListKeys",
        "GetStatus",
    ] {
        let method = format!("nico.rewrap.v1.Rewrap/{method}");
        let error = Call::new(&server, machine)
            .unary(&method, &json!({}))
            .await
            .unwrap_err();
        assert_eq!(error.reason().as_deref(), Some("NOT_ALLOWED"), "{method}");
    }
    let who = "nico.rewrap.v1.Rewrap/WhoAmI";
    let (machine, _) = Call::new(&server, machine)
        .unary(who, &json!({}))
        .await
        .unwrap();
    assert_eq!(
        (&machine["kind"], &machine["allowed"]),
        (&json!("machine"), &json!(false))
    );
    assert_ne!(machine["reason"], "");
    let admin = ask(&server, "WhoAmI", json!({})).await;
    assert_eq!(
        (&admin["kind"], &admin["allowed"]),
        (&json!("external"), &json!(true))
    );
    assert_eq!(admin["rule"], "[auth.trust].additional_issuer_cns");
}

#[tokio::test]
async fn a_run_continues_without_its_client_and_can_be_stopped() {
    let many: Vec<_> = (0..200)
        .map(|i| Org::under(&format!("org{i:03}"), "kv1"))
        .collect();
    let (database, _client) = seeded(&many).await;
    let server = site(&database).start().await;
    let request = json!({
        "kind": "RUN_KIND_APPLY", "site": {}, "expectTargetKeyId": "kv2", "maxRowsPerSecond": 20,
    });
    let started = ask(&server, "StartRun", request).await;
    assert_eq!(started["state"], "RUN_STATE_RUNNING");
    let status = ask(&server, "GetStatus", json!({})).await;
    assert_eq!(status["activeRuns"][0]["id"], started["id"]);
    // A second site-wide apply names the first one.
    let request = json!({"kind": "RUN_KIND_APPLY", "site": {}, "expectTargetKeyId": "kv2"});
    let error = try_ask(&server, "StartRun", request).await.unwrap_err();
    let info = error.error_info().unwrap();
    assert_eq!(info.reason, "APPLY_UNDER_WAY");
    assert_eq!(json!(info.metadata["run_id"]), started["id"]);
    assert_eq!(info.metadata["caller"], "alice");

    ask(&server, "StopRun", json!({"runId": started["id"]})).await;
    let stopped = ended(&server, &started).await;
    assert_eq!(stopped["state"], "RUN_STATE_STOPPED", "{stopped}");
    assert_eq!(stopped["error"]["details"][0]["reason"], "STOPPED");
    let updated: u32 = stopped["report"]["rowsUpdated"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(updated < 200, "{stopped}");
    assert_eq!(stopped["progress"]["rateLimitRowsPerSecond"], Value::Null);
}

#[tokio::test]
async fn the_rate_limit_of_a_request_covers_a_dry_run() {
    let orgs: Vec<_> = (0..200)
        .map(|i| Org::under(&format!("org{i:03}"), "kv1"))
        .collect();
    let (database, _client) = seeded(&orgs).await;
    let server = site(&database).start().await;
    for kind in ["RUN_KIND_DRY_RUN", "RUN_KIND_APPLY"] {
        let started = Instant::now();
        let run = start_slow(&server, kind, 100).await;
        let run = ended(&server, &run).await;
        assert_eq!(run["report"]["rowsUpdated"], "200", "{run}");
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(1800), "{kind}: {took:?}");
    }
}

#[tokio::test]
async fn a_run_stops_after_the_allowed_number_of_failures() {
    let orgs: Vec<_> = (0..600)
        .map(|i| Org::under(&format!("org{i:03}"), "kv9"))
        .collect();
    let (database, _client) = seeded(&orgs).await;
    let server = site(&database).start().await;
    for kind in ["RUN_KIND_DRY_RUN", "RUN_KIND_APPLY", "RUN_KIND_VERIFY"] {
        for limit in [1, 10] {
            let request = json!({
                "kind": kind, "site": {}, "expectTargetKeyId": "kv2", "stopAfterFailures": limit,
            });
            let run = ask(&server, "StartRun", request).await;
            let run = ended(&server, &run).await;
            assert_eq!(run["state"], "RUN_STATE_STOPPED");
            let info = &run["error"]["details"][0];
            assert_eq!(info["reason"], "FAILURE_LIMIT", "{run}");
            // Each task that is at work may add a row.
            let failed = number(&run["report"]["rowsFailed"]);
            assert!((limit..limit + 10).contains(&failed), "{run}");
            let message = run["error"]["message"].as_str().unwrap();
            assert!(message.contains(&format!("{failed} failed rows")), "{run}");
        }
    }
}

#[tokio::test]
async fn locked_rows_count_for_the_limit_while_they_are_written() {
    let orgs: Vec<_> = (0..100)
        .map(|i| Org::under(&format!("org{i:03}"), "kv1"))
        .collect();
    let (database, client) = seeded(&orgs).await;
    client
        .batch_execute("BEGIN; SELECT FROM tenant_identity_config FOR UPDATE")
        .await
        .unwrap();
    let server = site(&database)
        .set("rewrap.lock_timeout", "\"100ms\"")
        .set("rewrap.pipeline_depth", "1")
        .start()
        .await;
    let request = json!({
        "kind": "RUN_KIND_APPLY", "site": {}, "expectTargetKeyId": "kv2", "stopAfterFailures": 2,
    });
    let run = ask(&server, "StartRun", request).await;
    let run = ended(&server, &run).await;
    assert_eq!(run["error"]["details"][0]["reason"], "FAILURE_LIMIT");
    assert_eq!(run["report"]["rowsFailed"], "2", "{run}");
}

#[tokio::test]
async fn a_run_that_has_evaluated_every_row_is_finished() {
    let orgs: Vec<_> = (0..300)
        .map(|i| Org::under(&format!("org{i:03}"), "kv9"))
        .collect();
    let (database, _client) = seeded(&orgs).await;
    let server = site(&database).start().await;
    for kind in ["RUN_KIND_DRY_RUN", "RUN_KIND_APPLY", "RUN_KIND_VERIFY"] {
        for (scope, id, rows) in [
            ("site", json!({}), 300),
            ("organizationId", json!("org007"), 1),
        ] {
            let request = json!({
                "kind": kind, scope: id, "expectTargetKeyId": "kv2", "stopAfterFailures": rows,
            });
            let run = ask(&server, "StartRun", request).await;
            let run = ended(&server, &run).await;
            assert_eq!(run["state"], "RUN_STATE_FINISHED", "{run}");
            assert_eq!(number(&run["report"]["rowsFailed"]), rows, "{run}");
        }
    }
}

#[tokio::test]
async fn a_verify_checks_the_meaning_of_each_secret() {
    let orgs = [
        Org::under("a", "kv1"),
        Org::under("b", "kv2").text(2, seal("no delegation", "kv2")),
    ];
    let (database, _client) = seeded(&orgs).await;
    let server = site(&database).start().await;
    let run = run(&server, "RUN_KIND_VERIFY").await;
    assert_eq!(run["state"], "RUN_STATE_FINISHED", "{run}");
    // The public keys of these rows are empty.
    let failures = ask(&server, "ListFailures", json!({"runId": run["id"]})).await;
    let reasons: Vec<_> = failures["failures"]
        .as_array()
        .unwrap()
        .iter()
        .map(|failure| {
            (
                failure["organizationId"].as_str().unwrap(),
                failure["reason"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        reasons,
        [
            ("a", "PUBLIC_KEY_MISSING"),
            ("b", "NOT_A_DELEGATION"),
            ("b", "PUBLIC_KEY_MISSING"),
        ]
    );
}

#[tokio::test]
async fn all_instances_show_the_runs_of_all_instances() {
    let many: Vec<_> = (0..100)
        .map(|i| Org::under(&format!("org{i:03}"), "kv1"))
        .collect();
    let (database, _client) = seeded(&many).await;
    let first_site = site(&database);
    migrate_state(&first_site);
    let one = first_site
        .set("rewrap.instance_name", "\"one\"")
        .start()
        .await;
    let two = site(&database)
        .set("rewrap.instance_name", "\"two\"")
        .start()
        .await;
    let request = json!({
        "kind": "RUN_KIND_APPLY", "site": {}, "expectTargetKeyId": "kv2", "maxRowsPerSecond": 10,
    });
    let run = ask(&one, "StartRun", request).await;
    let seen = ask(&two, "GetRun", json!({"runId": run["id"]})).await;
    assert_eq!(seen["instance"], "one");
    // The guard covers all instances.
    let request = json!({"kind": "RUN_KIND_APPLY", "site": {}, "expectTargetKeyId": "kv2"});
    let error = try_ask(&two, "StartRun", request).await.unwrap_err();
    let info = error.error_info().unwrap();
    assert_eq!(info.reason, "APPLY_UNDER_WAY");
    assert_eq!(json!(info.metadata["run_id"]), run["id"]);
    assert_eq!(info.metadata["instance"], "one");
    // Another instance can stop the run.
    ask(&two, "StopRun", json!({"runId": run["id"]})).await;
    assert_eq!(ended(&two, &run).await["state"], "RUN_STATE_STOPPED");
    let runs = ask(&two, "ListRuns", json!({})).await;
    assert_eq!(runs["runs"][0]["id"], run["id"]);
    // The history survives both.
    assert_eq!(one.terminate().await, 0);
    let again = site(&database).start().await;
    assert_eq!(
        ask(&again, "GetRun", json!({"runId": run["id"]})).await["state"],
        "RUN_STATE_STOPPED"
    );
}

#[tokio::test]
async fn the_forge_method_leaves_a_run_in_the_history() {
    let (database, _client) = seeded(&orgs()).await;
    let server = site(&database).start().await;
    let report = grpcurl::run(&server, false).await;
    let runs = ask(&server, "ListRuns", json!({})).await;
    assert_eq!(runs["runs"][0]["id"], json!(report.run_id));
    assert_eq!(runs["runs"][0]["kind"], "RUN_KIND_APPLY");
    let _ = start(&server, "RUN_KIND_DRY_RUN").await;
}
