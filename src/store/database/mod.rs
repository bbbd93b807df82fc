//! Where the database is and how to use TLS with it. The source is `database_url` of
//! nico-api's configuration, with libpq's meaning of `sslmode` and `sslrootcert`.
//!
//! Unknown parameters are ignored, and the log names them. Environment variables of libpq,
//! such as `PGPASSWORD`, are not read.
//!
//! The driver supports only `disable`, `prefer` and `require`, and verifies no certificate.
//! The module `verifier` adds `verify-ca` and `verify-full`, based on the verifier of
//! rustls.

mod connect;
mod notice;
mod parameters;
mod problem;
mod tls;
mod url;
mod verifier;

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use thiserror::Error;
use tokio_postgres::config::{Host, SslMode as DriverSslMode, TargetSessionAttrs};
use tokio_postgres_rustls::MakeRustlsConnect;

pub use self::connect::{ConnectError, Limit};
pub(crate) use self::{connect::Connector, notice::Notices, problem::tls_problem};
use self::{
    connect::Server,
    parameters::{Parameters, left_out, servers},
    url::Url,
};
use crate::tls::pem;

/// libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS if the server supports it. Its certificate is not verified.
    Prefer,
    /// TLS. The certificate is verified only if `sslrootcert` is given.
    Require,
    /// TLS with a certificate that chains to `sslrootcert`.
    VerifyCa,
    /// The same, and the certificate must name the host.
    VerifyFull,
}

impl FromStr for SslMode {
    type Err = DatabaseError;

    fn from_str(text: &str) -> Result<Self, DatabaseError> {
        match text {
            "disable" => Ok(Self::Disable),
            // libpq's `allow` uses TLS only if the server insists. `prefer` uses TLS in
            // that case too.
            "prefer" | "allow" => Ok(Self::Prefer),
            "require" => Ok(Self::Require),
            "verify-ca" => Ok(Self::VerifyCa),
            "verify-full" => Ok(Self::VerifyFull),
            _ => Err(DatabaseError::SslMode),
        }
    }
}

/// Why `database_url` can't be used. The text never quotes the URL, which contains a
/// password.
#[derive(Debug, Error)]
pub enum DatabaseError {
    /// The URL does not have the form that the tools of Postgres accept.
    #[error("is not of the form postgres://user:password@host:5432/database ({0})")]
    Url(String),
    /// The URL names no host.
    #[error("names no host: write it as in postgres://user:password@host:5432/database")]
    NoHost,
    /// An unknown `sslmode`.
    #[error("sslmode must be one of disable, allow, prefer, require, verify-ca and verify-full")]
    SslMode,
    /// A verifying mode without a file to verify against.
    #[error("sslmode verify-ca and verify-full need sslrootcert=FILE in the URL")]
    NoRootCertificate,
    /// The file of `sslrootcert` can't be used.
    #[error("sslrootcert: {0}")]
    RootCertificate(#[from] pem::PemError),
    /// rustls refuses the certificates.
    #[error("sslrootcert: {0}")]
    Verifier(String),
}

/// The default time limit for one address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A database to connect to. The URL is parsed, and the certificates are loaded.
#[derive(Clone)]
pub struct Database {
    /// All settings except the servers.
    driver: tokio_postgres::Config,
    connector: Connector,
    root_certificates: Option<(PathBuf, usize)>,
    ssl_mode: SslMode,
    ignored: Vec<String>,
    left_out: Vec<&'static str>,
}

impl Database {
    /// Parses a URL. `ssl_mode` and `connect_timeout`, if given, override those of the URL.
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
        let ssl_mode = ssl_mode.or(parameters.ssl_mode);
        let ssl_mode = ssl_mode.unwrap_or(SslMode::Prefer);
        let mut driver = parameters.driver()?;
        driver.ssl_mode(match ssl_mode {
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
        let tls = tls::client_config(ssl_mode, parameters.root_certificate)?;
        Ok(Self {
            driver,
            connector: Connector {
                servers,
                tls: MakeRustlsConnect::new(tls.config),
                limit,
                advice: None,
                notices: Arc::default(),
            },
            root_certificates: tls.root_certificates,
            ssl_mode,
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
            .field("ssl_mode", &self.ssl_mode)
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
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Database, DatabaseError> {
        Database::parse(url, None, None::<Duration>)
    }

    fn servers_of(url: &str) -> Vec<(String, u16)> {
        let servers = parse(url).unwrap().connector.servers;
        let name = |server: &Server| match server.host_or_address() {
            Host::Tcp(name) => name,
            Host::Unix(path) => path.display().to_string(),
        };
        servers
            .iter()
            .map(|server| (name(server), server.port))
            .collect()
    }

    #[test]
    fn without_sslmode_tls_is_preferred() {
        let database = parse("postgres://u:s3cr3t@db:5432/nico").unwrap();
        assert_eq!(database.ssl_mode, SslMode::Prefer);
        assert_eq!(
            format!("{database:?}"),
            "Database { hosts: [Tcp(\"db\")], ports: [5432], dbname: Some(\"nico\"), \
             user: Some(\"u\"), ssl_mode: Prefer, .. }"
        );
        let allowed = parse("postgres://db/nico?sslmode=allow").unwrap();
        assert_eq!(allowed.ssl_mode, SslMode::Prefer);
    }

    #[test]
    fn the_setting_wins_over_the_url() {
        let url = "postgres://db/nico?sslmode=disable&connect_timeout=3";
        let database = parse(url).unwrap();
        assert_eq!(database.ssl_mode, SslMode::Disable);
        let limit = database.connector.limit.to_string();
        assert_eq!(limit, "connect_timeout of database_url, 3s");
        let ours = Some(Duration::from_secs(7));
        let forced = Database::parse(url, Some(SslMode::Require), ours).unwrap();
        assert_eq!(forced.ssl_mode, SslMode::Require);
        let limit = forced.connector.limit.to_string();
        assert_eq!(limit, "[rewrap].connect_timeout, 7s");
        // In libpq, these mean no limit. Here the default limit applies.
        for none in ["", "?connect_timeout=0", "?connect_timeout=-1"] {
            let database = parse(&format!("postgres://db/nico{none}")).unwrap();
            assert_eq!(database.connector.limit.duration, CONNECT_TIMEOUT);
        }
    }

    #[test]
    fn parameters_of_other_programs_are_ignored_and_named() {
        let database =
            parse("postgres://db/nico?statement-cache-capacity=5&ssl-mode=require&currentSchema=x");
        let database = database.unwrap();
        let ignored = ["statement-cache-capacity", "currentSchema"];
        assert_eq!(database.ignored_parameters(), ignored);
        assert_eq!(database.ssl_mode, SslMode::Require);
        assert_eq!(Database::meant_parameter("SSLMode"), Some("sslmode"));
    }

    #[test]
    fn options_are_joined() {
        let url = "postgres://db/nico?options=-c+a%3D1&options[search_path]=x+y&options%5Bb%5D=c\\";
        let driver = parse(url).unwrap().driver;
        let options = r"-c a=1 -c search_path=x\ y -c b=c\\";
        assert_eq!(driver.get_options(), Some(options));
    }

    #[test]
    fn servers_come_from_the_url_and_its_parameters() {
        for (url, servers) in [
            ("postgres://a,b:1/x", &[("a", 5432), ("b", 1)][..]),
            ("postgres://a,b/x?port=7", &[("a", 7), ("b", 7)]),
            ("postgres://a,b:9/x?port=7,8", &[("a", 7), ("b", 8)]),
            ("postgres://a:9/x?host=c", &[("c", 9)]),
            ("postgres:///x?host=%2Frun&port=7", &[("/run", 7)]),
            ("postgres://%2Frun:7/x", &[("/run", 7)]),
            (
                "postgres:///x?hostaddr=::1,10.0.0.1",
                &[("::1", 5432), ("10.0.0.1", 5432)],
            ),
            ("postgres://u:p@[::1]:7/x", &[("::1", 7)]),
        ] {
            let servers: Vec<_> = servers
                .iter()
                .map(|(name, port)| ((*name).to_owned(), *port))
                .collect();
            assert_eq!(servers_of(url), servers, "{url}");
        }
        for url in [
            "postgres:///x",
            "postgres://",
            "postgres://u:p@/x",
            "postgres:///x?host=",
        ] {
            assert!(matches!(parse(url), Err(DatabaseError::NoHost)), "{url}");
        }
        for url in [
            "postgres://a,b/x?port=1,2,3",
            "postgres://a,b/x?hostaddr=::1",
            "postgres://a/x?hostaddr=b",
            "postgres://a/x?port=http",
        ] {
            assert!(matches!(parse(url), Err(DatabaseError::Url(_))), "{url}");
        }
    }

    #[test]
    fn with_several_servers_the_primary_is_used() {
        for (url, attributes) in [
            ("postgres://a/x", TargetSessionAttrs::Any),
            ("postgres://a,b/x", TargetSessionAttrs::ReadWrite),
            (
                "postgres://a,b/x?target_session_attrs=any",
                TargetSessionAttrs::Any,
            ),
            (
                "postgres://a/x?target_session_attrs=primary",
                TargetSessionAttrs::ReadWrite,
            ),
        ] {
            let driver = parse(url).unwrap().driver;
            assert_eq!(driver.get_target_session_attrs(), attributes, "{url}");
        }
    }

    #[test]
    fn omitted_parts_of_the_url_are_listed_by_variable() {
        let nothing = parse("postgres://u:p@db:1/x?sslmode=require&sslrootcert=&options=a");
        // An empty `sslrootcert` is not a file.
        assert!(nothing.is_err());
        let all = [
            "PGPORT",
            "PGUSER",
            "PGPASSWORD",
            "PGPASSFILE",
            "PGDATABASE",
            "PGSSLMODE",
        ];
        let all: Vec<_> = all
            .into_iter()
            .chain(["PGSSLROOTCERT", "PGOPTIONS"])
            .collect();
        assert_eq!(parse("postgres://db").unwrap().left_out(), all);
        let full = "postgres://u:p@db:1/x?sslmode=prefer&sslrootcert=/x&options=a";
        assert!(parse(full).unwrap().left_out().is_empty());
        let ours = Database::parse(
            "postgres://u:p@db:1/x",
            Some(SslMode::Disable),
            None::<Duration>,
        );
        assert_eq!(ours.unwrap().left_out(), ["PGSSLROOTCERT", "PGOPTIONS"]);
    }

    #[test]
    fn user_and_password_end_at_the_last_at_sign() {
        for url in [
            "postgres://u:a@s3cr3t@db/nico",
            "postgres://u:a%40s3cr3t@db/nico",
            "postgres://u:a@s3cr3t@db/nico?application_name=x@y",
        ] {
            let driver = parse(url).unwrap().driver;
            assert_eq!(driver.get_password(), Some(b"a@s3cr3t".as_slice()), "{url}");
            assert_eq!(servers_of(url), [("db".to_owned(), 5432)]);
        }
    }

    #[test]
    fn errors_do_not_quote_the_url() {
        for url in [
            "postgres://u:s3cr3t@db/nico?sslmode=s3cr3t",
            "postgres://u:s3cr3t@db/nico?connect_timeout=s3cr3t",
            "postgres://u:s3cr3t@db/nico?target_session_attrs=s3cr3t",
            "postgres://u:s3cr3t@db/nico?keepalives=s3cr3t",
            "postgres://u:s3cr3t@db/nico?port=s3cr3t",
            "postgres://u:s3cr3t@db/nico?hostaddr=s3cr3t",
            "postgres://u:s3cr3t@/nico",
            "postgres://u:s3cr3t@db/nico?sslmode=verify-full",
            "postgres://u:s3cr3t@db/nico?sslmode=verify-full&sslrootcert=/nowhere",
        ] {
            let error = parse(url).unwrap_err().to_string();
            assert!(!error.contains("s3cr3t"), "{error}");
        }
    }
}
