//! Limits the number of statements and commits of a run, which keeps a run fast. Counts are
//! reproducible, but times are not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nico_rewrap::store::database::Database as Target;
use nico_rewrap::store::{PoolMode, Position, Store, StoreOptions};

use crate::database::Database;
use crate::faults::{orgs, until};
use crate::grpcurl::run;
use crate::locked_rows::options;
use crate::pg;
use crate::proxy::Proxy;
use crate::seed::{self, Org};
use crate::server::Server;
use crate::site::Site;

/// How often our role called each statement since the last call of this function. The key is the
/// first line of the statement, which has its name.
async fn statements(admin: &tokio_postgres::Client) -> BTreeMap<String, i64> {
    let sql = "SELECT split_part(query, E'\\n', 1), sum(calls)::bigint FROM pg_stat_statements s \
        JOIN pg_roles r ON r.oid = s.userid WHERE r.rolname = $1 GROUP BY 1";
    let rows = admin.query(sql, &[&pg::OWNER]).await.unwrap();
    admin
        .batch_execute("SELECT pg_stat_statements_reset()")
        .await
        .unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[tokio::test]
async fn a_row_takes_one_statement_and_a_page_three() {
    let postgres = pg::Server::with_statistics();
    let database = Database::migrated_on(&postgres).await;
    let admin = database.count_statements().await;
    let client = database.client().await;
    let orgs: Vec<_> = (0..100)
        .map(|i| Org::under(&format!("org-{i:03}"), "kv1"))
        .collect();
    seed::insert(&client, &orgs).await;
    let server_with_pages_of = async |rows: &str| {
        Site::new(&database)
            .set("rewrap.page_size", rows)
            // The number of load samples depends on the time, not on the rows.
            .set("rewrap.adaptive_rate", "false")
            .start()
            .await
    };
    let count = async |server: &Server, dry_run: bool| {
        statements(&admin).await;
        run(server, dry_run).await;
        let mut calls = statements(&admin).await;
        // Statements of new connections, and of the ping every two seconds.
        let not_of_the_run = [
            "SET ",
            "-- backend_pid",
            "-- missing_privileges",
            "-- columns_of_table",
            "-- ping",
            "-- state_schema",
            "-- try_lock_site",
            "-- ping_site_lock",
            "-- unlock_site",
        ];
        calls.retain(|name, _| !not_of_the_run.iter().any(|other| name.starts_with(other)));
        calls
    };
    let total = |calls: &BTreeMap<String, i64>| calls.values().sum::<i64>();

    let server = server_with_pages_of("40").await;
    let three_pages = count(&server, true).await;
    let ten_pages = count(&server_with_pages_of("11").await, true).await;
    // Start a transaction, read the page, and commit.
    let difference = total(&ten_pages) - total(&three_pages);
    assert!(difference <= 3 * 7, "{three_pages:?} {ten_pages:?}");

    let apply = count(&server, false).await;
    // The lock of the site, and up to ten rows of each key. The first apply takes a census for that.
    let difference = total(&apply) - total(&three_pages);
    assert!(difference <= 100 + 30, "{three_pages:?} {apply:?}");
    // The check of the keys looks for secrets that the server has not written itself.
    let on_target = count(&server, false).await;
    let difference = total(&on_target) - total(&three_pages);
    assert!(difference <= 60, "{three_pages:?} {on_target:?}");
    assert!(total(&three_pages) < 50, "{three_pages:?}");
}

#[tokio::test]
async fn the_transaction_of_a_page_ends_before_the_page_is_returned() {
    for pooler in [PoolMode::Session, PoolMode::Transaction] {
        let database = Database::migrated().await;
        let watch = database.client().await;
        seed::insert(&watch, &orgs(2)).await;
        let proxy = Proxy::to(pg::Server::shared().port()).await;
        let target = Target::parse(&proxy.url(&database), None, Duration::from_secs(30)).unwrap();
        let store = Store::new(&target, options(pooler)).unwrap();
        // Connect, and prepare the statements.
        store.page(&Position::default()).await.unwrap();
        let now = "SELECT clock_timestamp()::text";
        let now: String = watch.query_one(now, &[]).await.unwrap().get(0);
        proxy.hold_answers();
        let ended = format!(
            "EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
                AND application_name = 'nico-rewrap' AND state = 'idle' AND query = 'COMMIT'
                AND query_start > '{now}')"
        );
        let answers_held = async {
            until(&watch, &ended).await;
            proxy.relay();
        };
        let start = Position::default();
        let (page, ()) = tokio::join!(store.page(&start), answers_held);
        assert_eq!(page.unwrap().rows.len(), 2);
    }
}

#[tokio::test]
async fn pages_of_ordinary_rows_use_one_connection() {
    let database = Database::migrated().await;
    let client = database.client().await;
    // A page of these rows is full before it has 1000 of them.
    let text = "x".repeat(3000);
    let orgs: Vec<_> = (0..3000)
        .map(|i| Org::new(&format!("org{i:04}")).text(0, &text))
        .collect();
    seed::insert(&client, &orgs).await;
    let target = Target::parse(&database.url(), None, Duration::from_secs(30)).unwrap();
    let options = StoreOptions {
        page_size: 1000,
        ..options(PoolMode::Session)
    };
    let store = Store::new(&target, options).unwrap();
    let sql = "SELECT pid FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'nico-rewrap'";
    let mut sessions = BTreeSet::new();
    let mut next = Some(Position::default());
    let mut pages = 0;
    while let Some(position) = next {
        next = store.page(&position).await.unwrap().next;
        pages += 1;
        let rows = client.query(sql, &[]).await.unwrap();
        sessions.extend(rows.iter().map(|row| row.get::<_, i32>(0)));
    }
    assert_eq!(pages, 4);
    assert_eq!(sessions.len(), 1);
}
