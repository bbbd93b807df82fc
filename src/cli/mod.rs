//! The command line: arguments, subcommands and exit codes.

mod check_value;
mod client;
mod config_check;
mod healthcheck;
mod keygen;
mod migrate;
mod notify;
mod pages;
mod receipt;
mod reference;
mod secrets_file;
mod serve;
mod signals;
mod state;

use std::{ffi::OsString, num::NonZero, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, CommandFactory, Parser, Subcommand};
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
/// and start this server. Then run `nico-rewrap rotate`. docs/rotate.md describes the whole
/// procedure.
#[derive(Debug, Parser)]
#[command(name = "nico-rewrap", version = VERSION, max_term_width = 100, after_long_help = client::EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the whole site on one screen, and what to do next.
    ///
    /// The command asks every address of the endpoint's name: do all instances have the same
    /// target key and the same key bytes? It shows each key with its verdict, the run in
    /// progress, and the failures of the last run.
    Status(client::Status),
    /// Check everything that a rotation needs, without changing anything.
    ///
    /// The command asks every instance, takes a census and makes a dry run. It also checks whether
    /// nico-api has the same bytes under the target key: a secret that nico-api wrote under it must
    /// open.
    ///
    /// The exit code is 0 if nothing prevents a rotation, 3 if a check failed, and 4 if the server
    /// refused the census or the dry run.
    Check(client::Check),
    /// Rotate the key: check, ask, re-wrap every secret, and show the verdict.
    ///
    /// The command makes the checks of `check`, shows what it will do, and asks for permission. It
    /// re-wraps the canary organizations first, then all others. Then it takes a census and shows
    /// which keys are still in use. If a secret was written under an old key in the meantime, it
    /// re-wraps again.
    ///
    /// The server executes the run. On a terminal, Ctrl-C asks what to do: leave this command, stop
    /// the run, or continue to watch. SIGTERM, or Ctrl-C without a terminal, ends this command, and
    /// the run continues.
    ///
    /// The exit code is 0 if every secret is under the target key, 3 if rows or the canary check
    /// failed, 4 if nothing was changed, 5 if the run is incomplete, and 8 if secrets are still
    /// written under an old key.
    Rotate(client::Rotate),
    /// Re-wrap the secrets, or show with --dry-run what an apply would do.
    ///
    /// The server executes the run. If this command ends early, the run continues.
    ///
    /// The exit code is 0 if every row is done, 3 if rows failed, 4 if the server refused the
    /// run, and 5 if the run is incomplete and has to be repeated.
    Reencrypt(client::Reencrypt),
    /// Count the secrets by key id, and show the keys.
    Census(client::Census),
    /// Open every secret and check its meaning. Writes nothing.
    Verify(client::Verify),
    /// Answer the question whether a key may be deleted.
    ///
    /// The exit code is 0 for yes, 8 for no or not yet, and 9 if the server does not know.
    CanIDelete(client::CanIDelete),
    /// List, show, watch and stop runs.
    #[command(subcommand)]
    Runs(client::Runs),
    /// List and create keys.
    #[command(subcommand)]
    Keys(Keys),
    /// Show and check the receipts of applies.
    #[command(subcommand)]
    Receipt(receipt::Receipt),
    /// Show how the server sees you, and whether you may call it.
    ///
    /// The exit code is 0 if you may call the server, and 7 if not.
    #[command(name = "whoami")]
    WhoAmI(client::WhoAmI),
    /// List and choose the servers in ~/.config/nico-rewrap/config.toml.
    #[command(subcommand)]
    Context(client::ContextCommand),
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
    /// Check the configuration of the server.
    #[command(subcommand)]
    Config(config_check::ConfigCommand),
    /// Prepare the schema in which all instances keep runs, censuses and receipts.
    #[command(subcommand)]
    State(state::State),
    /// Check whether a running server is ready.
    ///
    /// Meant for the health check of a container without curl. Queries /readyz at
    /// [rewrap].metrics_endpoint, which it reads as `serve` does. If the server listens on
    /// every address, the query goes to loopback.
    ///
    /// The exit code is 0 if the server is ready, 1 if it is not, and 78 for a configuration
    /// error.
    Healthcheck(healthcheck::Healthcheck),
    /// Print a completion script for a shell.
    ///
    /// For bash: nico-rewrap completion bash > /etc/bash_completion.d/nico-rewrap
    Completion(pages::Completion),
    /// Print the manual page.
    Man(pages::Man),
    /// Commands for development and tests.
    #[command(subcommand)]
    Dev(Dev),
    /// The same as `keys generate`.
    #[command(hide = true)]
    Keygen(keygen::Keygen),
    /// The same as `dev migrate`: create nico-api's tables in an empty database, for development.
    #[command(hide = true)]
    Migrate(ConfigFiles),
}

#[derive(Debug, Subcommand)]
enum Keys {
    /// List every key id, where it is used, and whether it may be deleted.
    ///
    /// The numbers come from the last census.
    List(client::ListKeys),
    /// Create a random key, and print it or add it to a secrets file.
    ///
    /// The key is 32 bytes from the operating system. By default, the command prints a line for
    /// the secrets file. With --into, it adds the key to a secrets file and prints only the key
    /// id and the key check value.
    ///
    /// The exit code is 4 if the id is taken or the file cannot be changed. In both cases,
    /// nothing was changed.
    Generate(keygen::Keygen),
    /// Read a key in base64 from standard input, and print its check value.
    ///
    /// Two programs with the same check value have the same key.
    CheckValue(check_value::CheckValue),
}

#[derive(Debug, Subcommand)]
enum Dev {
    /// Create nico-api's tables in an empty database, for development and tests.
    ///
    /// In production, nico-api owns the tables. The server never creates or alters tables.
    Migrate(ConfigFiles),
    /// Print docs/reference/cli.md.
    #[command(hide = true)]
    CliReference,
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
    let variables = client_variables(&environment);
    let exit = match cli.command {
        Command::Serve(files) => return serve::run(&files.config, environment),
        Command::Config(command) => return command.run(&environment),
        Command::Migrate(files) | Command::Dev(Dev::Migrate(files)) => {
            return migrate::run(&files.config, &environment);
        }
        Command::Dev(Dev::CliReference) => pages::print(reference::page(Cli::command()).as_bytes()),
        Command::Completion(completion) => completion.run(Cli::command()),
        Command::Man(man) => man.run(Cli::command()),
        Command::State(state) => return state.run(&environment),
        Command::Keys(Keys::Generate(keygen)) | Command::Keygen(keygen) => {
            return keygen.run(&environment);
        }
        Command::Healthcheck(healthcheck) => return healthcheck.run(&environment),
        Command::Keys(Keys::CheckValue(check_value)) => check_value.run(),
        Command::Keys(Keys::List(list)) => client::run(&list, &variables),
        Command::Receipt(receipt) => receipt.run(&variables),
        Command::Context(context) => context.run(&variables),
        Command::Status(status) => client::run(&status, &variables),
        Command::Check(check) => client::run(&check, &variables),
        Command::Rotate(rotate) => client::run(&rotate, &variables),
        Command::Reencrypt(reencrypt) => client::run(&reencrypt, &variables),
        Command::Census(census) => client::run(&census, &variables),
        Command::Verify(verify) => client::run(&verify, &variables),
        Command::CanIDelete(question) => client::run(&question, &variables),
        Command::Runs(runs) => client::run(&runs, &variables),
        Command::WhoAmI(whoami) => client::run(&whoami, &variables),
    };
    exit.into()
}

/// What the client reads from the environment.
fn client_variables(environment: &Environment) -> client::Variables {
    let all = environment.iter();
    client::Variables::from(all.map(|(name, value)| {
        let value = value.as_ref().map(|value| value.as_str());
        (name.as_str(), value)
    }))
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
    telemetry::write_message(format!("nico-rewrap: {what}\n"), EXIT_FLUSH_TIMEOUT);
    ExitCode::from(code)
}

/// The stack of a worker thread. A run polls futures deep inside each other, and a debug build
/// needs more than the usual 2 MiB for them. The kernel gives only the pages that are used.
const STACK_BYTES: usize = 8 << 20;

/// Builds the runtime, with one thread for two processors. One thread serves as many rows as
/// Postgres writes with two processors. More threads only cost context switches.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    let workers = processors.div_ceil(2);
    // The runtime panics if it cannot start a thread. One more is for the first file operation,
    // and one for the traces.
    reserve_threads(workers + 2)?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .thread_stack_size(STACK_BYTES)
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
