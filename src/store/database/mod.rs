//! Where the database is and how to use TLS with it. The source is `database_url` of nico-api's
//! configuration, with libpq's meaning of `sslmode` and `sslrootcert`. Without `sslmode`, TLS
//! is required, except for a local server.
//!
//! Unknown parameters are ignored, and the log names them. Environment variables of libpq,
//! such as `PGPASSWORD`, are not read.
//!
//! The driver supports only `disable`, `prefer` and `require`, and verifies no certificate.
//! The module `verifier` adds `verify-ca` and `verify-full`, based on the verifier of
//! rustls.

mod connect;
mod error;
mod notice;
mod parameters;
mod problem;
mod server;
mod ssl_mode;
mod tls;
mod url;
mod verifier;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio_postgres::config::{Host, SslMode as DriverSslMode, TargetSessionAttrs};
use tokio_postgres_rustls::MakeRustlsConnect;

pub(crate) use self::{connect::Connector, notice::Notices, problem::tls_problem};
pub use self::{
    connect::{ConnectError, Limit},
    error::DatabaseError,
    ssl_mode::{ChosenSslMode, SslMode},
};
use self::{
    parameters::{Parameters, left_out, servers},
    server::Server,
    url::Url,
};

/// The default time limit for one address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A database to connect to. The URL is parsed, and the certificates are loaded.
#[derive(Clone)]
pub struct Database {
    /// All settings except the servers.
    driver: tokio_postgres::Config,
    connector: Connector,
    root_certificates: Option<(PathBuf, usize)>,
    ignored: Vec<String>,
    left_out: Vec<&'static str>,
}

impl Database {
    /// Parses a URL. `ssl_mode` and `connect_timeout`, if given, override those of the URL.
    /// Without any `sslmode`, it is `prefer` if all servers are local, and `require`
    /// otherwise.
    ///
    /// # Errors
    ///
    /// [`DatabaseError`] says what is wrong with the URL or its certificate file.
    pub fn parse(
        url: &str,
        ssl_mode: Option<SslMode>,
        connect_timeout: impl Into<Option<Duration>>,
    ) -> Result<Self, DatabaseError> {
        let url = Url::parse(url)?;
        let parameters = Parameters::of(&url)?;
        let left_out = left_out(&url, &parameters, ssl_mode);
        let servers = servers(&url, &parameters)?;
        let limit = match (connect_timeout.into(), parameters.connect_timeout) {
            (Some(duration), _) => (duration, "[rewrap].connect_timeout"),
            (None, Some(duration)) => (duration, "connect_timeout of database_url"),
            (None, None) => (CONNECT_TIMEOUT, "[rewrap].connect_timeout"),
        };
        let limit = Limit {
            duration: limit.0,
            setting: limit.1,
        };
        let ssl_mode = ChosenSslMode::of(ssl_mode, parameters.ssl_mode, &servers);
        let mut driver = parameters.driver()?;
        driver.ssl_mode(match ssl_mode.mode {
            SslMode::Disable => DriverSslMode::Disable,
            SslMode::Prefer => DriverSslMode::Prefer,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => DriverSslMode::Require,
        });
        // With several servers, connect to the primary.
        if servers.len() > 1 && !parameters.has("target_session_attrs") {
            driver.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        if let Some(user) = parameters.user.or(url.user) {
            driver.user(user);
        }
        if let Some(password) = parameters.password.or(url.password) {
            driver.password(password);
        }
        if let Some(dbname) = parameters.dbname.or(url.dbname) {
            driver.dbname(dbname);
        }
        if !parameters.options.is_empty() {
            driver.options(parameters.options.join(" "));
        }
        // For cancel requests, which the driver connects itself. The limit is longer than
        // that of the connector, because the connector's error names the setting.
        driver.connect_timeout(limit.duration * 2);
        // The URL's own name is ignored, because the URL belongs to nico-api. The load
        // probe tells our sessions from others by this name.
        driver.application_name(env!("CARGO_PKG_NAME"));
        let tls = tls::client_config(ssl_mode.mode, parameters.root_certificate)?;
        Ok(Self {
            driver,
            connector: Connector {
                servers,
                tls: MakeRustlsConnect::new(tls.config),
                ssl_mode,
                limit,
                advice: None,
                notices: Arc::default(),
            },
            root_certificates: tls.root_certificates,
            ignored: parameters.ignored,
            left_out,
        })
    }

    /// Parameters of the URL that neither the driver nor this program knows.
    #[must_use]
    pub fn ignored_parameters(&self) -> &[String] {
        &self.ignored
    }

    /// The file of `sslrootcert`, if it is used, and the number of certificates in it.
    #[must_use]
    pub fn root_certificates(&self) -> Option<(&Path, usize)> {
        let (path, certificates) = self.root_certificates.as_ref()?;
        Some((path, *certificates))
    }

    /// The known parameter that differs from `name` only in case.
    #[must_use]
    pub fn meant_parameter(name: &str) -> Option<&'static str> {
        url::meant(name)
    }

    /// The variables of libpq that nico-api's driver would read for the parts that the URL
    /// omits.
    #[must_use]
    pub fn left_out(&self) -> &[&'static str] {
        &self.left_out
    }

    /// Adds `advice` to the error when no connection can be opened.
    #[must_use]
    pub fn with_advice(mut self, advice: String) -> Self {
        self.connector.advice = Some(advice);
        self
    }

    /// Opens one connection outside of any pool. It stays open until the client is dropped.
    ///
    /// # Errors
    ///
    /// [`ConnectError`], whose text contains no password.
    pub async fn connect(&self) -> Result<tokio_postgres::Client, ConnectError> {
        match self.connector.open(&self.driver).await {
            Ok((client, _)) => Ok(client),
            Err(error) => Err(self.connector.advised(error)),
        }
    }

    /// The driver's configuration without a server; the [`Connector`] adds one. After
    /// `idle` without data, the kernel checks whether the peer is alive. If the peer leaves
    /// data unread for `unread`, the kernel closes the connection.
    pub(crate) fn driver_config(&self, idle: Duration, unread: Duration) -> tokio_postgres::Config {
        let mut driver = self.driver.clone();
        // The kernel counts keepalives in whole seconds and refuses zero.
        driver.keepalives_idle(idle.max(Duration::from_secs(1)));
        // This limit also covers a closed receive window (tcp(7), TCP_USER_TIMEOUT).
        driver.tcp_user_timeout(unread.max(Duration::from_secs(1)));
        driver
    }

    /// The name of the TLS mode: `none`, or the sslmode.
    #[must_use]
    pub fn tls_name(&self) -> &'static str {
        match self.connector.ssl_mode.mode {
            SslMode::Disable => "none",
            SslMode::Prefer => "prefer",
            SslMode::Require => "require",
            SslMode::VerifyCa => "verify-ca",
            SslMode::VerifyFull => "verify-full",
        }
    }

    /// The TLS settings, for cancel requests.
    pub(crate) fn tls(&self) -> MakeRustlsConnect {
        self.connector.tls.clone()
    }

    /// The connector for a pool. The notices of its connections go to `notices`.
    pub(crate) fn connector(&self, notices: Arc<Notices>) -> Connector {
        Connector {
            notices,
            ..self.connector.clone()
        }
    }
}

/// Shows host, database and user, but not the password.
impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers = &self.connector.servers;
        let hosts: Vec<_> = servers.iter().map(Server::host_or_address).collect();
        let ports: Vec<_> = servers.iter().map(|server| server.port).collect();
        f.debug_struct("Database")
            .field("hosts", &hosts)
            .field("ports", &ports)
            .field("dbname", &self.driver.get_dbname())
            .field("user", &self.driver.get_user())
            .field("ssl_mode", &self.connector.ssl_mode.mode)
            .finish_non_exhaustive()
    }
}

impl Server {
    fn host_or_address(&self) -> Host {
        let address = || Host::Tcp(self.address.map_or_else(String::new, |ip| ip.to_string()));
        self.host.clone().unwrap_or_else(address)
    }
}

#[cfg(test)]
mod tests;
