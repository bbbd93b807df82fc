//! The configured limits of lock waits, and of retries after deadlocks and serialization failures.
//! A problem with one row does not stop the others.

use crate::database::Database;
use crate::faults::{before_update, orgs, raise, raised, until_blocked};
use crate::grpcurl::{Failure, Report, run};
use crate::seed;
use crate::site::Site;

/// The organizations and texts of a report's failures. Checks that all of them are failures of a
/// row as a whole.
fn whole_rows(report: &Report) -> Vec<(&str, &str)> {
    let whole = |failure: &'_ Failure| failure.field.is_empty();
    assert!(report.failures.iter().all(whole), "{report:?}");
    assert_eq!(report.failures.len(), report.rows_failed as usize);
    report
        .failures
        .iter()
        .map(|failure| (failure.organization_id.as_str(), failure.error.as_str()))
        .collect()
}

fn lock(table: &str, condition: &str) -> String {
    format!("BEGIN; SELECT FROM {table} WHERE {condition} FOR UPDATE")
}

#[tokio::test]
async fn a_row_locked_for_too_long_fails_unchanged_and_alone() {
    for table in ["tenant_identity_config", "tenants"] {
        let database = Database::migrated().await;
        let rival = database.client().await;
        seed::insert(&rival, &orgs(3)).await;
        let before = seed::snapshot(&rival).await;
        let server = Site::new(&database)
            .set("rewrap.lock_timeout", "\"200ms\"")
            .start()
            .await;

        rival
            .batch_execute(&lock(table, "organization_id = 'org001'"))
            .await
            .unwrap();
        let report = run(&server, false).await;
        assert_eq!(
            (
                report.rows_examined,
                report.rows_updated,
                report.rows_failed
            ),
            (3, 2, 1),
            "{table}"
        );
        assert_eq!(
            report.fields_reencrypted, 4,
            "{table}: fields of rows that did not fail"
        );
        let [("org001", error)] = whole_rows(&report)[..] else {
            panic!("{table}: {report:?}")
        };
        assert!(
            error.contains("locked") && error.contains("lock_timeout"),
            "{table}: {error}"
        );
        rival.batch_execute("ROLLBACK").await.unwrap();
        assert_eq!(
            seed::snapshot(&rival).await["org001"],
            before["org001"],
            "{table}"
        );

        let report = run(&server, false).await;
        assert_eq!(
            (
                report.rows_updated,
                report.rows_skipped_all_on_target,
                report.rows_failed
            ),
            (1, 2, 0),
            "{table}"
        );
    }
}

#[tokio::test]
async fn a_row_unlocked_in_time_is_written() {
    for table in ["tenant_identity_config", "tenants"] {
        let database = Database::migrated().await;
        let (rival, watch) = (database.client().await, database.client().await);
        seed::insert(&rival, &orgs(3)).await;
        let site = Site::new(&database).set("rewrap.statement_timeout", "\"60s\"");
        let server = site.set("rewrap.lock_timeout", "\"60s\"").start().await;
        rival
            .batch_execute(&lock(table, "organization_id = 'org001'"))
            .await
            .unwrap();
        let release = async {
            until_blocked(&watch).await;
            rival.batch_execute("COMMIT").await.unwrap();
        };
        let (report, ()) = tokio::join!(run(&server, false), release);
        assert_eq!((report.rows_updated, report.rows_failed), (3, 0), "{table}");
    }
}

#[tokio::test]
async fn a_table_of_locked_rows_gives_a_failure_for_each_row() {
    // Fewer connections than locked rows, and a shorter wait for the pool than all the rows take.
    for database_pool_size in ["1", "3"] {
        let database = Database::migrated().await;
        let rival = database.client().await;
        seed::insert(&rival, &orgs(24)).await;
        let site = Site::new(&database).set("rewrap.database_pool_size", database_pool_size);
        let site = site
            .set("rewrap.page_size", "6")
            .set("rewrap.lock_timeout", "\"100ms\"");
        let server = site
            .set("rewrap.pool_acquire_timeout", "\"150ms\"")
            .start()
            .await;
        rival.batch_execute(&lock("tenants", "true")).await.unwrap();
        let report = run(&server, false).await;
        assert_eq!(
            (report.rows_failed, whole_rows(&report).len()),
            (24, 24),
            "{database_pool_size}"
        );
    }
}

#[tokio::test]
async fn conflicts_are_retried_and_other_errors_are_failures_of_their_row() {
    // The SQLSTATE, how often it is raised, the limit of attempts, and the expected words of the
    // failure.
    let table: [(&str, Option<u32>, i64, &[&str]); 11] = [
        ("40001", Some(2), 3, &[]),
        ("40P01", Some(2), 3, &[]),
        ("40001", None, 3, &["40001", "max_attempts"]),
        ("40P01", None, 3, &["40P01", "max_attempts"]),
        ("23514", None, 1, &["23514"]),
        ("P0001", None, 1, &["P0001"]),
        ("XX000", None, 1, &["XX000"]),
        ("0A000", None, 3, &["0A000"]),
        ("42703", None, 3, &["42703"]),
        ("57014", None, 1, &["statement_timeout"]),
        ("42501", None, 1, &["42501", "privilege"]),
    ];
    let database = Database::migrated().await;
    let client = database.client().await;
    seed::insert(&client, &orgs(table.len() + 1)).await;
    let before = seed::snapshot(&client).await;
    for (i, (sqlstate, times, _, _)) in table.iter().enumerate() {
        raise(&client, &format!("org{i:03}"), sqlstate, *times).await;
    }
    let server = Site::new(&database)
        .set("rewrap.max_attempts", "3")
        .start()
        .await;
    let report = run(&server, false).await;
    let after = seed::snapshot(&client).await;
    let failures = whole_rows(&report);
    for (i, (sqlstate, times, attempts, names)) in table.iter().enumerate() {
        let id = format!("org{i:03}");
        let failure = failures
            .iter()
            .find(|(organization, _)| **organization == id);
        assert_eq!(
            raised(&client, &id).await,
            *attempts,
            "{sqlstate} {times:?}"
        );
        assert_eq!(
            failure.is_some(),
            times.is_none(),
            "{sqlstate} {times:?}: {failure:?}"
        );
        assert_eq!(
            after[&id] == before[&id],
            times.is_none(),
            "{sqlstate} {times:?}"
        );
        let named = names.iter().all(|name| failure.unwrap().1.contains(name));
        assert!(named, "{sqlstate}: {failure:?}");
        assert!(
            failure.is_none_or(|(_, error)| !error.contains("made by a test")),
            "Postgres's text stays inside"
        );
    }
    assert_eq!((report.rows_updated, report.rows_failed), (3, 9));
}

#[tokio::test]
async fn a_statement_that_takes_too_long_is_a_failure_of_its_row() {
    let database = Database::migrated().await;
    let client = database.client().await;
    seed::insert(&client, &orgs(3)).await;
    before_update(
        &client,
        "stuck",
        "OLD.organization_id = 'org001'",
        "PERFORM pg_sleep(60);",
    )
    .await;
    let server = Site::new(&database)
        .set("rewrap.statement_timeout", "\"500ms\"")
        .start()
        .await;
    let report = run(&server, false).await;
    assert_eq!((report.rows_updated, report.rows_failed), (2, 1));
    let [("org001", error)] = whole_rows(&report)[..] else {
        panic!("{report:?}")
    };
    assert!(error.contains("statement_timeout"), "{error}");
}
