//! A real PgBouncer in transaction mode, between the service and the shared Postgres server.

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::database::{Database, connect};
use crate::pg::{OWNER, PASSWORD, Server};
use crate::pg_host::{as_postgres, free_port, give_to_postgres};
use crate::process::{Supervised, lasting_dir};

/// The number of connections to Postgres for each database.
pub(crate) const POOL_SIZE: usize = 2;

/// A running PgBouncer. It ends when this value is dropped or the test process ends.
pub(crate) struct PgBouncer {
    port: u16,
    _process: Mutex<Supervised>,
}

impl PgBouncer {
    /// Starts a PgBouncer and waits until it forwards to this database.
    pub(crate) async fn start(database: &Database) -> Self {
        Self::with_pool_size(POOL_SIZE, database).await
    }

    /// As [`PgBouncer::start`], with another number of connections to Postgres.
    pub(crate) async fn with_pool_size(pool_size: usize, database: &Database) -> Self {
        let dir = lasting_dir("pgbouncer");
        give_to_postgres(&dir);
        let server = Server::shared();
        // Another process may take the port before PgBouncer does, hence more than one try.
        for _ in 0..10 {
            let port = free_port();
            let config = format!(
                "[databases]\n* = host={} port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
                 unix_socket_dir =\nauth_type = trust\nauth_file = {dir}/users\npool_mode = transaction\n\
                 default_pool_size = {pool_size}\n",
                server.socket_dir().display(),
                server.port(),
                dir = dir.display()
            );
            fs::write(dir.join("pgbouncer.ini"), config).unwrap();
            fs::write(dir.join("users"), format!("\"{OWNER}\" \"{PASSWORD}\"\n")).unwrap();
            let log = fs::File::create(dir.join("log")).unwrap();
            // From 1.23 on, TERM waits until every client has disconnected.
            let process = Supervised::spawn(&binary(), ["pgbouncer.ini"], "KILL", |command| {
                as_postgres(command).current_dir(&dir).stderr(log);
            });
            let bouncer = Self {
                port,
                _process: Mutex::new(process),
            };
            if bouncer.answers(database).await {
                return bouncer;
            }
        }
        let log = fs::read_to_string(dir.join("log")).unwrap();
        panic!("PgBouncer does not start; its log:\n{log}");
    }

    /// The service's `database_url`.
    pub(crate) fn url(&self, database: &Database) -> String {
        format!(
            "postgres://{OWNER}:{PASSWORD}@127.0.0.1:{}/{}",
            self.port,
            database.name()
        )
    }

    /// A connection through the pooler. It must not prepare statements.
    pub(crate) async fn client(&self, database: &Database) -> Client {
        connect(&self.url(database).parse().unwrap()).await.unwrap()
    }

    async fn answers(&self, database: &Database) -> bool {
        let config = self.url(database).parse().unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while self._process.lock().unwrap().try_wait().is_none() {
            if connect(&config).await.is_ok() {
                return true;
            }
            assert!(Instant::now() < deadline, "PgBouncer does not answer");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }
}

fn binary() -> PathBuf {
    if let Some(pgbouncer) = std::env::var_os("PGBOUNCER") {
        return pgbouncer.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin".into(), "/usr/local/sbin".into()];
    std::env::split_paths(&path)
        .chain(usual)
        .map(|dir| dir.join("pgbouncer"))
        .find(|file| file.is_file())
        .expect("no pgbouncer: `make test` installs one; or set PGBOUNCER, or put it into PATH")
}
