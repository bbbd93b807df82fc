//! Where the database is and how to speak TLS with it: `database_url` of
//! nico-api's config, with libpq's meaning of `sslmode` and `sslrootcert`.
//!
//! The driver knows `disable`, `prefer` and `require` only, and none of them
//! looks at the server's certificate. `verify-ca` and `verify-full` are built
//! here on rustls' own verifier.

mod notice;
mod tls;

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use thiserror::Error;
use tokio::time::timeout;
use tokio_postgres::config::SslMode as DriverSslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

pub(crate) use self::notice::Notices;
use crate::pem;

/// libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS if the server has it; its certificate is not looked at.
    Prefer,
    /// TLS; the certificate is not looked at, unless `sslrootcert` is given.
    Require,
    /// TLS with a certificate that chains to `sslrootcert`.
    VerifyCa,
    /// The same, and the certificate names the host.
    VerifyFull,
}

impl FromStr for SslMode {
    type Err = DatabaseError;

    fn from_str(text: &str) -> Result<Self, DatabaseError> {
        match text {
            "disable" => Ok(Self::Disable),
            "prefer" => Ok(Self::Prefer),
            "require" => Ok(Self::Require),
            "verify-ca" => Ok(Self::VerifyCa),
            "verify-full" => Ok(Self::VerifyFull),
            _ => Err(DatabaseError::SslMode),
        }
    }
}

/// Why there is no telling where the database is. Never quotes the URL, which has
/// a password in it.
#[derive(Debug, Error)]
pub enum DatabaseError {
    /// Not a URL of the form that Postgres' tools take.
    #[error("is not of the form postgres://user:password@host:5432/database ({0})")]
    Url(String),
    /// An unknown `sslmode`.
    #[error("sslmode is one of disable, prefer, require, verify-ca and verify-full")]
    SslMode,
    /// A verifying mode without anything to verify against.
    #[error("sslmode verify-ca and verify-full need sslrootcert=FILE in the URL")]
    NoRootCertificate,
    /// The file of `sslrootcert` can't be used.
    #[error("sslrootcert: {0}")]
    RootCertificate(#[from] pem::PemError),
    /// rustls refuses the certificates.
    #[error("sslrootcert holds no usable CA certificate ({0})")]
    Verifier(String),
}

/// Why there is no connection. Never quotes the URL either.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The driver's reason.
    #[error(transparent)]
    Driver(#[from] tokio_postgres::Error),
    /// The server takes connections, and says nothing.
    #[error("no answer within [rewrap].connect_timeout, {}", humantime::format_duration(*.0))]
    Timeout(Duration),
}

/// A database that can be connected to: parsed, certificates loaded.
#[derive(Clone)]
pub struct Database {
    driver: tokio_postgres::Config,
    tls: MakeRustlsConnect,
    ssl_mode: SslMode,
    connect_timeout: Duration,
    ignored: Vec<String>,
}

impl Database {
    /// Parses a URL. `ssl_mode`, if given, wins over the URL's.
    ///
    /// # Errors
    ///
    /// [`DatabaseError`] says what is wrong with the URL or its certificate file.
    pub fn parse(
        url: &str,
        ssl_mode: Option<SslMode>,
        connect_timeout: Duration,
    ) -> Result<Self, DatabaseError> {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let mut url = encode_credentials(base, query)?;
        let parameters = Parameters::parse(query)?;
        let ssl_mode = match (ssl_mode, parameters.ssl_mode) {
            (Some(mode), _) | (None, Some(mode)) => mode,
            (None, None) => SslMode::Prefer,
        };

        for (i, parameter) in parameters.for_driver.iter().enumerate() {
            url.push(if i == 0 { '?' } else { '&' });
            url.push_str(parameter);
        }
        let mut driver = tokio_postgres::Config::from_str(&url)
            .map_err(|error| DatabaseError::Url(root_cause(&error)))?;
        driver.ssl_mode(match ssl_mode {
            SslMode::Disable => DriverSslMode::Disable,
            SslMode::Prefer => DriverSslMode::Prefer,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => DriverSslMode::Require,
        });
        driver.connect_timeout(connect_timeout);
        // Whatever the URL says: it is nico-api's, and the load that others make is told
        // from ours by the name.
        driver.application_name(env!("CARGO_PKG_NAME"));

        Ok(Self {
            driver,
            tls: MakeRustlsConnect::new(tls::client_config(ssl_mode, parameters.root_certificate)?),
            ssl_mode,
            connect_timeout,
            ignored: parameters.ignored,
        })
    }

    /// Parameters of the URL that neither the driver nor this program knows.
    #[must_use]
    pub fn ignored_parameters(&self) -> &[String] {
        &self.ignored
    }

    /// How long a new connection may take altogether.
    #[must_use]
    pub fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// A single connection, outside of any pool; its task runs until the client is
    /// dropped.
    ///
    /// # Errors
    ///
    /// [`ConnectError`], which carries no password.
    pub async fn connect(&self) -> Result<tokio_postgres::Client, ConnectError> {
        // The driver's own limit is for the TCP connection only.
        let connecting = timeout(self.connect_timeout, self.driver.connect(self.tls()));
        let (client, connection) = connecting
            .await
            .map_err(|_| ConnectError::Timeout(self.connect_timeout))??;
        tokio::spawn(async move { Notices::default().drive(connection).await });
        Ok(client)
    }

    pub(crate) fn driver_config(&self, unanswered: Duration) -> tokio_postgres::Config {
        let mut driver = self.driver.clone();
        // The kernel counts keepalives in whole seconds, and refuses none at all.
        let unanswered = unanswered.max(Duration::from_secs(1));
        // Packets that nobody acknowledges mean that the database is cut off.
        driver.tcp_user_timeout(unanswered);
        driver.keepalives_idle(unanswered);
        driver
    }

    pub(crate) fn tls(&self) -> MakeRustlsConnect {
        self.tls.clone()
    }
}

/// Host, database and user, without the password.
impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database")
            .field("hosts", &self.driver.get_hosts())
            .field("ports", &self.driver.get_ports())
            .field("dbname", &self.driver.get_dbname())
            .field("user", &self.driver.get_user())
            .field("ssl_mode", &self.ssl_mode)
            .finish_non_exhaustive()
    }
}

/// The query part of the URL, taken apart.
#[derive(Default)]
struct Parameters {
    ssl_mode: Option<SslMode>,
    root_certificate: Option<PathBuf>,
    for_driver: Vec<String>,
    ignored: Vec<String>,
}

impl Parameters {
    fn parse(query: &str) -> Result<Self, DatabaseError> {
        const DRIVER: [&str; 15] = [
            "user",
            "password",
            "dbname",
            "options",
            "application_name",
            "host",
            "hostaddr",
            "port",
            "connect_timeout",
            "keepalives",
            "keepalives_interval",
            "keepalives_retries",
            "target_session_attrs",
            "channel_binding",
            "load_balance_hosts",
        ];
        let mut parsed = Self::default();
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let decoded = || {
                percent_encoding::percent_decode_str(value)
                    .decode_utf8()
                    .map_err(|_| DatabaseError::Url("a parameter is not UTF-8".to_owned()))
            };
            match name {
                "sslmode" | "ssl-mode" => parsed.ssl_mode = Some(decoded()?.parse()?),
                "sslrootcert" | "ssl-root-cert" | "ssl-ca" => {
                    parsed.root_certificate = Some(PathBuf::from(decoded()?.as_ref()));
                }
                _ if DRIVER.contains(&name) => parsed.for_driver.push(parameter.to_owned()),
                // Part of a password with a question mark in it, more likely than not.
                _ if !name.bytes().all(is_in_names) => return Err(not_encoded()),
                _ => parsed.ignored.push(name.to_owned()),
            }
        }
        Ok(parsed)
    }
}

fn is_in_names(byte: u8) -> bool {
    byte.is_ascii_lowercase() || matches!(byte, b'-' | b'_')
}

/// The part of the URL before its parameters, with every `@` of user and password
/// percent-encoded: nico-api's parser takes all up to the last one for them, the
/// driver all up to the first, and the rest of the password for the host, which
/// is logged.
fn encode_credentials(base: &str, query: &str) -> Result<String, DatabaseError> {
    let (scheme, rest) = base
        .split_once("://")
        .filter(|(scheme, _)| matches!(*scheme, "postgres" | "postgresql"))
        .ok_or_else(|| DatabaseError::Url("another scheme".to_owned()))?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let credentials = authority.rsplit_once('@');
    if path.contains('@') || (credentials.is_none() && query.contains('@')) {
        return Err(not_encoded());
    }
    Ok(match credentials {
        Some((credentials, hosts)) => {
            let credentials = credentials.replace('@', "%40");
            format!("{scheme}://{credentials}@{hosts}{path}")
        }
        None => base.to_owned(),
    })
}

fn not_encoded() -> DatabaseError {
    DatabaseError::Url("special characters in user and password must be percent-encoded".to_owned())
}

fn root_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => root_cause(source),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Database, DatabaseError> {
        Database::parse(url, None, Duration::from_secs(5))
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
    }

    #[test]
    fn the_setting_wins_over_the_url() {
        let url = "postgres://db/nico?sslmode=disable&application_name=x";
        assert_eq!(parse(url).unwrap().ssl_mode, SslMode::Disable);
        let forced = Database::parse(url, Some(SslMode::Require), Duration::from_secs(5));
        assert_eq!(forced.unwrap().ssl_mode, SslMode::Require);
    }

    #[test]
    fn parameters_of_other_drivers_are_ignored_and_named() {
        let database = parse("postgres://db/nico?statement-cache-capacity=5&ssl-mode=require");
        let database = database.unwrap();
        assert_eq!(database.ignored_parameters(), ["statement-cache-capacity"]);
        assert_eq!(database.ssl_mode, SslMode::Require);
    }

    #[test]
    fn all_up_to_the_last_at_sign_is_user_and_password() {
        for url in [
            "postgres://u:a@s3cr3t@db/nico",
            "postgres://u:a%40s3cr3t@db/nico",
            "postgres://u:a@s3cr3t@db/nico?application_name=x@y",
        ] {
            let driver = parse(url).unwrap().driver;
            assert_eq!(driver.get_password(), Some(b"a@s3cr3t".as_slice()), "{url}");
            assert_eq!(
                driver.get_hosts(),
                [tokio_postgres::config::Host::Tcp("db".to_owned())]
            );
        }
    }

    #[test]
    fn faults_do_not_quote_the_url() {
        for url in [
            "postgres://u:s3cr3t@db/nico?sslmode=s3cr3t",
            "postgres://u:12?34s3cr3t@db/nico",
            "postgres://u:12?s3cr3t=%ff@db/nico",
            "postgres://u:s3cr3t@db:port/nico",
            "mysql://u:s3cr3t@db/nico",
            "s3cr3t",
            // Passwords that are not percent-encoded: `1?s3cr3t`, `1/s3cr3t` and so on.
            "postgres://u:1?s3cr3t@db/nico",
            "postgres://u:1?s3cr3t&s3cr3t@db/nico",
            "postgres://u:1@2?s3cr3t@db/nico",
            "postgres://u:1/s3cr3t@db/nico",
            "postgres://u:1/2@s3cr3t@db/nico",
            "postgres://u:s3cr3t@db/nico?sslmode=verify-full",
            "postgres://u:s3cr3t@db/nico?sslmode=verify-full&sslrootcert=/nowhere",
        ] {
            let error = parse(url).unwrap_err().to_string();
            assert!(!error.contains("s3cr3t"), "{error}");
        }
    }
}
