//! A row that cannot be read, is too large, or cannot be written: only this row fails, and memory
//! use does not grow with the stored size.

use std::time::Duration;

use nico_rewrap::domain::rewrap::OVERSIZED;
use nico_rewrap::store::database::Database as Target;
use nico_rewrap::store::{PoolMode, Position, Store, StoreOptions};
use serde_json::json;

use crate::certs;
use crate::database::Database;
use crate::faults::{before_update, orgs};
use crate::grpcurl::{reencrypt, run};
use crate::locked_rows::options;
use crate::outcome::seeded;
use crate::pg;
use crate::seal::seal;
use crate::seed::{self, COLUMNS, Org, snapshot};
use crate::site::Site;

/// 300 organizations, of which `org150` and `org299` have a second signing key that Postgres cannot
/// read.
pub(crate) async fn with_damaged_texts() -> (pg::Server, Database) {
    let postgres = pg::Server::options().setting("autovacuum", "off").start();
    let database = Database::migrated_on(&postgres).await;
    let client = database.client().await;
    // Small enough to be stored in their rows.
    let small = |i| Org::new(&format!("org{i:03}")).text(0, seal("a secret", "kv1"));
    seed::insert(&client, &(0..300).map(small).collect::<Vec<_>>()).await;
    // Stored in the TOAST table, which contains nothing else.
    let apart =
        "ALTER TABLE tenant_identity_config ALTER encrypted_signing_key_2 SET STORAGE EXTERNAL;
        UPDATE tenant_identity_config SET encrypted_signing_key_2 = repeat('x', 5000)
            WHERE organization_id IN ('org150', 'org299');
        CHECKPOINT";
    let admin = database.admin().await;
    admin.batch_execute(apart).await.unwrap();
    let file = "SELECT pg_relation_filepath(reltoastrelid) FROM pg_class
        WHERE oid = 'tenant_identity_config'::regclass";
    let file: String = admin.query_one(file, &[]).await.unwrap().get(0);
    let file = postgres.socket_dir().join("data").join(file);
    postgres.stop_fast();
    let zeros = vec![0; usize::try_from(std::fs::metadata(&file).unwrap().len()).unwrap()];
    std::fs::write(&file, zeros).unwrap();
    postgres.restart();
    (postgres, database)
}

#[tokio::test]
async fn a_row_with_damaged_storage_fails_alone_with_its_column() {
    let (_postgres, database) = with_damaged_texts().await;
    let site = Site::new(&database).set("rewrap.page_size", "100");
    let server = site.start().await;
    for dry_run in [true, false] {
        let report = run(&server, dry_run).await;
        let counted = (report.rows_updated, report.rows_failed);
        assert_eq!(counted, (298, 2), "{:?}", report.failures);
        for (failure, id) in report.failures.iter().zip(["org150", "org299"]) {
            assert_eq!(
                (failure.organization_id.as_str(), failure.field.as_str()),
                (id, COLUMNS[1])
            );
            assert!(failure.error.contains("cannot read"), "{failure:?}");
        }
    }
    let one = json!({"organizationId": "org150"});
    let report = reencrypt(&server, certs::admin(), one).await.unwrap();
    assert_eq!(report.rows_failed, 1);
    assert_eq!(report.failures[0].field, COLUMNS[1]);
}

#[tokio::test]
async fn bytes_that_are_not_utf_8_fail_their_row_alone() {
    let database = Database::migrated().await;
    // The encoding SQL_ASCII, as in old databases.
    let ascii = "UPDATE pg_database SET encoding = 0, datlocprovider = 'c', daticulocale = NULL
        WHERE datname = current_database()";
    let admin = database.admin().await;
    let version = "SELECT current_setting('server_version_num')::int";
    let version: i32 = admin.query_one(version, &[]).await.unwrap().get(0);
    if !(150_000..170_000).contains(&version) {
        return;
    }
    admin.batch_execute(ascii).await.unwrap();
    let client = database.client().await;
    seed::insert(&client, &orgs(50)).await;
    seed::insert(
        &client,
        &[
            Org::under("bad-id", "kv1"),
            Org::under("bad-version", "kv1"),
        ],
    )
    .await;
    let bytes = "SET client_encoding = 'SQL_ASCII';
        UPDATE tenant_identity_config SET encrypted_auth_method_config = E'caf\\351'
            WHERE organization_id = 'org020';
        UPDATE tenants SET version = E'V1\\351' WHERE organization_id = 'bad-version';
        ALTER TABLE tenant_identity_config DROP CONSTRAINT tenant_identity_config_organization_id_fkey;
        UPDATE tenant_identity_config SET organization_id = E'org029\\351' WHERE organization_id = 'bad-id'";
    // The server decodes the escapes, so the client sends only ASCII.
    client.batch_execute(bytes).await.unwrap();
    for page_size in ["1", "7", "1000"] {
        let site = Site::new(&database).set("rewrap.page_size", page_size);
        let report = run(&site.start().await, true).await;
        assert_eq!(
            (report.rows_updated, report.rows_failed),
            (49, 3),
            "{page_size}: {report:?}"
        );
        let failed: Vec<_> = report
            .failures
            .iter()
            .map(|failure| (failure.organization_id.as_str(), failure.field.as_str()))
            .collect();
        let expected = [
            ("bad-version", ""),
            ("org020", COLUMNS[2]),
            ("org029\u{fffd}", ""),
        ];
        assert_eq!(failed, expected, "{page_size}");
    }
}

#[tokio::test]
async fn a_page_is_bounded_by_bytes_and_a_text_over_the_limit_stays_where_it_is() {
    for pooler in [PoolMode::Session, PoolMode::Transaction] {
        let (database, client) = seeded(&orgs(30)).await;
        let large =
            "UPDATE tenant_identity_config SET encrypted_signing_key_1 = repeat('x', 1000000),
                encrypted_signing_key_2 = repeat('x', 1000000), encrypted_auth_method_config = NULL;
            UPDATE tenant_identity_config SET encrypted_auth_method_config = repeat('x', 20000000)
                WHERE organization_id IN ('org000', 'org017')";
        client.batch_execute(large).await.unwrap();
        let target = Target::parse(&database.url(), None, Duration::from_secs(30)).unwrap();
        let options = StoreOptions {
            database_pool_size: 2,
            ..options(pooler)
        };
        let store = Store::new(&target, options).unwrap();
        let (mut found, mut position) = (Vec::new(), Some(Position::default()));
        while let Some(from) = position {
            let page = store.page(&from).await.unwrap();
            let texts = page.rows.iter().flat_map(|row| row.texts.iter().flatten());
            let bytes: usize = texts.map(String::len).sum();
            assert!(bytes <= 8 << 20, "{bytes}");
            for row in page.rows {
                let cut = row.texts[2].as_deref() == Some(OVERSIZED);
                assert_eq!(
                    cut,
                    ["org000", "org017"].contains(&row.organization_id.as_str())
                );
                found.push(row.organization_id);
            }
            position = page.next;
        }
        let all: Vec<_> = (0..30).map(|i| format!("org{i:03}")).collect();
        assert_eq!(found, all);
        let server = Site::new(&database).start().await;
        let report = run(&server, true).await;
        assert_eq!(report.rows_failed, 30);
        let too_long = |failure: &&crate::grpcurl::Failure| failure.error.contains("1 MiB");
        assert_eq!(report.failures.iter().filter(too_long).count(), 2);
    }
}

#[tokio::test]
async fn a_trigger_that_keeps_a_text_or_skips_a_row_fails_it_and_nothing_is_written() {
    let table = [
        (
            "NEW.encrypted_signing_key_1 := OLD.encrypted_signing_key_1;",
            "put another text",
        ),
        (
            "NEW.encrypted_auth_method_config := NULL;",
            "put another text",
        ),
        ("RETURN NULL;", "ignored the write"),
    ];
    for (body, words) in table {
        for pooler in ["session", "transaction"] {
            let (database, client) = seeded(&orgs(4)).await;
            before_update(&client, "meddle", "OLD.organization_id <> 'org002'", body).await;
            let before = snapshot(&client).await;
            let site = Site::new(&database).set("rewrap.pool_mode", format!("\"{pooler}\""));
            let server = site.start().await;
            for (updated, on_target) in [(1, 0), (0, 1)] {
                let report = run(&server, false).await;
                assert_eq!(
                    (
                        report.rows_updated,
                        report.rows_skipped_all_on_target,
                        report.rows_failed
                    ),
                    (updated, on_target, 3),
                    "{body}"
                );
                for failure in &report.failures {
                    assert!(failure.error.contains(words), "{body}: {failure:?}");
                }
            }
            let mut after = snapshot(&client).await;
            after.insert("org002".to_owned(), before["org002"].clone());
            assert_eq!(after, before, "{body}");
        }
    }
}

#[tokio::test]
async fn a_table_that_is_locked_for_a_moment_ends_no_run() {
    for table in ["tenants", "tenant_identity_config"] {
        for pooler in ["session", "transaction"] {
            let (database, client) = seeded(&orgs(5)).await;
            let site = Site::new(&database)
                .set("rewrap.lock_timeout", "\"300ms\"")
                .set("rewrap.pool_mode", format!("\"{pooler}\""));
            let server = site.start().await;
            let lock = format!("BEGIN; LOCK TABLE {table}");
            client.batch_execute(&lock).await.unwrap();
            let release = async {
                tokio::time::sleep(Duration::from_millis(700)).await;
                client.batch_execute("ROLLBACK").await.unwrap();
            };
            let (report, ()) = tokio::join!(run(&server, true), release);
            assert_eq!(report.rows_updated, 5, "{table} {pooler}");
        }
    }
}
