//! Evaluates the parameters of the URL together with its other parts.

use std::{net::IpAddr, path::PathBuf, str::FromStr, time::Duration};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio_postgres::config::Host;

use super::{
    error::DatabaseError,
    server::Server,
    ssl_mode::SslMode,
    url::{self, Url},
};

/// An upper bound for `connect_timeout`; `[rewrap]` has the same.
const MAX_CONNECT_TIMEOUT: Duration = Duration::from_secs(3600);

/// The parameters of the URL, by who uses them.
#[derive(Default)]
pub(super) struct Parameters {
    pub(super) ssl_mode: Option<SslMode>,
    pub(super) root_certificate: Option<PathBuf>,
    pub(super) connect_timeout: Option<Duration>,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) dbname: Option<String>,
    hosts: Option<String>,
    addresses: Option<String>,
    ports: Option<String>,
    pub(super) options: Vec<String>,
    for_driver: Vec<(String, String)>,
    pub(super) ignored: Vec<String>,
}

impl Parameters {
    pub(super) fn of(url: &Url) -> Result<Self, DatabaseError> {
        let mut parsed = Self::default();
        for (name, value) in &url.parameters {
            let text = || Some(value.clone());
            match name.as_str() {
                "sslmode" | "ssl-mode" => parsed.ssl_mode = Some(value.parse()?),
                "sslrootcert" | "ssl-root-cert" | "ssl-ca" => {
                    parsed.root_certificate = Some(PathBuf::from(value));
                }
                "connect_timeout" => parsed.connect_timeout = connect_timeout(value)?,
                "user" => parsed.user = text(),
                "password" => parsed.password = text(),
                "dbname" => parsed.dbname = text(),
                "host" => parsed.hosts = text(),
                "hostaddr" => parsed.addresses = text(),
                "port" => parsed.ports = text(),
                "options" => parsed.options.push(value.clone()),
                // The driver does not know libpq's `primary`: the server that accepts
                // writes.
                "target_session_attrs" if value == "primary" => {
                    let value = "read-write".to_owned();
                    parsed.for_driver.push((name.clone(), value));
                }
                "keepalives"
                | "keepalives_interval"
                | "keepalives_retries"
                | "target_session_attrs"
                | "channel_binding"
                | "load_balance_hosts" => {
                    parsed.for_driver.push((name.clone(), value.clone()));
                }
                // This program sets its own name.
                "application_name" => {}
                _ => match url::option_name(name) {
                    Some(option) => parsed
                        .options
                        .push(format!("-c {option}={}", escaped(value))),
                    None => parsed.ignored.push(name.clone()),
                },
            }
        }
        Ok(parsed)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.for_driver.iter().any(|(other, _)| other == name)
    }

    /// The driver checks its own parameters.
    pub(super) fn driver(&self) -> Result<tokio_postgres::Config, DatabaseError> {
        let parameters = self.for_driver.iter().map(|(name, value)| {
            let value = utf8_percent_encode(value, NON_ALPHANUMERIC);
            format!("{name}={value}")
        });
        let parameters: Vec<_> = parameters.collect();
        let url = format!("postgres://?{}", parameters.join("&"));
        tokio_postgres::Config::from_str(&url)
            .map_err(|error| DatabaseError::Url(root_cause(&error)))
    }
}

/// As in libpq: whole seconds, and zero or less means no limit. Here the default applies
/// then.
fn connect_timeout(value: &str) -> Result<Option<Duration>, DatabaseError> {
    let seconds: i64 = value
        .trim()
        .parse()
        .map_err(|_| DatabaseError::Url("connect_timeout is not a number of seconds".to_owned()))?;
    let seconds = u64::try_from(seconds).unwrap_or_default();
    let limit = Duration::from_secs(seconds).min(MAX_CONNECT_TIMEOUT);
    Ok(Some(limit).filter(|limit| !limit.is_zero()))
}

/// Escapes a value as the server expects it: a backslash before each blank and backslash.
fn escaped(value: &str) -> String {
    let mut escaped = String::new();
    for c in value.chars() {
        if c == '\\' || c.is_whitespace() {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// The servers of the URL. The parameters `host`, `hostaddr` and `port` override the other
/// parts.
pub(super) fn servers(url: &Url, parameters: &Parameters) -> Result<Vec<Server>, DatabaseError> {
    let problem = |what: &str| DatabaseError::Url(what.to_owned());
    let list = |text: &Option<String>| -> Option<Vec<String>> {
        let text = text.as_ref()?;
        Some(text.split(',').map(str::to_owned).collect())
    };
    let mut hosts: Vec<Option<Host>> = Vec::new();
    match list(&parameters.hosts) {
        Some(names) => {
            for name in names {
                hosts.push(Some(url::parse_host(&name).map_err(DatabaseError::Url)?));
            }
        }
        None => hosts.extend(url.hosts.iter().map(|(host, _)| Some(host.clone()))),
    }
    let mut addresses = vec![None; hosts.len()];
    if let Some(texts) = list(&parameters.addresses) {
        let parsed = texts.iter().map(|text| text.parse::<IpAddr>().map(Some));
        addresses = parsed
            .collect::<Result<_, _>>()
            .map_err(|_| problem("hostaddr is not an IP address"))?;
        if hosts.is_empty() {
            hosts = vec![None; addresses.len()];
        }
    }
    if hosts.is_empty() || hosts.contains(&Some(Host::Tcp(String::new()))) {
        return Err(DatabaseError::NoHost);
    }
    if hosts.len() != addresses.len() {
        return Err(problem(
            "host and hostaddr do not have the same number of entries",
        ));
    }
    let mut ports: Vec<_> = url.hosts.iter().map(|(_, port)| *port).collect();
    if let Some(texts) = list(&parameters.ports) {
        let parsed = texts.iter().map(|text| match text.as_str() {
            "" => Ok(None),
            port => url::parse_port(port).map(Some),
        });
        ports = parsed
            .collect::<Result<_, _>>()
            .map_err(DatabaseError::Url)?;
    }
    if ports.is_empty() {
        ports.push(None);
    }
    if ports.len() > 1 && ports.len() != hosts.len() {
        return Err(problem(
            "host and port do not have the same number of entries",
        ));
    }
    let port = |i: usize| ports.get(i).or(ports.first()).copied().flatten();
    let servers = hosts.into_iter().zip(addresses).enumerate();
    Ok(servers
        .map(|(i, (host, address))| Server {
            host,
            address,
            port: port(i).unwrap_or(url::DEFAULT_PORT),
        })
        .collect())
}

/// The variables that nico-api's driver (sqlx) reads for the parts that the URL omits.
pub(super) fn left_out(
    url: &Url,
    parameters: &Parameters,
    ssl_mode: Option<SslMode>,
) -> Vec<&'static str> {
    let has_port = parameters.ports.is_some() || url.hosts.iter().any(|(_, port)| port.is_some());
    let given: [(bool, &[&'static str]); 8] = [
        (
            !url.hosts.is_empty() || parameters.hosts.is_some() || parameters.addresses.is_some(),
            &["PGHOST", "PGHOSTADDR"],
        ),
        (has_port, &["PGPORT"]),
        (url.user.is_some() || parameters.user.is_some(), &["PGUSER"]),
        (
            url.password.is_some() || parameters.password.is_some(),
            &["PGPASSWORD", "PGPASSFILE"],
        ),
        (
            url.dbname.is_some() || parameters.dbname.is_some(),
            &["PGDATABASE"],
        ),
        (
            ssl_mode.is_some() || parameters.ssl_mode.is_some(),
            &["PGSSLMODE"],
        ),
        (parameters.root_certificate.is_some(), &["PGSSLROOTCERT"]),
        (!parameters.options.is_empty(), &["PGOPTIONS"]),
    ];
    let missing = given.into_iter().filter(|(given, _)| !given);
    missing
        .flat_map(|(_, variables)| variables.iter().copied())
        .collect()
}

fn root_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => root_cause(source),
        None => error.to_string(),
    }
}
