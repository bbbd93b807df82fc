//! Limits the number of statements and commits of a run, which keeps a run fast. Counts are
//! reproducible, times are not.

use std::collections::BTreeMap;
use std::time::Duration;

use nico_rewrap::store::database::Database as Target;
use nico_rewrap::store::{PoolMode, Position, Store};

use crate::database::Database;
use crate::faults::{orgs, until};
use crate::grpcurl::run;
use crate::locked_rows::options;
use crate::pg;
use crate::proxy::Proxy;
use crate::seed::{self, Org};
use crate::site::Site;

/// The number of calls of each statement by our role since the last time. The key is the name in
/// the first line of the statement.
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
async fn a_row_costs_one_statement_and_a_page_three() {
    let postgres = pg::Server::options()
        .setting("shared_preload_libraries", "pg_stat_statements")
        .start();
    let database = Database::migrated_on(&postgres).await;
    let admin = database.admin().await;
    admin
        .batch_execute("CREATE EXTENSION pg_stat_statements")
        .await
        .unwrap();
    let client = database.client().await;
    let orgs: Vec<_> = (0..100)
        .map(|i| Org::under(&format!("org-{i:03}"), "kv1"))
        .collect();
    seed::insert(&client, &orgs).await;
    let server = Site::new(&database)
        .set("rewrap.page_size", "40")
        // Looks are by the clock, not by the row.
        .set("rewrap.adaptive_rate", "false")
        .start()
        .await;

    let pages = [
        ("-- first_page", 1),
        ("-- next_page", 2),
        // Which server it is, to be compared at the barrier.
        ("-- incarnation", 1),
        // Whether every row can be seen, before and after; and what is in the table at the end.
        ("-- preflight", 2),
        ("-- collation", 1),
        ("-- all_ids", 1),
        ("START TRANSACTION READ ONLY", 7),
        (
            "START TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY",
            1,
        ),
        ("COMMIT", 8),
        // Whatever a report says is durable, also what it only found.
        ("-- barrier", 1),
    ];
    let expect = |extra: &[(&str, i64)]| -> BTreeMap<String, i64> {
        let all = pages.iter().chain(extra);
        all.map(|(name, calls)| ((*name).to_owned(), *calls))
            .collect()
    };
    let costs = async |dry_run: bool| {
        statements(&admin).await;
        run(&server, dry_run).await;
        let mut calls = statements(&admin).await;
        // A new connection costs some, and a look at the database every two seconds others.
        let not_of_the_run = [
            "SET ",
            "-- backend_pid",
            "-- missing_privileges",
            "-- columns_of_table",
            "-- ping",
        ];
        calls.retain(|name, _| !not_of_the_run.iter().any(|other| name.starts_with(other)));
        calls
    };
    assert_eq!(costs(true).await, expect(&[]), "a dry run");
    let writes = [("-- replace_row", 100)];
    assert_eq!(costs(false).await, expect(&writes), "an apply");
    assert_eq!(costs(false).await, expect(&[]), "with nothing to do");
}

#[tokio::test]
async fn a_page_is_read_to_its_end_before_anything_of_it_is_answered() {
    for pooler in [PoolMode::Session, PoolMode::Transaction] {
        let database = Database::migrated().await;
        let watch = database.client().await;
        seed::insert(&watch, &orgs(2)).await;
        let proxy = Proxy::to(pg::Server::shared().port()).await;
        let target = Target::parse(&proxy.url(&database), None, Duration::from_secs(30)).unwrap();
        let store = Store::new(&target, options(pooler)).unwrap();
        // Connected, and prepared.
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
