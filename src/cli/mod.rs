//! The command line.

mod healthcheck;
mod keygen;
mod migrate;
mod notify;
mod secrets_file;
mod serve;
mod signals;

use std::{ffi::OsString, num::NonZero, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand};
use zeroize::Zeroizing;

use crate::{config::Environment, telemetry};

/// Exit code for a fault of the configuration (EX_CONFIG of sysexits.h).
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
/// NICo keeps a few secrets of every organization in Postgres, encrypted under a
/// site master key (KEK). To change that key: add the new one to the secrets file
/// beside the old one, set [machine_identity].current_encryption_key_id to its id,
/// start this server, and call forge.Forge/ReencryptTenantIdentitySecrets, with
/// dry_run first. docs/rotate.md has the whole run-book.
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
    /// Reads nico-api's site config and secrets file. Settings of its own are in the
    /// section [rewrap], or in environment variables: NICO_REWRAP__LISTEN sets
    /// [rewrap].listen. NICO_API_DATABASE_URL wins over database_url. Keys are read from
    /// the environment first with CARBIDE_CREDENTIALS_ENV_ENABLED=true, then from
    /// [rewrap].secrets_file, or else from the file that nico-api reads:
    /// [credentials.file].path, or with CARBIDE_CREDENTIALS_FILE_ENABLED=true
    /// CARBIDE_CREDENTIALS_FILE_PATH.
    /// Exits with 78 when the configuration is at fault.
    Serve(ConfigFiles),
    /// Build nico-api's tables in an empty database, for development and tests.
    ///
    /// In production nico-api owns the tables: the server never creates or alters any.
    Migrate(ConfigFiles),
    /// Make keys.
    #[command(subcommand)]
    Keys(Keys),
    /// The same as `keys generate`.
    Keygen(keygen::Keygen),
    /// Ask a running server whether it is ready: exit code 0 if so, 1 if not.
    ///
    /// For a container's health check, where there is no curl. Asks /readyz at
    /// [rewrap].metrics_endpoint, which it finds as `serve` does; on loopback where the
    /// server listens on every address. Exits with 78 when the configuration is at
    /// fault.
    Healthcheck(healthcheck::Healthcheck),
}

#[derive(Debug, Subcommand)]
enum Keys {
    /// Make a fresh key: print it as a line for the secrets file, or add it to that file.
    ///
    /// The key is 32 bytes from the operating system. With --into it is added to the secrets
    /// file, and only its id and its key check value are printed. Exits with 4 if the id is
    /// taken or the file cannot be changed: then nothing was changed.
    Generate(keygen::Keygen),
}

#[derive(Debug, Args)]
struct ConfigFiles {
    /// A site config (TOML). Given several times, later files win key by key.
    #[arg(long, value_name = "FILE", required = true)]
    config: Vec<PathBuf>,
}

/// Runs the program and returns its exit code. The arguments and the environment
/// are those of the process, read here and nowhere below.
#[must_use]
pub fn main() -> ExitCode {
    // A SIGHUP can come as soon as the process exists, so this comes before everything else.
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
    match cli.command {
        Command::Serve(files) => serve::run(&files.config, environment),
        Command::Migrate(files) => migrate::run(&files.config, &environment),
        Command::Keys(Keys::Generate(keygen)) | Command::Keygen(keygen) => keygen.run(&environment),
        Command::Healthcheck(healthcheck) => healthcheck.run(&environment),
    }
}

/// A value as text, if it is UTF-8; what it is otherwise may still be a key, but for a byte.
fn text(value: OsString) -> Option<Zeroizing<String>> {
    match value.into_string() {
        Ok(text) => Some(Zeroizing::new(text)),
        Err(value) => {
            drop(Zeroizing::new(value.into_encoded_bytes()));
            None
        }
    }
}

/// Keys must not end up in a core file, nor be read by another process of the user.
fn forbid_core_dumps() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    // Where the system refuses, there is nothing left to do.
    let _ = setrlimit(Resource::Core, none);
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// How long the end of the process waits for somebody who reads its last words.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// For faults before logging is set up, and for subcommands without it.
fn fail(what: &dyn std::fmt::Display, code: u8) -> ExitCode {
    telemetry::say(format!("nico-rewrap: {what}\n"), LAST_WORDS);
    ExitCode::from(code)
}

/// With a thread for every second processor: one serves as many rows as two processors can
/// write in Postgres, and more only wake each other.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    let workers = processors.div_ceil(2);
    // The runtime panics where it gets no thread; one more is for the first file operation.
    reserve_threads(workers + 1)?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
}

fn no_threads(error: &std::io::Error) -> String {
    format!(
        "the system gives no more threads ({error}): raise the limit of processes of the user, the \
         service or the container (ulimit -u, TasksMax, pids limit)"
    )
}

/// Whether the system gives so many threads at once.
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
        // It does nothing that could fail.
        let _ = thread.join();
    }
    Ok(())
}
