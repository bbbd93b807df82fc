//! The site of a soak: a database behind a relay, and two instances.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::measure::{Sample, Samples};
use super::tenants::Tenants;
use crate::database::Database;
use crate::grpcurl::run;
use crate::live_writers::VERSIONS_GROW;
use crate::pg::{self, OWNER};
use crate::process::lasting_dir;
use crate::proxy::Proxy;
use crate::reload::Files;
use crate::rewrap_client::migrate_state;
use crate::server::Server;
use crate::site::{Site, path};

/// The targets of the instances.
const TARGETS: [&str; 2] = ["kv2", "kv1"];

/// How long a freed connection or file descriptor may stay open.
const IDLE: Duration = Duration::from_secs(60);

pub(super) struct World {
    pub(super) database: Database,
    /// Counts connections.
    pub(super) observer: Client,
    pub(super) proxy: Proxy,
    pub(super) files: Files,
    logs: PathBuf,
    /// The first one runs to the end, and is measured. The second one is killed and restarted.
    instances: [Option<Server>; 2],
    /// The secrets file of the first instance.
    pub(super) secrets: PathBuf,
    pub(super) tenants: Tenants,
    samples: Samples,
    /// File descriptors and connections at the beginning.
    baseline: (usize, usize),
    counts: BTreeMap<&'static str, u64>,
    start: Instant,
    pub(super) postgres: pg::Server,
}

impl World {
    pub(super) async fn new() -> Self {
        let postgres = pg::Server::start();
        let database = Database::migrated_on(&postgres).await;
        let admin = database.admin().await;
        admin.batch_execute(VERSIONS_GROW).await.unwrap();
        let mut world = Self {
            observer: admin,
            proxy: Proxy::to(postgres.port()).await,
            files: Files::new(),
            logs: lasting_dir("soak"),
            instances: [None, None],
            secrets: PathBuf::new(),
            tenants: Tenants::new(&database, 4).await,
            samples: Samples::default(),
            baseline: (0, 0),
            counts: BTreeMap::new(),
            start: Instant::now(),
            database,
            postgres,
        };
        migrate_state(&Site::new(&world.database));
        for number in 0..2 {
            world.start_instance(number).await;
        }
        world
    }

    pub(super) fn count(&mut self, what: &'static str, times: u64) {
        *self.counts.entry(what).or_default() += times;
    }

    pub(super) fn audit_log(&self, number: usize) -> PathBuf {
        self.logs.join(format!("audit-{number}.jsonl"))
    }

    pub(super) async fn start_instance(&mut self, number: usize) {
        let site = Site::with_url(&self.proxy.url(&self.database));
        let site = self.files.site(site);
        let site = site
            .target(TARGETS[number])
            .set("rewrap.audit_log", path(self.audit_log(number)))
            .set("rewrap.census_interval", "\"20s\"")
            .set("rewrap.soak", "\"1s\"")
            .set("rewrap.statement_timeout", "\"20s\"")
            .set("rewrap.lock_timeout", "\"10s\"")
            .set("rewrap.max_rows_per_second", "200")
            .set("rewrap.page_size", "50");
        if number == 0 {
            self.secrets = site.dir().join("secrets.json");
        }
        self.instances[number] = Some(site.start().await);
    }

    pub(super) fn server(&self, number: usize) -> &Server {
        self.instances[number].as_ref().unwrap()
    }

    /// Removes an instance that ends.
    pub(super) fn take_instance(&mut self, number: usize) -> Server {
        self.instances[number].take().unwrap()
    }

    pub(super) async fn sample(&mut self) {
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity
            WHERE usename = '{OWNER}' AND client_addr IS NOT NULL"
        );
        let row = self.observer.query_one(&sql, &[]).await.unwrap();
        let connections = usize::try_from(row.get::<_, i64>(0)).unwrap();
        let sample = Sample::of(self.server(0), self.start.elapsed(), connections);
        self.samples.0.push(sample);
    }

    /// One run of each instance, after which the pools are full.
    pub(super) async fn baseline(&mut self) {
        for number in 0..2 {
            run(self.server(number), false).await;
        }
        self.sample().await;
        let sample = self.samples.0[0];
        self.baseline = (sample.descriptors, sample.connections);
    }

    /// Checks that every secret opens to its last value.
    pub(super) async fn check(&mut self) {
        self.tenants.check(&self.database).await;
        self.count("checks of all secrets", 1);
    }

    /// The last run, and all checks.
    pub(super) async fn finish(&mut self) {
        let writes = self.tenants.writes().await;
        self.count("writes of tenants", writes.into());
        // From here on, tenants write nothing.
        let server = self.server(0);
        let last = self.tenants.pause(async || {
            let apply = run(server, false).await;
            assert_eq!(
                (apply.rows_failed, apply.failures.len()),
                (0, 0),
                "{apply:?}"
            );
            run(server, true).await
        });
        let last = last.await;
        assert_eq!(last.rows_failed, 0, "{last:?}");
        let organizations = self.tenants.check(&self.database).await;
        assert!(organizations > 0);
        self.until_idle().await;
        self.report();
        self.samples.check();
        for number in 0..2 {
            let instance = self.take_instance(number);
            assert_eq!(instance.terminate().await, 0, "{}", instance.log_text());
        }
    }

    /// Waits until the first instance has no more file descriptors, and the database no more
    /// connections, than at the beginning.
    async fn until_idle(&mut self) {
        let deadline = Instant::now() + IDLE;
        loop {
            self.sample().await;
            let last = self.samples.0[self.samples.0.len() - 1];
            if last.descriptors <= self.baseline.0 && last.connections <= self.baseline.1 {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{last:?}, and {:?} at the beginning",
                self.baseline
            );
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    #[expect(clippy::print_stderr, reason = "shown with --nocapture")]
    fn report(&self) {
        let last = self.samples.0[self.samples.0.len() - 1];
        eprintln!(
            "soak of {} s\n{}\nat the beginning and the end: {} and {} file descriptors, \
             {} and {} connections\n{:#?}",
            self.start.elapsed().as_secs(),
            self.samples.summary(),
            self.baseline.0,
            last.descriptors,
            self.baseline.1,
            last.connections,
            self.counts
        );
    }
}

impl Drop for World {
    #[expect(clippy::print_stderr, reason = "shown if the test fails")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            for instance in self.instances.iter().flatten() {
                let log = instance.log_text();
                let lines: Vec<_> = log.lines().collect();
                let last = lines.len().saturating_sub(50);
                eprintln!("{}\n", lines[last..].join("\n"));
            }
        }
    }
}
