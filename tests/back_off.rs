//! A site-wide apply makes room for whoever else uses the database, and shows it.

use std::time::Duration;

use nico_rewrap::database::Database as Target;
use nico_rewrap::store::{Commit, Pooler, Store, StoreOptions};
use tokio::time::sleep;
use tokio_postgres::Client;

use crate::database::Database;
use crate::faults::orgs;
use crate::grpcurl::{Report, run};
use crate::seed;
use crate::server::Server;
use crate::site::Site;

const LIMIT: &str = "nico_rewrap_back_off_rows_per_second";
const COMMIT: &str = "nico_rewrap_database_commit_seconds";

/// Enough for several looks at the pace that a run starts with beside others.
const ROWS: usize = 2500;

/// Uses the database until it is dropped.
struct Busy(tokio::task::JoinHandle<()>);

impl Busy {
    fn with(client: Client) -> Self {
        Self(tokio::spawn(async move {
            loop {
                client.batch_execute("SELECT 1").await.unwrap();
                sleep(Duration::from_millis(50)).await;
            }
        }))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn site(back_off: &str) -> (Server, Busy) {
    let database = Database::migrated().await;
    let client = database.client().await;
    seed::insert(&client, &orgs(ROWS)).await;
    let site = Site::new(&database).set("rewrap.back_off", back_off);
    let server = site.start().await;
    (server, Busy::with(client))
}

/// Applies to the site; the report, and the highest limit that was shown meanwhile.
async fn watched_run(server: &Server) -> (Report, f64) {
    let mut shown = 0.0_f64;
    let mut run = std::pin::pin!(run(server, false));
    loop {
        let limit = async {
            sleep(Duration::from_millis(5)).await;
            server.metric(LIMIT, &[]).await.unwrap_or_default()
        };
        tokio::select! {
            report = &mut run => return (report, shown),
            limit = limit => shown = shown.max(limit),
        }
    }
}

#[tokio::test]
async fn an_apply_beside_others_has_a_limit_and_shows_it() {
    let (server, _busy) = site("true").await;
    let (report, shown) = watched_run(&server).await;
    assert_eq!(report.rows_updated as usize, ROWS);
    assert!(shown > 0.0);
    assert!(server.metric(COMMIT, &[]).await.unwrap() > 0.0);
    assert_eq!(server.metric(LIMIT, &[]).await, Some(0.0), "after the run");
}

#[tokio::test]
async fn a_site_can_do_without() {
    let (server, _busy) = site("false").await;
    let (report, shown) = watched_run(&server).await;
    assert_eq!(report.rows_updated as usize, ROWS);
    assert_eq!((shown, server.metric(COMMIT, &[]).await), (0.0, None));
}

#[tokio::test]
async fn others_are_seen_for_as_long_as_they_do_something() {
    let database = Database::migrated().await;
    let target = Target::parse(&database.url(), None, Duration::from_secs(30)).unwrap();
    let store = Store::new(&target, options()).unwrap();
    let until_others = async |wanted: bool| {
        while store.load().await.unwrap().others != wanted {
            sleep(Duration::from_millis(50)).await;
        }
    };
    // What the fixture did to the database is past at some time.
    until_others(false).await;
    let busy = Busy::with(database.client().await);
    until_others(true).await;
    drop(busy);
    until_others(false).await;
}

fn options() -> StoreOptions {
    StoreOptions {
        max_connections: 1,
        page_size: 100,
        lock_timeout: Duration::from_secs(2),
        statement_timeout: Duration::from_secs(30),
        pool_wait: Duration::from_secs(30),
        max_attempts: 5,
        pipeline_depth: 1,
        commit: Commit::Barrier,
        pooler: Pooler::Session,
    }
}
