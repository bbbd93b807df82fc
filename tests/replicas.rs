//! Real replicas of the database. A run slows down when a replica falls behind, and reports no row
//! that a synchronous replica lacks.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::adaptive_rate::{LIMIT, run_alone};
use crate::database::Database;
use crate::faults::{orgs, until};
use crate::grpcurl::run;
use crate::pg::{self, OWNER};
use crate::process::{Supervised, lasting_dir, signal};
use crate::seal::key_id;
use crate::seed::{self, snapshot};
use crate::server::Server;
use crate::site::Site;

pub(crate) const LAG: &str = "nico_rewrap_database_replica_lag_seconds";

/// The limits of an adaptive run: the lowest rate in rows per second, and the replica lag in
/// seconds.
const LEAST: f64 = 200.0;
const BEHIND: f64 = 5.0;

/// A database with organizations under `kv1`, and a standby of its server.
pub(crate) struct Replicated {
    pub(crate) database: Database,
    pub(crate) client: Client,
    /// A connection to the standby.
    standby_admin: Client,
    _standby: pg::Server,
    primary: pg::Server,
}

impl Replicated {
    pub(crate) async fn with(organizations: usize) -> Self {
        let primary = primary();
        let database = Database::migrated_on(&primary).await;
        let client = database.client().await;
        seed::insert(&client, &orgs(organizations)).await;
        let may_see = format!("GRANT pg_monitor TO {OWNER}");
        let admin = database.admin().await;
        admin.batch_execute(&may_see).await.unwrap();
        let standby = primary.standby();
        // Before its first report, it cannot be distinguished from an archiver.
        let known = "EXISTS (SELECT FROM pg_stat_replication
            WHERE state = 'streaming' AND replay_lsn IS NOT NULL)";
        until(&admin, known).await;
        let standby_admin = database.on_standby(&standby).admin().await;
        Self {
            database,
            client,
            standby_admin,
            _standby: standby,
            primary,
        }
    }

    /// The process of the standby that receives WAL.
    async fn receiver(&self) -> u32 {
        let sql = "SELECT pid FROM pg_stat_wal_receiver";
        let pid: i32 = self.standby_admin.query_one(sql, &[]).await.unwrap().get(0);
        pid.try_into().unwrap()
    }
}

/// A primary that never disconnects a silent replica.
fn primary() -> pg::Server {
    pg::Server::options()
        .setting("wal_sender_timeout", "0")
        .start()
}

/// The ways in which a standby stops.
#[derive(Clone, Copy)]
enum Standstill {
    /// It receives WAL but does not replay it, and reports that.
    Paused,
    /// It sends nothing.
    Silent,
}

impl Standstill {
    async fn begin(self, replicated: &Replicated) {
        match self {
            Self::Paused => {
                let pause = "SELECT pg_wal_replay_pause()";
                replicated.standby_admin.batch_execute(pause).await.unwrap();
                let paused = "pg_get_wal_replay_pause_state() = 'paused'";
                until(&replicated.standby_admin, paused).await;
            }
            Self::Silent => signal(&[replicated.receiver().await], "STOP"),
        }
    }

    async fn end(self, replicated: &Replicated) {
        match self {
            Self::Paused => {
                let resume = "SELECT pg_wal_replay_resume()";
                replicated
                    .standby_admin
                    .batch_execute(resume)
                    .await
                    .unwrap();
            }
            Self::Silent => signal(&[replicated.receiver().await], "CONT"),
        }
    }
}

/// Waits until a gauge of the server has a fitting value, or none.
async fn until_shown(server: &Server, gauge: &str, fits: impl Fn(Option<f64>) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let shown = server.metric(gauge, &[]).await;
        if fits(shown) {
            return;
        }
        assert!(Instant::now() < deadline, "{gauge} is {shown:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_run_slows_down_for_a_replica_that_does_not_replay() {
    a_run_gives_way_until_the_end_of(Standstill::Paused).await;
}

#[tokio::test]
async fn a_run_slows_down_for_a_silent_replica() {
    a_run_gives_way_until_the_end_of(Standstill::Silent).await;
}

async fn a_run_gives_way_until_the_end_of(standstill: Standstill) {
    let replicated = Replicated::with(20).await;
    let client = &replicated.client;
    let server = Site::new(&replicated.database)
        .set("rewrap.statement_timeout", "\"100s\"")
        .set("rewrap.lock_timeout", "\"100s\"")
        .start()
        .await;
    // The run lasts while one of its rows is locked.
    let hold = "BEGIN; SELECT FROM tenants WHERE organization_id = 'org007' FOR UPDATE";
    client.batch_execute(hold).await.unwrap();
    standstill.begin(&replicated).await;
    let meanwhile = async {
        until_shown(&server, LAG, |lag| lag.is_some_and(|lag| lag > BEHIND)).await;
        // There are no other clients now, so the limit comes from the replica.
        until_shown(&server, LIMIT, |limit| limit == Some(LEAST)).await;
        standstill.end(&replicated).await;
        until_shown(&server, LAG, |lag| lag.is_none_or(|lag| lag < BEHIND)).await;
        until_shown(&server, LIMIT, |limit| limit.is_none()).await;
    };
    let mut report = std::pin::pin!(run(&server, false));
    tokio::select! {
        report = &mut report => panic!("before its last row: {report:?}"),
        () = meanwhile => {}
    }
    client.batch_execute("ROLLBACK").await.unwrap();
    let report = report.await;
    assert_eq!((report.rows_updated, report.rows_failed), (20, 0));
    assert_eq!(under(client, "kv2").await, 20);
}

#[tokio::test]
async fn a_replica_without_lag_does_not_slow_a_run_down() {
    let replicated = Replicated::with(2500).await;
    let site = Site::new(&replicated.database);
    let seen = run_alone(site, &replicated.database, replicated.client).await;
    assert_eq!(seen.report.rows_updated, 2500);
    assert_eq!(seen.limit, 0.0);
    assert!(seen.lag < BEHIND, "{}", seen.lag);
}

#[tokio::test]
async fn an_archiver_of_the_log_does_not_count_as_a_replica() {
    let primary = primary();
    let database = Database::migrated_on(&primary).await;
    let client = database.client().await;
    seed::insert(&client, &orgs(2500)).await;
    let may_see = format!("GRANT pg_monitor TO {OWNER}");
    let admin = Database::on(&primary).await.admin().await;
    admin.batch_execute(&may_see).await.unwrap();
    let _archive = receive_log(&primary);
    // It never reports replayed WAL, so Postgres shows a growing lag.
    let behind = "EXISTS (SELECT pg_logical_emit_message(true, 'test', '')) AND
        EXISTS (SELECT FROM pg_stat_replication WHERE replay_lag > interval '6 s')";
    until(&admin, behind).await;
    let seen = run_alone(Site::new(&database), &database, client).await;
    assert_eq!(seen.report.rows_updated, 2500);
    assert_eq!((seen.limit, seen.lag), (0.0, 0.0));
}

/// Runs `pg_receivewal`, as backup software does.
fn receive_log(primary: &pg::Server) -> Supervised {
    let dir = lasting_dir("archive");
    crate::pg_host::give_to_postgres(&dir);
    let (socket, port) = (primary.socket_dir(), primary.port().to_string());
    let program = crate::pg_host::binary("pg_receivewal");
    let args = [
        "-h",
        socket.to_str().unwrap(),
        "-p",
        &port,
        "-U",
        pg::SUPERUSER,
    ];
    let more = ["-D", dir.to_str().unwrap(), "--status-interval=1"];
    Supervised::spawn(&program, args.into_iter().chain(more), "TERM", |command| {
        crate::pg_host::as_postgres(command).current_dir(&dir);
    })
}

/// The number of rows whose secrets are all under this key.
async fn under(client: &Client, key: &str) -> usize {
    let rows = snapshot(client).await;
    let whole = rows.values().filter(|row| {
        let mut texts = row.texts.iter().flatten();
        texts.all(|text| key_id(text) == key)
    });
    whole.count()
}

#[tokio::test]
async fn a_report_waits_only_for_synchronous_replicas() {
    for (synchronous, dry_run) in [(true, false), (true, true), (false, false)] {
        let case = format!("synchronous: {synchronous}, dry run: {dry_run}");
        let replicated = Replicated::with(20).await;
        let client = &replicated.client;
        let admin = replicated.database.admin().await;
        if synchronous {
            let require = "ALTER SYSTEM SET synchronous_standby_names = '*'";
            admin.batch_execute(require).await.unwrap();
            let reload = "SELECT pg_reload_conf()";
            admin.batch_execute(reload).await.unwrap();
            let sync = "EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')";
            until(&admin, sync).await;
        }
        // Without the load probe, whose commits also wait for the replica.
        let site = Site::new(&replicated.database).set("rewrap.adaptive_rate", "false");
        let server = site.start().await;
        let receiver = replicated.receiver().await;
        signal(&[receiver], "STOP");
        let report = if synchronous {
            let mut report = std::pin::pin!(run(&server, dry_run));
            let held = "EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'nico-rewrap'
                AND query LIKE '-- barrier%' AND wait_event = 'SyncRep')";
            tokio::select! {
                report = &mut report => panic!("{case}: without the replica: {report:?}"),
                () = until(&admin, held) => {}
            }
            // Only the report waits.
            let written = if dry_run { 0 } else { 20 };
            assert_eq!(under(client, "kv2").await, written, "{case}");
            signal(&[receiver], "CONT");
            report.await
        } else {
            let report = run(&server, dry_run).await;
            signal(&[receiver], "CONT");
            report
        };
        assert_eq!((report.rows_updated, report.rows_failed), (20, 0), "{case}");
        if synchronous && !dry_run {
            replicated.primary.stop_immediate();
            let replayed = "pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn()";
            until(&replicated.standby_admin, replayed).await;
            assert_eq!(under(&replicated.standby_admin, "kv2").await, 20, "{case}");
        }
    }
}
