//! A run in which very many rows fail: all failures are listed, and memory has a limit.

use serde_json::json;

use crate::memory_peak::MemoryPeak;
use crate::outcome::seeded;
use crate::rewrap_client::{ask, migrate_state, number, run};
use crate::site::Site;

/// How many failures of a run are kept without the schema.
const IN_MEMORY: usize = 50_000;

/// A dry run over `rows` rows that all fail. Lists its failures in pages.
async fn many_failures(rows: usize, persistent: bool) {
    let (database, client) = seeded(&[]).await;
    let insert = format!(
        "INSERT INTO tenants (organization_id, version, organization_name)
            SELECT 'org' || lpad(i::text, 7, '0'), 'V1-T1', 'x' FROM generate_series(1, {rows}) AS i;
        INSERT INTO tenant_identity_config (organization_id, issuer, default_audience, allowed_audiences,
                token_ttl_sec, subject_prefix, encrypted_signing_key_1)
            SELECT organization_id, 'x', 'x', '[]', 1, 'x', 'no envelope' FROM tenants;
        ANALYZE tenant_identity_config"
    );
    client.batch_execute(&insert).await.unwrap();
    let site = Site::new(&database).set("rewrap.statement_timeout", "\"60s\"");
    if persistent {
        migrate_state(&site);
    }
    let server = site.start().await;
    let memory = MemoryPeak::of(&server);
    let run = run(&server, "RUN_KIND_DRY_RUN").await;
    assert_eq!(run["state"], "RUN_STATE_FINISHED", "{run}");
    assert_eq!(number(&run["report"]["rowsFailed"]), rows as u64);
    assert_eq!(
        number(&run["failureGroups"][0]["organizations"]),
        rows as u64
    );
    let expected = if persistent {
        rows
    } else {
        rows.min(IN_MEMORY)
    };
    let (mut token, mut listed) = (String::new(), 0);
    loop {
        let request = json!({"runId": run["id"], "pageSize": 1000, "pageToken": token});
        let page = ask(&server, "ListFailures", request).await;
        for failure in page["failures"].as_array().unwrap() {
            listed += 1;
            assert_eq!(failure["organizationId"], format!("org{listed:07}"));
            assert_eq!(failure["reason"], "UNREADABLE_ENVELOPE");
        }
        token = page["nextPageToken"].as_str().unwrap().to_owned();
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, expected, "persistent: {persistent}");
    let peak = memory.end();
    assert!(peak < 128, "{peak} MiB");
}

#[tokio::test]
async fn every_failure_of_many_is_listed_in_order() {
    for persistent in [true, false] {
        many_failures(20_000, persistent).await;
    }
}

#[tokio::test]
#[ignore = "takes minutes: make test-long"]
async fn every_failure_of_a_million_is_listed_in_order() {
    for persistent in [true, false] {
        many_failures(1_000_000, persistent).await;
    }
}
