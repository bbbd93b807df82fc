//! The state of a simulated site, and what it must be.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;

use super::runs::Running;
use super::tenants::Set;
use crate::database::Database;
use crate::pg;
use crate::rewrap_client::migrate_state;
use crate::seal::keys;
use crate::seed::Row;
use crate::server::Server;
use crate::site::Site;

/// The plaintexts of the three secrets of an organization.
pub(super) type Secrets = [Option<String>; 3];

/// How long a key must be clean.
pub(super) const SOAK: &str = "100ms";

/// An instance of the service.
pub(super) struct Instance {
    pub(super) server: Server,
    pub(super) target: String,
}

pub(super) struct World {
    pub(super) seed: u64,
    pub(super) rng: fastrand::Rng,
    pub(super) database: Database,
    /// The connection of nico-api.
    pub(super) client: Client,
    /// Reads the rows without an index.
    pub(super) observer: Client,
    /// The keys in the secrets of the site.
    pub(super) keys: BTreeSet<String>,
    pub(super) keys_made: usize,
    /// The target in the configuration file.
    pub(super) target: String,
    /// The target with which nico-api was started.
    pub(super) api_target: String,
    /// The target of the last apply.
    pub(super) last_apply: String,
    pub(super) instances: [Option<Instance>; 2],
    /// What tenants wrote last.
    pub(super) expected: BTreeMap<String, Secrets>,
    /// Organizations that tenants have written since the last check.
    pub(super) touched: BTreeSet<String>,
    pub(super) sets: Vec<Set>,
    pub(super) runs: Vec<Running>,
    /// The targets of runs that may still write.
    pub(super) writing: BTreeSet<String>,
    /// Those at the last check.
    pub(super) ended: BTreeSet<String>,
    /// Holds a lock on rows.
    pub(super) locker: Option<Client>,
    /// The organization that the index does not show.
    pub(super) hidden: Option<String>,
    /// The rows at the last check; `None` after a crash of Postgres.
    pub(super) before: Option<BTreeMap<String, Row>>,
    /// The lowest version that each organization can have after a crash of Postgres.
    pub(super) durable: BTreeMap<String, u64>,
    pub(super) made: usize,
    trace: Vec<String>,
    /// How often each kind of event has happened.
    counts: BTreeMap<&'static str, u32>,
    pub(super) postgres: pg::Server,
}

impl World {
    pub(super) async fn new(seed: u64) -> Self {
        let postgres = pg::Server::start();
        let database = Database::migrated_on(&postgres).await;
        // Small tables are read along their indexes, as large ones are.
        for setting in ["enable_seqscan", "jit"] {
            let sql = format!("ALTER DATABASE {} SET {setting} = off", database.name());
            database.admin().await.batch_execute(&sql).await.unwrap();
        }
        let mut world = Self {
            seed,
            rng: fastrand::Rng::with_seed(seed),
            client: database.client().await,
            observer: observer(&database).await,
            database,
            keys: ["k1", "k2"].map(str::to_owned).into(),
            keys_made: 2,
            target: "k1".to_owned(),
            api_target: "k1".to_owned(),
            last_apply: String::new(),
            instances: [None, None],
            expected: BTreeMap::new(),
            touched: BTreeSet::new(),
            sets: Vec::new(),
            runs: Vec::new(),
            writing: BTreeSet::new(),
            ended: BTreeSet::new(),
            locker: None,
            hidden: None,
            before: None,
            durable: BTreeMap::new(),
            made: 0,
            trace: Vec::new(),
            counts: BTreeMap::new(),
            postgres,
        };
        migrate_state(&world.site());
        for _ in 0..16 {
            world.insert().await;
        }
        world
    }

    /// Notes what happens, for the output of a failed test.
    pub(super) fn note(&mut self, what: impl Into<String>) {
        self.trace.push(what.into());
    }

    pub(super) fn count(&mut self, event: &'static str) {
        *self.counts.entry(event).or_default() += 1;
    }

    fn site(&mut self) -> Site {
        let ids: Vec<_> = self.keys.iter().map(String::as_str).collect();
        let site = Site::new(&self.database).keys(&keys(&ids));
        site.target(&self.target)
            .set("rewrap.adaptive_rate", "false")
            .set("rewrap.soak", format!("{SOAK:?}"))
            .set("rewrap.lock_timeout", "\"200ms\"")
            .set("rewrap.page_size", self.rng.u32(2..30).to_string())
            .set("rewrap.pipeline_depth", self.rng.u32(1..5).to_string())
            .set("rewrap.database_pool_size", self.rng.u32(1..4).to_string())
            // Slow, so that much can happen between the read of a row and its write.
            .set(
                "rewrap.max_rows_per_second",
                self.rng.u32(10..50).to_string(),
            )
    }

    /// Starts an instance, after the end of one with the same number.
    pub(super) async fn start_instance(&mut self, number: usize) {
        self.end_instance(number).await;
        let server = self.site().start().await;
        self.note(format!(
            "instance {number} starts with the target {}",
            self.target
        ));
        let target = self.target.clone();
        self.instances[number] = Some(Instance { server, target });
    }

    /// Ends an instance, if it runs. Its runs end with it.
    pub(super) async fn end_instance(&mut self, number: usize) {
        self.finish_runs_of(number).await;
        if let Some(instance) = self.instances[number].take() {
            assert_eq!(instance.server.terminate().await, 0);
        }
    }

    /// A running instance. Starts one if there is none.
    pub(super) async fn some_instance(&mut self) -> usize {
        let number = self.rng.usize(..2);
        if self.instances[number].is_none() {
            self.start_instance(number).await;
        }
        number
    }

    pub(super) fn server(&self, number: usize) -> &Server {
        &self.instances[number].as_ref().unwrap().server
    }

    /// Ends every fault and every write that is under way. Then a run must complete.
    pub(super) async fn finish(&mut self) {
        self.finish_all_runs().await;
        self.unlock().await;
        self.repair_index().await;
        while !self.sets.is_empty() {
            self.end_set().await;
        }
        self.restart_nico_api();
        self.start_instance(0).await;
        self.run_to_the_end(false).await;
        self.run_to_the_end(true).await;
        self.check().await;
    }

    pub(super) async fn reconnect(&mut self) {
        self.client = self.database.client().await;
        self.observer = observer(&self.database).await;
    }
}

async fn observer(database: &Database) -> Client {
    let client = database.admin().await;
    let without_index = "SET enable_seqscan = on; SET enable_indexscan = off;
        SET enable_indexonlyscan = off; SET enable_bitmapscan = off";
    client.batch_execute(without_index).await.unwrap();
    client
}

impl Drop for World {
    #[expect(
        clippy::print_stderr,
        reason = "shown with --nocapture, or if the test fails"
    )]
    fn drop(&mut self) {
        eprintln!("SIMULATE_SEED={}: {:?}", self.seed, self.counts);
        let is_repeated = std::env::var_os("SIMULATE_SEED").is_some();
        if is_repeated || std::thread::panicking() {
            for (number, what) in self.trace.iter().enumerate() {
                eprintln!("{number:4} {what}");
            }
        }
        if std::thread::panicking() {
            for instance in self.instances.iter().flatten() {
                eprintln!("{}", instance.server.log_text());
            }
        }
    }
}
