//! The command line: arguments, subcommands and exit codes.

mod healthcheck;
mod keygen;
mod migrate;
mod notify;
mod secrets_file;
mod serve;
mod signals;
mod state;

use std::{ffi::OsString, num::NonZero, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand};
use zeroize::Zeroizing;

use crate::{
    config::{self, Environment},
    telemetry,
};

/// Exit code for a configuration error (EX_CONFIG of sysexits.h).
const EX_CONFIG: u8 = 78;

/// Version and source revision.
pub const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("NICO_REWRAP_REVISION"),
    ")"
);

/// Re-wraps NICo's machine-identity secrets when a site changes its master key.
///
/// NICo stores up to three secrets of each organization in Postgres, encrypted with a site
/// master key (KEK). To change the key, first add the new key to the secrets file and keep
/// the old one. Set [machine_identity].current_encryption_key_id to the id of the new key
/// and start this server. Then call forge.Forge/ReencryptTenantIdentitySecrets, first with
/// dry_run. docs/rotate.md describes the whole procedure.
#[derive(Debug, Parser)]
#[command(name = "nico-rewrap", version = VERSION)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server.
    ///
    /// The server reads nico-api's site config and secrets file. Its own settings are in the
    /// section [rewrap]. An environment variable overrides each of them: NICO_REWRAP__LISTEN
    /// overrides [rewrap].listen. NICO_API_DATABASE_URL overrides database_url.
    ///
    /// With CARBIDE_CREDENTIALS_ENV_ENABLED=true, the server reads keys from the environment
    /// first. It then reads the secrets file: [rewrap].secrets_file if set, otherwise
    /// [credentials.file].path, otherwise CARBIDE_CREDENTIALS_FILE_PATH, which needs
    /// CARBIDE_CREDENTIALS_FILE_ENABLED=true.
    ///
    /// The exit code is 0 after SIGTERM or SIGINT, 78 for a configuration error, and 1 for any
    /// other error.
    #[command(after_long_help = config::help())]
    Serve(ConfigFiles),
    /// Create nico-api's tables in an empty database, for development and tests.
    ///
    /// In production, nico-api owns the tables. The server never creates or alters tables.
    Migrate(ConfigFiles),
    /// Prepare the schema in which all instances keep runs, censuses and receipts.
    #[command(subcommand)]
    State(state::State),
    /// Create keys.
    #[command(subcommand)]
    Keys(Keys),
    /// The same as `keys generate`.
    Keygen(keygen::Keygen),
    /// Check whether a running server is ready.
    ///
    /// Meant for the health check of a container without curl. Queries /readyz at
    /// [rewrap].metrics_endpoint, which it reads as `serve` does. If the server listens on
    /// every address, the query goes to loopback.
    ///
    /// The exit code is 0 if the server is ready, 1 if it is not, and 78 for a configuration
    /// error.
    Healthcheck(healthcheck::Healthcheck),
}

#[derive(Debug, Subcommand)]
enum Keys {
    /// Create a random key, and print it or add it to a secrets file.
    ///
    /// The key is 32 bytes from the operating system. By default, the command prints a line for
    /// the secrets file. With --into, it adds the key to a secrets file and prints only the key
    /// id and the key check value.
    ///
    /// The exit code is 4 if the id is taken or the file cannot be changed. In both cases,
    /// nothing was changed.
    Generate(keygen::Keygen),
}

#[derive(Debug, Args)]
struct ConfigFiles {
    /// A site config file (TOML). If the option is repeated, later files override earlier ones,
    /// key by key.
    #[arg(long, value_name = "FILE", required = true)]
    config: Vec<PathBuf>,
}

/// Runs the program and returns its exit code. No other function reads the arguments or the
/// environment of the process.
#[must_use]
pub fn main() -> ExitCode {
    // First of all: a SIGHUP can arrive as soon as the process exists.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|name| name == "serve")
    {
        signals::survive();
    }
    let cli = Cli::parse();
    let environment: Environment = std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), text(value)))
        .collect();
    forbid_core_dumps();
    #[cfg(all(feature = "failpoints", debug_assertions))]
    crate::failpoint::arm(|name| environment.get(name)?.as_ref().map(|text| text.to_string()));
    match cli.command {
        Command::Serve(files) => serve::run(&files.config, environment),
        Command::Migrate(files) => migrate::run(&files.config, &environment),
        Command::State(state) => state.run(&environment),
        Command::Keys(Keys::Generate(keygen)) | Command::Keygen(keygen) => keygen.run(&environment),
        Command::Healthcheck(healthcheck) => healthcheck.run(&environment),
    }
}

/// The value as text, or `None` if it is not UTF-8. Both are wiped on drop: a value with one
/// wrong byte may still be most of a key.
fn text(value: OsString) -> Option<Zeroizing<String>> {
    match value.into_string() {
        Ok(text) => Some(Zeroizing::new(text)),
        Err(value) => {
            drop(Zeroizing::new(value.into_encoded_bytes()));
            None
        }
    }
}

/// Disables core dumps, which would contain keys, and memory access by other processes of the
/// same user.
fn forbid_core_dumps() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    // Errors are ignored: the program works without this protection.
    let _ = setrlimit(Resource::Core, none);
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// How long the exit waits for a reader of standard error.
const EXIT_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Reports an error without the log: before logging starts, and in subcommands without a log.
fn fail(what: &dyn std::fmt::Display, code: u8) -> ExitCode {
    telemetry::say(format!("nico-rewrap: {what}\n"), EXIT_FLUSH_TIMEOUT);
    ExitCode::from(code)
}

/// Builds the runtime, with one thread for two processors. One thread serves as many rows as
/// Postgres writes with two processors. More threads only cost context switches.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    let workers = processors.div_ceil(2);
    // The runtime panics if it cannot start a thread. One more is for the first file operation.
    reserve_threads(workers + 1)?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
}

fn no_threads(error: &std::io::Error) -> String {
    format!(
        "the system cannot start more threads ({error}): raise the process limit of the user, the \
         service or the container (ulimit -u, TasksMax, pids limit)"
    )
}

/// Checks that the system can run `count` threads at the same time.
fn reserve_threads(count: usize) -> std::io::Result<()> {
    let (release, _) = tokio::sync::broadcast::channel::<()>(1);
    let threads: Vec<_> = (0..count)
        .map(|_| {
            let mut released = release.subscribe();
            std::thread::Builder::new().spawn(move || drop(released.blocking_recv()))
        })
        .collect();
    drop(release);
    for thread in threads {
        let thread = thread.map_err(|error| std::io::Error::other(no_threads(&error)))?;
        // The thread cannot panic.
        let _ = thread.join();
    }
    Ok(())
}
