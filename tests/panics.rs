//! A panic of a run. A panic at each point of a run is in `failpoints.rs`.

use serde_json::json;

use crate::certs;
use crate::faults::orgs;
use crate::grpcurl::reencrypt;
use crate::outcome::seeded;
use crate::seal::key_id;
use crate::seed::snapshot;
use crate::server::field;
use crate::site::Site;

/// The rows of one batch.
const BATCH: u64 = 125;

#[tokio::test]
async fn the_rows_of_running_batches_are_in_doubt() {
    let (database, client) = seeded(&orgs(400)).await;
    // The first batch waits for this row.
    let locker = database.client().await;
    let lock =
        "BEGIN; SELECT FROM tenant_identity_config WHERE organization_id = 'org000' FOR UPDATE";
    locker.batch_execute(lock).await.unwrap();
    let server = Site::new(&database)
        .set("rewrap.adaptive_rate", "false")
        .set("rewrap.page_size", BATCH.to_string())
        .set("rewrap.lock_timeout", "\"60s\"")
        .set("rewrap.statement_timeout", "\"60s\"")
        .env("REWRAP_TEST_FAILPOINT", "page-read panic 3")
        .start()
        .await;
    let answer = reencrypt(&server, certs::admin(), json!({})).await;
    let error = answer.unwrap_err();
    assert_eq!(error.code, "INTERNAL", "{error:?}");
    let record = server.wait_log("call").await;
    let count = |name: &str| field(&record, name).and_then(|n| n.as_u64()).unwrap();
    let (updated, in_doubt) = (count("rows_updated"), count("rows_in_doubt"));
    assert!(in_doubt >= BATCH && in_doubt % BATCH == 0, "{record}");
    let rows = snapshot(&client).await;
    let written = rows.values().filter(|row| {
        let mut texts = row.texts.iter().flatten();
        texts.any(|text| key_id(text) == "kv2")
    });
    assert!(written.count() as u64 <= updated + in_doubt, "{record}");
    let told = error.error_info().unwrap().metadata;
    assert_eq!(told["rows_in_doubt"], in_doubt.to_string(), "{error:?}");
}
