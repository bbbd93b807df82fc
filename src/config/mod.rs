//! The configuration: nico-api's site config, our own `[rewrap]` section, the
//! secrets file and the environment, read once into one validated [`Config`].
//!
//! Every fault is found before anything is bound or connected, and all of them
//! are reported together, each with the file, the setting, and what to do. Nothing
//! below this module reads the environment.

mod auth;
mod environment;
mod key_sources;
mod keys;
mod machine_identity;
mod renamed;
mod settings;
mod tls;

use std::{
    collections::BTreeSet,
    fmt,
    net::{Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use thiserror::Error;

pub use self::environment::Environment;
use self::{
    environment::{ignored_nico_api_variables, misspelled_variables},
    settings::Settings,
};
use crate::{
    audit::{self, AuditOptions},
    auth::{authorize::Policy, identity::TrustRules},
    domain::keyring::Keyring,
    run::RateOptions,
    server::ServerOptions,
    store::{StoreOptions, database::Database},
    telemetry::{LogFormat, LogOptions},
    tls::Loaded,
};

/// Everything that `serve` needs to know.
#[derive(Debug)]
pub struct Config {
    /// What to re-wrap; `None` while `[machine_identity]` is not enabled.
    pub machine_identity: Option<MachineIdentity>,
    /// Certificate files, loaded.
    pub tls: Loaded,
    /// How a certificate becomes an identity.
    pub trust: TrustRules,
    /// Who may call.
    pub policy: Policy,
    /// Addresses and limits of the listeners.
    pub server: ServerOptions,
    /// Where the records of calls go.
    pub audit: AuditOptions,
    /// How to log.
    pub log: LogOptions,
    /// Things that are odd, and no reason not to start.
    pub warnings: Vec<String>,
}

/// The enabled feature: keys and database.
#[derive(Debug)]
pub struct MachineIdentity {
    /// The site's keys, one of them the target.
    pub keyring: Keyring,
    /// Where the rows are.
    pub database: Database,
    /// How they are worked on.
    pub store: StoreOptions,
    /// How fast.
    pub speed: RateOptions,
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
const KNOWN: [&str; 37] = [
    "adaptive_rate",
    "admin_issuers_in_root_ca",
    "allowed_services",
    "audit_log",
    "audit_required",
    "connect_timeout",
    "crl_files",
    "crl_policy",
    "database_pool_size",
    "database_sslmode",
    "durability",
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
    "max_concurrent_handshakes",
    "max_connections_per_client",
    "max_rows_per_second",
    "max_runs",
    "metrics_endpoint",
    "page_size",
    "pipeline_depth",
    "pool_acquire_timeout",
    "pool_mode",
    "request_read_timeout",
    "secrets_environment_prefix",
    "secrets_file",
    "secrets_from_environment",
    "shutdown_grace",
    "statement_timeout",
    "tls_reload_interval",
];

/// Every section that is read; `[auth.cli_certs]` has a check of its own.
const SECTIONS: [&str; 7] = [
    "auth",
    "auth.trust",
    "credentials",
    "credentials.file",
    "machine_identity",
    settings::SECTION,
    "tls",
];

impl Config {
    /// Reads the files, later ones winning key by key, and the environment.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with every fault that was found.
    pub fn load(files: &[PathBuf], environment: &Environment) -> Result<Self, ConfigError> {
        let mut settings = Settings::read(files, environment);
        settings.only_sections(&SECTIONS);
        settings.reject_unknown(&KNOWN);
        settings.only_accepted_by_nico_api();
        settings.problems(misspelled_variables(environment, &KNOWN));
        let mut warnings = ignored_nico_api_variables(environment);

        let machine_identity = if settings.bool("machine_identity.enabled", false) {
            machine_identity::read(&mut settings, environment, &mut warnings)
        } else {
            None
        };
        let tls = tls::read(&mut settings);
        let trust = auth::trust(&mut settings);
        let policy = auth::policy(&mut settings, &mut warnings);
        let server = server(&mut settings);
        let audit = audit(&mut settings);
        let log = log(&mut settings);

        let problems = settings.into_faults();
        match (tls, trust) {
            (Some(tls), Some(trust)) if problems.is_empty() => Ok(Self {
                machine_identity,
                tls,
                trust,
                policy,
                server,
                audit,
                log,
                warnings,
            }),
            _ => Err(ConfigError(problems)),
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
    let database = machine_identity::database(&mut settings, environment, &mut Vec::new());
    let problems = settings.into_faults();
    match database {
        Some(database) if problems.is_empty() => Ok(database),
        _ => Err(ConfigError(problems)),
    }
}

/// The ids of all keys that this program and nico-api find, and the id of the target; and
/// warnings. For the subcommand that makes a new key. `absent` is a secrets file that need not
/// exist yet.
///
/// # Errors
///
/// [`ConfigError`] with everything that keeps ids from being known.
pub fn load_key_ids(
    files: &[PathBuf],
    environment: &Environment,
    absent: Option<&Path>,
) -> Result<(BTreeSet<String>, Vec<String>), ConfigError> {
    let mut settings = Settings::read(files, environment);
    let mut warnings = Vec::new();
    let ids = keys::ids(&mut settings, environment, absent, &mut warnings);
    match settings.into_faults() {
        faults if faults.is_empty() => Ok((ids, warnings)),
        faults => Err(ConfigError(faults)),
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
        problems if problems.is_empty() => Ok(endpoint),
        problems => Err(ConfigError(problems)),
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
        request_read_timeout: settings.duration("rewrap.request_read_timeout", seconds(10)),
        tls_reload_interval: settings.duration("rewrap.tls_reload_interval", seconds(10)),
        idle_timeout: settings.duration("rewrap.idle_timeout", seconds(300)),
        keepalive_interval: settings.duration("rewrap.keepalive_interval", seconds(30)),
        keepalive_timeout: settings.duration("rewrap.keepalive_timeout", seconds(10)),
        max_concurrent_handshakes: settings.number(
            "rewrap.max_concurrent_handshakes",
            128,
            1..=65_536,
        ),
        max_client_connections: settings.number("rewrap.max_client_connections", 256, 1..=65_536),
        max_connections_per_client: settings.number(
            "rewrap.max_connections_per_client",
            64,
            1..=65_536,
        ),
        max_runs: settings.number("rewrap.max_runs", 8, 1..=1_024),
    }
}

fn audit(settings: &mut Settings) -> AuditOptions {
    let file = settings
        .non_empty_string("rewrap.audit_log")
        .map(PathBuf::from);
    if let Some(path) = &file
        && let Err(error) = audit::check(path)
    {
        let path = path.display();
        settings.problem(
            "rewrap.audit_log",
            format!("{path} can't be opened for appending ({error})"),
        );
    }
    let required = settings.bool("rewrap.audit_required", file.is_some());
    if required && file.is_none() {
        settings.missing(
            "rewrap.audit_required",
            "needs a file: set [rewrap].audit_log",
        );
    }
    AuditOptions { file, required }
}

fn log(settings: &mut Settings) -> LogOptions {
    let filter = settings
        .non_empty_string("rewrap.log_filter")
        .unwrap_or_else(|| "info".to_owned());
    if let Err(error) = filter.parse::<tracing_subscriber::filter::EnvFilter>() {
        settings.problem("rewrap.log_filter", format!("is not a filter ({error})"));
    }
    LogOptions {
        format: settings.one_of(
            "rewrap.log_format",
            LogFormat::Logfmt,
            &[("logfmt", LogFormat::Logfmt), ("json", LogFormat::Json)],
        ),
        filter,
    }
}
