//! Reads the settings that are needed only if `[machine_identity]` is enabled: keys,
//! database and limits.

use std::time::Duration;

use super::{Environment, MachineIdentity, keys, on_disk::SecretsOnDisk, settings::Settings};
use crate::{
    run::RateOptions,
    store::{
        Durability, PoolMode, StoreOptions,
        database::{Database, DatabaseError, SslMode},
    },
};

const HOUR: Duration = Duration::from_secs(3600);

/// Reads the keys, the database and the limits. Sets `secrets` to the content of the secrets file.
pub(super) fn read(
    settings: &mut Settings,
    environment: &Environment,
    warnings: &mut Vec<String>,
    secrets: &mut Option<SecretsOnDisk>,
) -> Option<MachineIdentity> {
    let algorithm = settings.string("machine_identity.algorithm");
    if algorithm.is_some_and(|algorithm| algorithm != "ES256") {
        settings.problem(
            "machine_identity.algorithm",
            "must be \"ES256\", the only supported algorithm",
        );
    }
    let keys = keys::read(settings, environment, warnings, secrets);
    let database = database(settings, environment, warnings);
    let store = store(settings, warnings);
    let database_tls = database.as_ref().map_or("none", Database::tls_name);
    Some(MachineIdentity {
        database_tls,
        keys: keys?,
        database: database?,
        store,
        rate: RateOptions {
            max_rows_per_second: settings.number("rewrap.max_rows_per_second", 0..=1_000_000),
            adaptive_rate: settings.bool("rewrap.adaptive_rate"),
        },
        census_interval: census_interval(settings),
        soak: settings.duration_in(
            "rewrap.soak",
            Duration::ZERO..=90 * 24 * HOUR,
            "must be a duration with a unit, from \"0s\" to \"90d\", like \"1h\"",
        ),
    })
}

/// Reads the interval of the automatic censuses. Zero means no automatic census.
fn census_interval(settings: &mut Settings) -> Duration {
    const KEY: &str = "rewrap.census_interval";
    const RULE: &str =
        "must be \"0s\", or a duration with a unit, from \"1s\" to \"1d\", like \"10m\"";
    let interval = settings.duration_in(KEY, Duration::ZERO..=24 * HOUR, RULE);
    if !interval.is_zero() && interval < Duration::from_secs(1) {
        settings.problem(KEY, RULE);
    }
    interval
}

/// Reads the URL of the database and the settings of its connections.
pub(super) fn database(
    settings: &mut Settings,
    environment: &Environment,
    warnings: &mut Vec<String>,
) -> Option<Database> {
    let ssl_mode =
        settings
            .string("rewrap.database_sslmode")
            .and_then(|text| match text.parse::<SslMode>() {
                Ok(mode) => Some(mode),
                Err(error) => {
                    settings.problem("rewrap.database_sslmode", error);
                    None
                }
            });
    const CONNECT_TIMEOUT: &str = "rewrap.connect_timeout";
    let is_set = settings.is_set(CONNECT_TIMEOUT);
    let connect_timeout = is_set.then(|| settings.duration(CONNECT_TIMEOUT));
    let url = settings.required_string(
        "database_url",
        "set it, or the environment variable NICO_API_DATABASE_URL, to nico-api's database",
    )?;
    match Database::parse(&url, ssl_mode, connect_timeout) {
        Ok(database) => {
            let source = settings.source("database_url");
            for parameter in database.ignored_parameters() {
                warnings.push(format!("{source}: database_url: {}", ignored(parameter)));
            }
            Some(match unread_variables(environment, database.left_out()) {
                None => database,
                Some(unread) => {
                    warnings.push(format!("{unread} ({source})"));
                    database.with_advice(unread)
                }
            })
        }
        Err(error) => {
            let hosts = match error {
                DatabaseError::NoHost => unread_variables(environment, &["PGHOST", "PGHOSTADDR"]),
                _ => None,
            };
            let hosts = hosts.map_or_else(String::new, |unread| format!("; {unread}"));
            settings.problem("database_url", format!("{error}{hosts}"));
            None
        }
    }
}

/// The warning about a parameter of the URL that this program does not know.
fn ignored(parameter: &str) -> String {
    let meant = Database::meant_parameter(parameter);
    let meant = meant.map_or_else(String::new, |meant| {
        format!("; names are case-sensitive, did you mean {meant:?}?")
    });
    format!("parameter {parameter:?} is unknown and ignored{meant}")
}

/// The warning about variables of libpq that are set. nico-api reads them, and this
/// program does not.
fn unread_variables(environment: &Environment, names: &[&str]) -> Option<String> {
    let is_set = |name: &&&str| match environment.get(**name) {
        Some(Some(value)) => !value.is_empty(),
        Some(None) => true,
        None => false,
    };
    let set: Vec<_> = names.iter().filter(is_set).copied().collect();
    if set.is_empty() {
        return None;
    }
    let (noun, verb, value) = match set.len() {
        1 => ("variable", "is", "its value"),
        _ => ("variables", "are", "their values"),
    };
    Some(format!(
        "environment {noun} {} {verb} not read here, but nico-api reads such variables: write \
         {value} into database_url",
        set.join(", ")
    ))
}

fn store(settings: &mut Settings, warnings: &mut Vec<String>) -> StoreOptions {
    let lock_timeout = settings.duration("rewrap.lock_timeout");
    let statement_timeout = settings.duration("rewrap.statement_timeout");
    if lock_timeout >= statement_timeout {
        warnings.push(format!(
            "{}: [rewrap].lock_timeout is not shorter than [rewrap].statement_timeout and has no \
             effect: the statement timeout ends every wait for a lock first; set a shorter \
             lock_timeout",
            settings.source("rewrap.lock_timeout")
        ));
    }
    let durability = settings.one_of(
        "rewrap.durability",
        [
            ("per_run", Durability::PerRun),
            ("per_row", Durability::PerRow),
        ],
    );
    // Measured. With one flush per run, more connections are hardly faster and slow down
    // tenants. With one flush per row, more connections share each flush.
    const POOL_SIZE: &str = "rewrap.database_pool_size";
    let pool_size = if durability == Durability::PerRow && !settings.is_set(POOL_SIZE) {
        16
    } else {
        settings.number(POOL_SIZE, 1..=256)
    };
    let pool_mode = settings.one_of(
        "rewrap.pool_mode",
        [
            ("session", PoolMode::Session),
            ("transaction", PoolMode::Transaction),
        ],
    );
    // PgBouncer before 1.21 can give a session to another client while a transaction follows
    // on it. The messages of both clients then mix. So no transaction may follow.
    let pipeline_depth = settings.number("rewrap.pipeline_depth", 1..=64);
    let pipeline_depth = match pool_mode {
        PoolMode::Session => pipeline_depth,
        PoolMode::Transaction => 1,
    };
    StoreOptions {
        database_pool_size: pool_size as usize,
        page_size: settings.number("rewrap.page_size", 1..=10_000),
        lock_timeout,
        statement_timeout,
        pool_acquire_timeout: settings.duration("rewrap.pool_acquire_timeout"),
        max_attempts: settings.number("rewrap.max_attempts", 1..=100),
        pipeline_depth: pipeline_depth as usize,
        durability,
        pool_mode,
    }
}
