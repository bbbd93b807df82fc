//! A new database for each test.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};

use crate::pg::{OWNER, PASSWORD, SUPERUSER, Server};

const TEMPLATE: &str = "migrated_template";

/// A test database. Nothing drops it: the whole server is temporary.
#[derive(Clone)]
pub(crate) struct Database {
    name: String,
    port: u16,
    socket: Config,
}

impl Database {
    /// An empty database, on the shared server.
    pub(crate) async fn new() -> Self {
        Self::on(Server::shared()).await
    }

    /// A database with the schema of `migrations/`, on the shared server.
    pub(crate) async fn migrated() -> Self {
        static TEMPLATE_BUILT: tokio::sync::OnceCell<()> = tokio::sync::OnceCell::const_new();
        let server = Server::shared();
        let build = async || {
            Self::create(server, TEMPLATE, "template1")
                .await
                .migrate()
                .await
        };
        TEMPLATE_BUILT.get_or_init(build).await;
        Self::create(server, &fresh_name(), TEMPLATE).await
    }

    /// An empty database on this server.
    pub(crate) async fn on(server: &Server) -> Self {
        Self::create(server, &fresh_name(), "template1").await
    }

    /// A database with the schema of `migrations/`, on this server.
    pub(crate) async fn migrated_on(server: &Server) -> Self {
        let database = Self::on(server).await;
        database.migrate().await;
        database
    }

    /// Runs the files of `migrations/` in the order of their names, as the owner.
    pub(crate) async fn migrate(&self) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
        let entries = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "sql"));
        files.sort();
        assert!(!files.is_empty(), "no .sql file in {}", dir.display());
        let client = self.client().await;
        for file in files {
            let sql = std::fs::read_to_string(&file).unwrap();
            client
                .batch_execute(&sql)
                .await
                .unwrap_or_else(|e| panic!("{}: {e:?}", file.display()));
        }
    }

    /// The same database on a standby.
    pub(crate) fn on_standby(&self, standby: &Server) -> Self {
        Self {
            name: self.name.clone(),
            port: standby.port(),
            socket: socket(standby),
        }
    }

    /// The name, as in `pg_stat_activity.datname`.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The service's `database_url`: the owner, a password, TCP.
    pub(crate) fn url(&self) -> String {
        format!(
            "postgres://{OWNER}:{PASSWORD}@127.0.0.1:{}/{}",
            self.port, self.name
        )
    }

    /// A connection as the owner, over the Unix socket.
    pub(crate) async fn client(&self) -> Client {
        connect(self.socket.clone().user(OWNER).dbname(&self.name))
            .await
            .unwrap()
    }

    /// A connection as the superuser, over the Unix socket.
    pub(crate) async fn admin(&self) -> Client {
        connect(self.socket.clone().user(SUPERUSER).dbname(&self.name))
            .await
            .unwrap()
    }

    /// Creates the view `pg_stat_statements`. Returns a connection that may read all of it.
    pub(crate) async fn count_statements(&self) -> Client {
        let admin = self.admin().await;
        admin
            .batch_execute("CREATE EXTENSION pg_stat_statements")
            .await
            .unwrap();
        admin
    }

    async fn create(server: &Server, name: &str, template: &str) -> Self {
        let socket = socket(server);
        let admin = connect(socket.clone().user(SUPERUSER).dbname("postgres"))
            .await
            .unwrap();
        let create_owner = format!("CREATE ROLE {OWNER} LOGIN PASSWORD '{PASSWORD}'");
        if let Err(e) = admin.batch_execute(&create_owner).await {
            // Two tests may be the first at once; the second then fails on the catalogue's own unique index.
            assert!(
                [SqlState::DUPLICATE_OBJECT, SqlState::UNIQUE_VIOLATION]
                    .contains(e.code().unwrap()),
                "{e:?}"
            );
        }
        let create = format!("CREATE DATABASE {name} OWNER {OWNER} TEMPLATE {template}");
        for attempt in 0.. {
            match admin.batch_execute(&create).await {
                Ok(()) => break,
                // The connection that built the template, or autovacuum, may not be gone yet.
                Err(e) if e.code() == Some(&SqlState::OBJECT_IN_USE) && attempt < 50 => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                // Left over from a test that failed while it built the template.
                Err(e) if e.code() == Some(&SqlState::DUPLICATE_DATABASE) && attempt < 50 => {
                    admin
                        .batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)"))
                        .await
                        .unwrap();
                }
                Err(e) => panic!("{create}: {e:?}"),
            }
        }
        Self {
            name: name.to_owned(),
            port: server.port(),
            socket,
        }
    }
}

/// Connects without TLS; the connection's task runs on the current runtime.
pub(crate) async fn connect(config: &Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// The settings of a connection over the server's Unix socket.
fn socket(server: &Server) -> Config {
    let mut socket = Config::new();
    socket
        .host_path(server.socket_dir())
        .port(server.port())
        .application_name("test");
    socket
}

fn fresh_name() -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(1);
    format!("test_{}", COUNTER.fetch_add(1, Ordering::Relaxed))
}
