//! Blocks of the table, or of its index, that Postgres cannot read. All other rows are done, the
//! rows in these blocks are failures with their names, and the run does not look complete.

use std::os::unix::fs::FileExt;

use serde_json::json;

use crate::certs;
use crate::database::Database;
use crate::faults::{orgs, written};
use crate::grpcurl::{reencrypt, run};
use crate::pg;
use crate::seed;
use crate::server::field;
use crate::site::{Site, quote};

const BLOCK: u64 = 8192;

/// Overwrites the headers of these blocks of a table or index, while Postgres is stopped.
async fn damage(postgres: &pg::Server, database: &Database, relation: &str, blocks: &[u64]) {
    let admin = database.admin().await;
    admin.batch_execute("CHECKPOINT").await.unwrap();
    let file = format!("SELECT pg_relation_filepath('{relation}')");
    let file: String = admin.query_one(&file, &[]).await.unwrap().get(0);
    postgres.stop_fast();
    let file = postgres.socket_dir().join("data").join(file);
    let file = std::fs::File::options().write(true).open(file).unwrap();
    for block in blocks {
        // The end of the line pointers, which is beyond the block.
        file.write_all_at(&[0xff; 4], block * BLOCK + 12).unwrap();
    }
    postgres.restart();
}

/// The ids of the rows in these blocks.
async fn ids_in(database: &Database, blocks: &[u64]) -> Vec<String> {
    let numbers: Vec<_> = blocks.iter().map(ToString::to_string).collect();
    let sql = format!(
        "SELECT organization_id FROM tenant_identity_config
            WHERE split_part(trim('(' FROM ctid::text), ',', 1)::int IN ({}) ORDER BY 1",
        numbers.join(", ")
    );
    let rows = database.client().await.query(&sql, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn rows_outside_of_a_damaged_block_are_done_and_those_inside_are_named() {
    // The number of rows, the damaged blocks, and whether the index alone gives the ids.
    let table: [(usize, &[u64], bool, &str); 4] = [
        (900, &[1, 40, 41, 90], false, "session"),
        (900, &[17], true, "session"),
        (900, &[5, 30], false, "transaction"),
        // So small that Postgres would not use the index.
        (12, &[1], false, "session"),
    ];
    for (rows, blocks, is_vacuumed, pooler) in table {
        let case = format!("{rows} {blocks:?} {is_vacuumed} {pooler}");
        let postgres = pg::Server::options()
            .setting("autovacuum", "off")
            .setting("backtrace_functions", "ReadBuffer_common")
            .start();
        let database = Database::migrated_on(&postgres).await;
        let client = database.client().await;
        seed::insert(&client, &orgs(rows)).await;
        let other = "INSERT INTO tenants VALUES ('without-secrets', $1, 'another')";
        client.execute(other, &[&seed::VERSION]).await.unwrap();
        // With this, Postgres changes no index when it updates a row. It refuses to add an entry to
        // a page of the index that is full of entries for a damaged block.
        let space = "ALTER TABLE tenant_identity_config SET (fillfactor = 40)";
        client.batch_execute(space).await.unwrap();
        let full = "VACUUM FULL tenant_identity_config";
        client.batch_execute(full).await.unwrap();
        if is_vacuumed {
            client.batch_execute("VACUUM ANALYZE").await.unwrap();
        }
        let lost = ids_in(&database, blocks).await;
        assert!(!lost.is_empty() && lost.len() < rows / 2 + 1, "{lost:?}");
        damage(&postgres, &database, "tenant_identity_config", blocks).await;

        let client = database.client().await;
        let server = Site::new(&database)
            .set("rewrap.pool_mode", quote(pooler))
            .set("rewrap.page_size", "100")
            .start()
            .await;
        let good = i64::try_from(rows - lost.len()).unwrap();
        let calls = [(true, good), (false, good), (false, 0)];
        for (call, (dry_run, updated)) in calls.into_iter().enumerate() {
            let request = json!({"dryRun": dry_run});
            let answer = reencrypt(&server, certs::admin(), request).await;
            let error = answer.expect_err(&case);
            assert_eq!(
                error.reason().as_deref(),
                Some("ROWS_NOT_VISIBLE"),
                "{case}"
            );
            let words = format!("cannot read {} blocks", blocks.len());
            assert!(error.message.contains(&words), "{case}: {}", error.message);
            let record = server.wait_logs("call", call + 1).await.pop().unwrap();
            let count = |name| field(&record, name).and_then(serde_json::Value::as_i64);
            assert_eq!(
                count("rows_failed"),
                i64::try_from(lost.len()).ok(),
                "{case}"
            );
            assert_eq!(count("rows_updated"), Some(updated), "{case}: {record}");
            assert_eq!(
                written(&client).await,
                if dry_run { 0 } else { good },
                "{case}"
            );
        }
        let one = json!({"organizationId": lost[0]});
        let report = reencrypt(&server, certs::admin(), one).await.unwrap();
        assert_eq!(report.rows_failed, 1, "{case}");
        let failure = &report.failures[0];
        assert!(failure.error.contains("cannot read"), "{case}: {failure:?}");
        assert_eq!(failure.organization_id, lost[0]);
    }
}

#[tokio::test]
async fn rows_behind_a_damaged_block_of_the_index_are_done() {
    let postgres = pg::Server::options().setting("autovacuum", "off").start();
    let database = Database::migrated_on(&postgres).await;
    let client = database.client().await;
    seed::insert(&client, &orgs(999)).await;
    let admin = database.admin().await;
    for setting in ["enable_seqscan", "jit"] {
        let sql = format!("ALTER DATABASE {} SET {setting} = off", database.name());
        admin.batch_execute(&sql).await.unwrap();
    }
    // One of its leaves.
    damage(&postgres, &database, "tenant_identity_config_pkey", &[2]).await;
    let client = database.client().await;
    let server = Site::new(&database)
        .set("rewrap.page_size", "100")
        .start()
        .await;
    let answer = reencrypt(&server, certs::admin(), json!({})).await;
    let error = answer.unwrap_err();
    assert_eq!(error.reason().as_deref(), Some("ROWS_NOT_VISIBLE"));
    assert!(error.message.contains("REINDEX"), "{}", error.message);
    let done = written(&client).await;
    assert!((300..999).contains(&done), "{done}");
    let reindex = "REINDEX INDEX tenant_identity_config_pkey";
    client.batch_execute(reindex).await.unwrap();
    let report = run(&server, false).await;
    assert_eq!((report.rows_failed, report.rows_examined), (0, 999));
}
