//! The configuration: nico-api's site config, our own `[rewrap]` section, the
//! secrets file and the environment, read once into one validated [`Config`].
//!
//! Every fault is found before anything is bound or connected, and all of them
//! are reported together, each with the file, the setting, and what to do. Nothing
//! below this module reads the environment.

mod feature;
mod settings;

use std::{
    fmt,
    net::{Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use thiserror::Error;

pub use self::settings::Environment;
use self::settings::Settings;
use crate::{
    authorize::Policy,
    database::Database,
    identity::TrustRules,
    keyring::Keyring,
    store::StoreOptions,
    tls::{self, TlsFiles},
};

/// Everything that `serve` needs to know.
#[derive(Debug)]
pub struct Config {
    /// What to re-wrap; `None` while `[machine_identity]` is not enabled.
    pub feature: Option<Feature>,
    /// Certificate files.
    pub tls: TlsFiles,
    /// How a certificate becomes an identity.
    pub trust: TrustRules,
    /// Who may call.
    pub policy: Policy,
    /// Addresses and limits of the listeners.
    pub server: ServerOptions,
    /// How to log.
    pub log: LogOptions,
    /// Things that are odd, and no reason not to start.
    pub warnings: Vec<String>,
}

/// The enabled feature: keys and database.
#[derive(Debug)]
pub struct Feature {
    /// The site's keys, one of them the target.
    pub keyring: Keyring,
    /// Where the rows are.
    pub database: Database,
    /// How they are worked on.
    pub store: StoreOptions,
    /// Rows that are written in a second, at most; zero for no limit.
    pub max_rows_per_second: u32,
}

/// Addresses and limits.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Where gRPC is served.
    pub listen: SocketAddr,
    /// Where `/livez`, `/readyz` and `/metrics` are served.
    pub metrics_endpoint: SocketAddr,
    /// Time for what is under way after SIGTERM.
    pub shutdown_grace: Duration,
    /// Time for a TLS handshake.
    pub handshake_timeout: Duration,
    /// A connection without a call for this long is closed.
    pub idle_timeout: Duration,
    /// HTTP/2 pings are sent this often.
    pub keepalive_interval: Duration,
    /// A ping that is not answered for this long ends the connection.
    pub keepalive_timeout: Duration,
    /// Connections at once, handshakes included.
    pub max_client_connections: u32,
    /// Runs at once.
    pub max_runs: u32,
}

/// How to log.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// The form of a line.
    pub format: LogFormat,
    /// What is logged, as `tracing`'s `EnvFilter` spells it.
    pub filter: String,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// `key=value` pairs, as nico-api writes them.
    Logfmt,
    /// A JSON object.
    Json,
}

/// Every fault of the configuration, a line each.
#[derive(Debug, Error)]
pub struct ConfigError(pub Vec<String>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

/// What can be set in `[rewrap]`.
const KNOWN: [&str; 25] = [
    "allowed_services",
    "commit",
    "connect_timeout",
    "database_sslmode",
    "handshake_timeout",
    "idle_timeout",
    "keepalive_interval",
    "keepalive_timeout",
    "listen",
    "lock_timeout",
    "log_filter",
    "log_format",
    "max_attempts",
    "max_client_connections",
    "max_connections",
    "max_rows_per_second",
    "max_runs",
    "metrics_endpoint",
    "page_size",
    "pipeline_depth",
    "pool_wait",
    "pooler",
    "secrets_file",
    "shutdown_grace",
    "statement_timeout",
];

impl Config {
    /// Reads the files, later ones winning key by key, and the environment.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with every fault that was found.
    pub fn load(files: &[PathBuf], environment: &Environment) -> Result<Self, ConfigError> {
        let mut settings = Settings::read(files, environment);
        settings.only_known(&KNOWN);
        let mut warnings = foreign_variables(environment);

        let feature = if settings.bool("machine_identity.enabled", false) {
            feature::read(&mut settings, environment, &mut warnings)
        } else {
            None
        };
        let tls = tls_files(&mut settings);
        let trust = trust(&mut settings);
        let policy = policy(&mut settings);
        let server = server(&mut settings);
        let log = log(&mut settings);
        not_yet_enforced(&settings, &mut warnings);

        let faults = settings.into_faults();
        match (tls, trust) {
            (Some(tls), Some(trust)) if faults.is_empty() => Ok(Self {
                feature,
                tls,
                trust,
                policy,
                server,
                log,
                warnings,
            }),
            _ => Err(ConfigError(faults)),
        }
    }
}

/// The database alone, for the subcommands that need nothing else.
///
/// # Errors
///
/// [`ConfigError`] with every fault of the settings that tell where it is.
pub fn load_database(
    files: &[PathBuf],
    environment: &Environment,
) -> Result<Database, ConfigError> {
    let mut settings = Settings::read(files, environment);
    let database = feature::database(&mut settings, &mut Vec::new());
    let faults = settings.into_faults();
    match database {
        Some(database) if faults.is_empty() => Ok(database),
        _ => Err(ConfigError(faults)),
    }
}

/// The address of the probes alone, for the subcommand that asks them. Whatever else
/// is in the files is not looked at.
///
/// # Errors
///
/// [`ConfigError`] when the files can't be read, or the address is none.
pub fn load_metrics_endpoint(
    files: &[PathBuf],
    environment: &Environment,
) -> Result<SocketAddr, ConfigError> {
    let mut settings = Settings::read(files, environment);
    let endpoint = metrics_endpoint(&mut settings);
    match settings.into_faults() {
        faults if faults.is_empty() => Ok(endpoint),
        faults => Err(ConfigError(faults)),
    }
}

fn tls_files(settings: &mut Settings) -> Option<TlsFiles> {
    let mut path =
        |key: &str, what_to_do: &str| settings.required_string(key, what_to_do).map(PathBuf::from);
    let certificate = path(
        "tls.identity_pemfile_path",
        "name the server's certificate chain",
    );
    let key = path("tls.identity_keyfile_path", "name the server's private key");
    let root_ca = path(
        "tls.root_cafile_path",
        "name the CA certificates that client certificates are verified against",
    );
    let admin_root_ca = settings
        .string("tls.admin_root_cafile_path")
        .map(PathBuf::from);
    // Loaded once more when the listener is made; here so that a bad file is reported
    // along with everything else.
    for (key, error) in tls::check(
        certificate.as_deref(),
        key.as_deref(),
        root_ca.as_deref(),
        admin_root_ca.as_deref(),
    ) {
        settings.fault(key, error);
    }
    Some(TlsFiles {
        certificate: certificate?,
        key: key?,
        root_ca: root_ca?,
        admin_root_ca,
    })
}

fn trust(settings: &mut Settings) -> Option<TrustRules> {
    const DOMAIN: &str = "auth.trust.spiffe_trust_domain";
    let domain = settings.required_string(
        DOMAIN,
        "set it to the site's SPIFFE trust domain, like \"nico.local\"",
    );
    let domain = domain.map(|domain| bare_trust_domain(&domain).to_owned());
    if domain
        .as_ref()
        .is_some_and(|domain| !is_trust_domain(domain))
    {
        settings.fault(
            DOMAIN,
            "must be lower-case letters, digits, dots, dashes and underscores, like \"nico.local\"",
        );
    }
    let service_base_paths = settings.filled_list("auth.trust.spiffe_service_base_paths");
    let machine_base_path = settings.filled_string("auth.trust.spiffe_machine_base_path");
    let issuer_cns = settings.filled_list("auth.trust.additional_issuer_cns");
    Some(TrustRules {
        trust_domain: domain?,
        service_base_paths: service_base_paths
            .iter()
            .map(|path| with_slashes(path))
            .collect(),
        machine_base_path: machine_base_path.map(|path| with_slashes(&path)),
        issuer_cns,
    })
}

/// The setting may be spelled as a SPIFFE id, as nico-api allows.
fn bare_trust_domain(setting: &str) -> &str {
    let rest = setting.strip_prefix("spiffe://").unwrap_or(setting);
    rest.split('/').next().unwrap_or(rest)
}

/// SPIFFE-ID, section 2.1. Another one would be matched by no certificate at all.
fn is_trust_domain(domain: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    (1..=255).contains(&domain.len()) && domain.bytes().all(allowed)
}

/// A base path ends where a segment ends, whether or not it is spelled so.
fn with_slashes(path: &str) -> String {
    match path.trim_matches('/') {
        "" => "/".to_owned(),
        segments => format!("/{segments}/"),
    }
}

fn policy(settings: &mut Settings) -> Policy {
    Policy {
        allowed_services: settings
            .list("rewrap.allowed_services")
            .unwrap_or_else(|| vec!["nico-api".to_owned(), "carbide-api".to_owned()]),
    }
}

/// Every address of the machine, IPv4's too where the system has it so.
fn any_address(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))
}

fn metrics_endpoint(settings: &mut Settings) -> SocketAddr {
    settings.address("rewrap.metrics_endpoint", any_address(1180))
}

fn server(settings: &mut Settings) -> ServerOptions {
    let seconds = Duration::from_secs;
    ServerOptions {
        listen: settings.address("rewrap.listen", any_address(1179)),
        metrics_endpoint: metrics_endpoint(settings),
        shutdown_grace: settings.duration("rewrap.shutdown_grace", seconds(15)),
        handshake_timeout: settings.duration("rewrap.handshake_timeout", seconds(5)),
        idle_timeout: settings.duration("rewrap.idle_timeout", seconds(300)),
        keepalive_interval: settings.duration("rewrap.keepalive_interval", seconds(30)),
        keepalive_timeout: settings.duration("rewrap.keepalive_timeout", seconds(10)),
        max_client_connections: settings.number("rewrap.max_client_connections", 256, 1..=65_536),
        max_runs: settings.number("rewrap.max_runs", 8, 1..=1_024),
    }
}

fn log(settings: &mut Settings) -> LogOptions {
    let filter = settings
        .filled_string("rewrap.log_filter")
        .unwrap_or_else(|| "info".to_owned());
    if let Err(error) = filter.parse::<tracing_subscriber::filter::EnvFilter>() {
        settings.fault("rewrap.log_filter", format!("is not a filter ({error})"));
    }
    LogOptions {
        format: settings.choice(
            "rewrap.log_format",
            LogFormat::Logfmt,
            &[("logfmt", LogFormat::Logfmt), ("json", LogFormat::Json)],
        ),
        filter,
    }
}

/// What nico-api reads from the environment for settings that are used here, and
/// this program does not.
fn foreign_variables(environment: &Environment) -> Vec<String> {
    let is_foreign = |variable: &str| {
        let variable = variable.to_ascii_uppercase();
        let key = variable
            .strip_prefix("CARBIDE_API_")
            .or_else(|| variable.strip_prefix("NICO_API_"))?;
        let section = key.split(['.', '_']).next()?;
        (key.starts_with("MACHINE_IDENTITY") || matches!(section, "TLS" | "AUTH")).then_some(())
    };
    environment
        .keys()
        .filter(|variable| is_foreign(variable).is_some())
        .map(|variable| {
            format!(
                "environment variable {variable} is not read here, though nico-api may: \
                 put what it sets into a file given with --config"
            )
        })
        .collect()
}

/// Settings of nico-api's that narrow who may call and that this version does not
/// know how to apply. To start without a word would look like enforcement.
fn not_yet_enforced(settings: &Settings, warnings: &mut Vec<String>) {
    for (key, effect) in [
        (
            "auth.casbin_policy_file",
            "the policy is not applied; external users and [rewrap].allowed_services may call",
        ),
        (
            "auth.cli_certs",
            "its certificates get no identity from it and may not call",
        ),
        (
            "tls.admin_root_cafile_path",
            "its CAs are trusted, but external users of the other CAs are not refused for it",
        ),
    ] {
        if settings.is_set(key) {
            warnings.push(format!(
                "{}: {key}: not supported yet: {effect}",
                settings.source(key)
            ));
        }
    }
}
