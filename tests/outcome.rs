//! The effect of a run on the counters and on a row.

use std::time::{Duration, SystemTime};

use tokio_postgres::Client;

use crate::database::Database;
use crate::grpcurl::{self, Report};
use crate::seal::{is_canonical, key_id, keys, open};
use crate::seed::{self, Org, Row};
use crate::server::Server;
use crate::site::Site;

/// The counters of a report. [`counters`] checks that `rows_examined` is their sum.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Counters {
    pub(crate) updated: u32,
    pub(crate) skipped: u32,
    pub(crate) failed: u32,
    pub(crate) reencrypted: u32,
    pub(crate) on_target: u32,
}

/// The counters of a report. Panics if they do not add up.
pub(crate) fn counters(report: &Report) -> Counters {
    let counters = Counters {
        updated: report.rows_updated,
        skipped: report.rows_skipped_all_on_target,
        failed: report.rows_failed,
        reencrypted: report.fields_reencrypted,
        on_target: report.fields_skipped_on_target,
    };
    let sum = counters.updated + counters.skipped + counters.failed;
    assert_eq!(report.rows_examined, sum, "{report:?}");
    counters
}

/// A database with these organizations, and the usual server: target `kv2`, and `kv1` still in the
/// secrets.
pub(crate) async fn serve(orgs: &[Org]) -> (Database, Client, Server) {
    let (database, client) = seeded(orgs).await;
    let server = Site::new(&database).start().await;
    (database, client, server)
}

/// A database with these organizations, and a connection to it.
pub(crate) async fn seeded(orgs: &[Org]) -> (Database, Client) {
    let database = Database::migrated().await;
    let client = database.client().await;
    seed::insert(&client, orgs).await;
    (database, client)
}

/// A database whose organization ids have a linguistic sort order, regardless of the server's
/// default.
pub(crate) async fn linguistic(orgs: &[Org]) -> (Database, Client) {
    let (database, client) = seeded(&[]).await;
    for table in ["tenant_identity_config", "tenants"] {
        let sql = format!(
            "ALTER TABLE {table} ALTER COLUMN organization_id TYPE text COLLATE \"en-x-icu\""
        );
        client.batch_execute(&sql).await.unwrap();
    }
    seed::insert(&client, orgs).await;
    (database, client)
}

/// A site-wide dry run and an apply. Both must report the same.
pub(crate) async fn dry_run_then_apply(server: &Server) -> Report {
    let said = without_id(grpcurl::run(server, true).await);
    let done = without_id(grpcurl::run(server, false).await);
    assert_eq!(said, done, "a dry run says what a run will do");
    done
}

/// The report without its run id, for comparison with another run.
pub(crate) fn without_id(report: Report) -> Report {
    Report {
        run_id: None,
        ..report
    }
}

/// Checks that the row was written exactly once, just now, and correctly. Every secret is under
/// `target` in the canonical form and has its old plaintext. A secret that was already there has
/// the same bytes. The version is one higher, and nothing else changed. For rows under the usual
/// keys of the tests.
pub(crate) fn assert_rewrapped(before: &Row, after: &Row, target: &str) {
    for (old, new) in before.texts.iter().zip(&after.texts) {
        match (old.as_deref(), new.as_deref()) {
            (Some(old), Some(new)) if !old.is_empty() && key_id(old) != target => {
                let keys = keys(&[&key_id(old), target]);
                let (under, plaintext) = open(new, &keys).unwrap();
                assert_eq!(under, target);
                assert_eq!(plaintext, open(old, &keys).unwrap().1);
                assert!(is_canonical(new), "{new}");
            }
            (old, new) => assert_eq!(old, new),
        }
    }
    assert_ne!(before.texts, after.texts, "something was re-wrapped");
    let ((old_number, _), (number, time)) = (before.version_parts(), after.version_parts());
    assert_eq!(number, old_number + 1);
    assert_current(time);
    assert_current(after.updated_at);
    assert_eq!(before.others, after.others);
}

/// Checks that a time is recent.
pub(crate) fn assert_current(time: SystemTime) {
    let away = SystemTime::now()
        .duration_since(time)
        .unwrap_or_else(|e| e.duration());
    assert!(away < Duration::from_secs(60), "{away:?} away from now");
}
