//! A site-wide apply slows down when other clients use the database, and its metrics show this.

use std::collections::BTreeSet;
use std::time::Duration;

use nico_rewrap::store::database::Database as Target;
use nico_rewrap::store::{Durability, LoadProbe, PoolMode, Store, StoreOptions};
use tokio::time::sleep;
use tokio_postgres::Client;

use crate::database::Database;
use crate::faults::orgs;
use crate::grpcurl::{Report, run};
use crate::replicas::LAG;
use crate::seed;
use crate::server::Server;
use crate::site::Site;

pub(crate) const LIMIT: &str = "nico_rewrap_rate_limit_rows_per_second";
const COMMIT: &str = "nico_rewrap_database_commit_seconds";
const BASELINE: &str = "nico_rewrap_database_commit_baseline_seconds";

/// Enough rows for several load samples at the initial rate of a run beside other clients.
pub(crate) const ROWS: usize = 2500;

/// A tenant that writes until this value is dropped.
pub(crate) struct Busy(tokio::task::JoinHandle<()>);

impl Busy {
    pub(crate) fn with(client: Client) -> Self {
        Self(tokio::spawn(async move {
            loop {
                let write = "UPDATE tenants SET organization_name = 'busy' WHERE organization_id = 'org000'";
                client.batch_execute(write).await.unwrap();
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

async fn site(settings: &[(&str, &str)]) -> (Server, Busy) {
    let database = Database::migrated().await;
    let client = database.client().await;
    seed::insert(&client, &orgs(ROWS)).await;
    let mut site = Site::new(&database);
    for (setting, value) in settings {
        site = site.set(setting, *value);
    }
    let server = site.start().await;
    (server, Busy::with(client))
}

/// What the metrics showed during a run.
pub(crate) struct Seen {
    pub(crate) report: Report,
    /// The highest rate limit.
    pub(crate) limit: f64,
    /// The highest lag of a replica.
    pub(crate) lag: f64,
    /// Distinct commit latencies, so at least as many load samples.
    commits: BTreeSet<String>,
    /// Distinct baselines of the commit latency.
    baselines: BTreeSet<String>,
}

/// Applies to the site, and reads the gauges much more often than they change.
pub(crate) async fn watched_run(server: &Server) -> Seen {
    let mut seen = Seen {
        report: Report::default(),
        limit: 0.0,
        lag: 0.0,
        commits: BTreeSet::new(),
        baselines: BTreeSet::new(),
    };
    let mut run = std::pin::pin!(run(server, false));
    loop {
        let sample = async {
            sleep(Duration::from_millis(5)).await;
            for (gauge, highest) in [(LIMIT, &mut seen.limit), (LAG, &mut seen.lag)] {
                let shown = server.metric(gauge, &[]).await.unwrap_or_default();
                *highest = highest.max(shown);
            }
            for (gauge, values) in [(COMMIT, &mut seen.commits), (BASELINE, &mut seen.baselines)] {
                let shown = server.metric(gauge, &[]).await;
                values.extend(shown.map(|shown| shown.to_string()));
            }
        };
        tokio::select! {
            report = &mut run => {
                seen.report = report;
                return seen;
            }
            () = sample => {}
        }
    }
}

/// A run on a database without other clients, slow enough for several load samples. Drops `client`,
/// the last other client of the test.
pub(crate) async fn run_alone(site: Site, database: &Database, client: Client) -> Seen {
    let server = site.set("rewrap.max_rows_per_second", "2500").start().await;
    drop(client);
    let store = Store::new(&target(database), options()).unwrap();
    until_other_activity(&mut store.load_probe(), false).await;
    let seen = watched_run(&server).await;
    assert!(seen.commits.len() >= 3, "{:?}", seen.commits);
    assert_nothing_is_left(&server).await;
    seen
}

/// After the run, nobody knows the load any longer.
async fn assert_nothing_is_left(server: &Server) {
    for gauge in [LIMIT, LAG, COMMIT, BASELINE] {
        assert_eq!(server.metric(gauge, &[]).await, None, "{gauge}");
    }
}

fn target(database: &Database) -> Target {
    Target::parse(&database.url(), None, Duration::from_secs(30)).unwrap()
}

/// Waits until other clients use the database, or until none does.
async fn until_other_activity(load_probe: &mut LoadProbe<'_>, wanted: bool) {
    while load_probe.sample().await.unwrap().other_activity != wanted {
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn without_other_clients_a_run_has_no_limit() {
    let database = Database::migrated().await;
    let client = database.client().await;
    seed::insert(&client, &orgs(ROWS)).await;
    let seen = run_alone(Site::new(&database), &database, client).await;
    assert_eq!(seen.report.rows_updated as usize, ROWS);
    assert_eq!(seen.limit, 0.0);
}

#[tokio::test]
async fn with_other_clients_a_run_has_a_limit_and_a_metric_shows_it() {
    let (server, _busy) = site(&[]).await;
    let seen = watched_run(&server).await;
    assert_eq!(seen.report.rows_updated as usize, ROWS);
    assert!(seen.limit > 0.0);
    assert!(!seen.commits.is_empty() && !seen.baselines.is_empty());
    assert_nothing_is_left(&server).await;
}

#[tokio::test]
async fn the_baseline_of_the_commit_latency_is_updated_during_a_run() {
    // The run takes three seconds, and samples the load several times.
    let (server, _busy) = site(&[("rewrap.max_rows_per_second", "800")]).await;
    let seen = watched_run(&server).await;
    assert_eq!(seen.report.rows_updated as usize, ROWS);
    assert!(seen.baselines.len() >= 2, "{:?}", seen.baselines);
}

#[tokio::test]
async fn without_adaptive_rate_a_run_has_no_limit_and_samples_nothing() {
    let (server, _busy) = site(&[("rewrap.adaptive_rate", "false")]).await;
    let seen = watched_run(&server).await;
    assert_eq!(seen.report.rows_updated as usize, ROWS);
    assert_eq!((seen.limit, server.metric(COMMIT, &[]).await), (0.0, None));
}

#[tokio::test]
async fn other_clients_are_seen_only_while_they_are_active() {
    let database = Database::migrated().await;
    let store = Store::new(&target(&database), options()).unwrap();
    let mut load_probe = store.load_probe();
    // The statements of the fixture count as activity for a while.
    until_other_activity(&mut load_probe, false).await;
    let busy = Busy::with(database.client().await);
    until_other_activity(&mut load_probe, true).await;
    drop(busy);
    until_other_activity(&mut load_probe, false).await;
    // A statement that takes longer than the time after which a client counts as idle.
    let client = database.client().await;
    let long = tokio::spawn(async move { client.batch_execute("SELECT pg_sleep(60)").await });
    sleep(Duration::from_secs(3)).await;
    assert!(load_probe.sample().await.unwrap().other_activity);
    long.abort();
}

fn options() -> StoreOptions {
    StoreOptions {
        database_pool_size: 1,
        page_size: 100,
        lock_timeout: Duration::from_secs(2),
        statement_timeout: Duration::from_secs(30),
        pool_acquire_timeout: Duration::from_secs(30),
        max_attempts: 5,
        pipeline_depth: 1,
        durability: Durability::PerRun,
        pool_mode: PoolMode::Session,
    }
}
