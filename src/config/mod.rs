//! Reads nico-api's site config with our section `[rewrap]`, the secrets file and the
//! environment once, and validates them into one [`Config`].
//!
//! The program checks the whole configuration before it binds or connects anything. It
//! reports all problems together, each with the file, the setting and what to do. No module
//! below this one reads the environment.

mod auth;
mod environment;
mod key_sources;
mod key_stores;
mod keys;
mod machine_identity;
mod on_disk;
mod renamed;
mod schema;
mod settings;
mod site_keys;
mod tls;
mod traces;

use std::{
    collections::BTreeSet,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use thiserror::Error;

pub(crate) use self::schema::help;
pub use self::{
    environment::Environment,
    on_disk::{Change, OnDisk},
    schema::{DefaultValue, SETTINGS, Setting},
    site_keys::{InVault, SiteKeys},
};
use self::{
    environment::{ignored_nico_api_variables, misspelled_variables},
    on_disk::SiteFiles,
    settings::Settings,
};
use crate::{
    audit::{self, AuditOptions},
    auth::{authorize::Policy, identity::TrustRules},
    run::RateOptions,
    server::ServerOptions,
    store::{StoreOptions, database::Database},
    telemetry::{LogFormat, LogOptions, TraceOptions},
    tls::Loaded,
};

/// The complete configuration of `serve`.
#[derive(Debug)]
pub struct Config {
    /// Keys and database; `None` if `[machine_identity].enabled` is not true.
    pub machine_identity: Option<MachineIdentity>,
    /// The loaded TLS files.
    pub tls: Loaded,
    /// The rules that derive an identity from a certificate.
    pub trust: TrustRules,
    /// The rules that decide which identities may call.
    pub policy: Policy,
    /// Addresses and limits of the listeners.
    pub server: ServerOptions,
    /// Where audit records are written.
    pub audit: AuditOptions,
    /// Format and filter of the log.
    pub log: LogOptions,
    /// Where traces are sent. `None`: nowhere.
    pub traces: Option<TraceOptions>,
    /// Likely mistakes that do not prevent the start.
    pub warnings: Vec<String>,
    /// The content of the files, for later comparisons.
    pub on_disk: OnDisk,
}

/// The settings that exist only if `[machine_identity].enabled` is true.
#[derive(Debug)]
pub struct MachineIdentity {
    /// The site's keys.
    pub keys: SiteKeys,
    /// How to connect to Postgres.
    pub database: Database,
    /// Limits and modes of the database access.
    pub store: StoreOptions,
    /// Limits of the rate of runs.
    pub rate: RateOptions,
    /// TLS to the database: `none`, or the sslmode.
    pub database_tls: &'static str,
    /// The interval of the automatic censuses. Zero means no automatic census.
    pub census_interval: Duration,
    /// How long a key must be clean before it may be deleted.
    pub soak: Duration,
}

/// All problems of a configuration, each on a line of its own.
#[derive(Debug, Error)]
pub struct ConfigError(pub Vec<String>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

/// The sections that this program reads. `[auth.cli_certs]` has its own check.
const SECTIONS: [&str; 8] = [
    "auth",
    "auth.trust",
    "credentials",
    "credentials.file",
    "machine_identity",
    schema::SECTION,
    "secrets",
    "tls",
];

impl Config {
    /// Reads the files and the environment. For each key, a later file overrides an earlier
    /// one, and the environment overrides every file.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with all problems.
    pub fn load(files: &[PathBuf], environment: &Environment) -> Result<Self, ConfigError> {
        let mut settings = Settings::read(files, environment);
        settings.only_sections(&SECTIONS);
        settings.reject_unknown();
        settings.only_accepted_by_nico_api();
        settings.problems(misspelled_variables(environment));
        let mut warnings = ignored_nico_api_variables(environment);

        let mut secrets = None;
        let machine_identity = if settings.bool_or("machine_identity.enabled", false) {
            machine_identity::read(&mut settings, environment, &mut warnings, &mut secrets)
        } else {
            None
        };
        let tls = tls::read(&mut settings);
        let trust = auth::trust(&mut settings);
        let policy = auth::policy(&mut settings, &mut warnings);
        let server = server(&mut settings);
        let audit = audit(&mut settings);
        let log = log(&mut settings);
        let traces = traces::read(&mut settings, environment, &mut warnings);

        let on_disk = OnDisk {
            site: SiteFiles::new(files, &settings),
            secrets,
        };
        let problems = settings.into_problems();
        match (tls, trust) {
            (Some(tls), Some(trust)) if problems.is_empty() => Ok(Self {
                machine_identity,
                tls,
                trust,
                policy,
                server,
                audit,
                log,
                traces,
                warnings,
                on_disk,
            }),
            _ => Err(ConfigError(problems)),
        }
    }
}

/// Reads the settings of the database only, for subcommands that need nothing else.
///
/// # Errors
///
/// [`ConfigError`] if a file cannot be read or a setting of the database is invalid.
pub fn load_database(
    files: &[PathBuf],
    environment: &Environment,
) -> Result<Database, ConfigError> {
    let mut settings = Settings::read(files, environment);
    let database = machine_identity::database(&mut settings, environment, &mut Vec::new());
    let problems = settings.into_problems();
    match database {
        Some(database) if problems.is_empty() => Ok(database),
        _ => Err(ConfigError(problems)),
    }
}

/// Reads the ids of all keys of this program and of nico-api, and the target key id. Also
/// returns warnings. For the subcommand that creates a key. The secrets file `absent` need not
/// exist.
///
/// # Errors
///
/// [`ConfigError`] with all problems that prevent reading the ids.
pub fn load_key_ids(
    files: &[PathBuf],
    environment: &Environment,
    absent: Option<&Path>,
) -> Result<(BTreeSet<String>, Vec<String>), ConfigError> {
    let mut settings = Settings::read(files, environment);
    let mut warnings = Vec::new();
    let ids = keys::ids(&mut settings, environment, absent, &mut warnings);
    match settings.into_problems() {
        problems if problems.is_empty() => Ok((ids, warnings)),
        problems => Err(ConfigError(problems)),
    }
}

/// Reads `[rewrap].metrics_endpoint` only, for `healthcheck`. Problems of other settings are
/// ignored.
///
/// # Errors
///
/// [`ConfigError`] if a file cannot be read or the address is invalid.
pub fn load_metrics_endpoint(
    files: &[PathBuf],
    environment: &Environment,
) -> Result<SocketAddr, ConfigError> {
    let mut settings = Settings::read(files, environment);
    let endpoint = metrics_endpoint(&mut settings);
    match settings.into_problems() {
        problems if problems.is_empty() => Ok(endpoint),
        problems => Err(ConfigError(problems)),
    }
}

fn metrics_endpoint(settings: &mut Settings) -> SocketAddr {
    settings.address("rewrap.metrics_endpoint")
}

fn server(settings: &mut Settings) -> ServerOptions {
    ServerOptions {
        listen: settings.address("rewrap.listen"),
        metrics_endpoint: metrics_endpoint(settings),
        admin_socket: admin_socket(settings),
        receipt_log: settings
            .non_empty_string("rewrap.receipt_log")
            .map(PathBuf::from),
        instance_name: settings.non_empty_string("rewrap.instance_name"),
        shutdown_grace: settings.duration("rewrap.shutdown_grace"),
        handshake_timeout: settings.duration("rewrap.handshake_timeout"),
        request_read_timeout: settings.duration("rewrap.request_read_timeout"),
        tls_reload_interval: settings.duration("rewrap.tls_reload_interval"),
        idle_timeout: settings.duration("rewrap.idle_timeout"),
        keepalive_interval: settings.duration("rewrap.keepalive_interval"),
        keepalive_timeout: settings.duration("rewrap.keepalive_timeout"),
        max_concurrent_handshakes: settings.number("rewrap.max_concurrent_handshakes", 1..=65_536),
        max_client_connections: settings.number("rewrap.max_client_connections", 1..=65_536),
        max_connections_per_client: settings
            .number("rewrap.max_connections_per_client", 1..=65_536),
        max_runs: settings.number("rewrap.max_runs", 1..=1_024),
    }
}

fn admin_socket(settings: &mut Settings) -> Option<PathBuf> {
    const SOCKET: &str = "rewrap.admin_socket";
    let path = PathBuf::from(settings.non_empty_string(SOCKET)?);
    if !path.is_absolute() {
        let example = "write the whole path, like \"/run/nico-rewrap/admin.sock\"";
        settings.problem(SOCKET, format!("is not an absolute path: {example}"));
    }
    Some(path)
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
    let required = settings.bool_or("rewrap.audit_required", file.is_some());
    if required && file.is_none() {
        settings.missing(
            "rewrap.audit_required",
            "is true, but there is no audit log: set [rewrap].audit_log to a file",
        );
    }
    AuditOptions { file, required }
}

fn log(settings: &mut Settings) -> LogOptions {
    let filter = settings
        .non_empty_string("rewrap.log_filter")
        .unwrap_or_else(|| "info".to_owned());
    if let Err(error) = filter.parse::<tracing_subscriber::filter::EnvFilter>() {
        settings.problem(
            "rewrap.log_filter",
            format!("is not a valid filter ({error}); write one like \"info\""),
        );
    }
    LogOptions {
        format: settings.one_of(
            "rewrap.log_format",
            [("logfmt", LogFormat::Logfmt), ("json", LogFormat::Json)],
        ),
        filter,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A default of another type than the setting would prevent every start.
    #[test]
    fn every_default_is_a_valid_value() {
        let environment = Environment::default();
        let mut settings = Settings::read(&[], &environment);
        let mut warnings = Vec::new();
        let server = server(&mut settings);
        let _ = (audit(&mut settings), log(&mut settings));
        let policy = auth::policy(&mut settings, &mut warnings);
        let _ = machine_identity::read(&mut settings, &environment, &mut warnings, &mut None);
        let _ = (auth::trust(&mut settings), tls::read(&mut settings));
        let problems = settings.into_problems();
        let missing = |problem: &String| problem.contains(" is missing; ");
        assert!(problems.iter().all(missing), "{problems:?}");
        assert_eq!(server.listen.to_string(), "[::]:1179");
        assert_eq!(server.max_runs, 8);
        assert_eq!(server.shutdown_grace.as_secs(), 15);
        assert_eq!(policy.allowed_services, ["nico-api", "carbide-api"]);
    }
}
