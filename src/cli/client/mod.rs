//! The operator's client: commands that ask a server.
//!
//! It uses the generated client code and nothing of the server. Data goes to standard output,
//! everything else to standard error. `exit.rs` has the exit codes.

mod can_i_delete;
mod check;
mod connection;
mod context_command;
mod exit;
mod keys;
mod options;
mod output;
mod problem;
mod receipt;
mod rotate;
mod run;
mod runs;
mod status;
mod variables;
mod whoami;

use std::future::Future;

use tokio::{
    sync::{Mutex, MutexGuard, OnceCell},
    time::Instant,
};

pub(super) use self::{
    can_i_delete::CanIDelete,
    check::Check,
    context_command::ContextCommand,
    exit::{Exit, HELP as EXIT_CODES},
    keys::List as ListKeys,
    receipt::Show as ShowReceipt,
    rotate::Rotate,
    run::{Census, Reencrypt, Verify},
    runs::Runs,
    status::Status,
    variables::Variables,
    whoami::WhoAmI,
};
use self::{
    connection::{Session, Sessions, settings::Settings},
    options::Common,
    output::Output,
    problem::Problem,
    run::Signals,
};

/// A command with the options of every command.
pub(super) trait Command {
    /// The common options.
    fn common(&self) -> &Common;

    /// Does the work. The result is the exit code.
    fn execute(&self, client: &Client) -> impl Future<Output = Result<Exit, Problem>>;
}

/// What a command works with.
#[derive(Debug)]
pub(super) struct Client {
    output: Output,
    settings: Settings,
    /// The time at which the command gives up.
    deadline: Option<Instant>,
    /// Whether the command may not ask a question.
    no_input: bool,
    /// The receiver of Ctrl-C and SIGTERM. A command creates it when it first waits for a signal.
    signals: OnceCell<Mutex<Signals>>,
}

impl Client {
    fn new(common: &Common, variables: &Variables) -> Result<Self, (Output, Problem)> {
        let output = output(common, variables);
        match Settings::resolve(&common.connection, variables) {
            Ok(settings) => Ok(Self {
                output,
                settings,
                deadline: common.timeout.map(|timeout| Instant::now() + timeout),
                no_input: common.no_input,
                signals: OnceCell::new(),
            }),
            Err(problem) => Err((output, problem)),
        }
    }

    /// Returns the receiver of the signals. Before the first call, a signal ends the process.
    async fn signals(&self) -> Result<MutexGuard<'_, Signals>, Problem> {
        let signals = self
            .signals
            .get_or_try_init(|| async { Signals::install().map(Mutex::new) });
        Ok(signals.await?.lock().await)
    }

    /// Connects to one instance.
    async fn connect(&self) -> Result<Session, Problem> {
        Session::connect(&self.settings, self.deadline).await
    }

    /// Connects to every instance.
    async fn connect_all(&self) -> Result<Sessions, Problem> {
        Session::connect_all(&self.settings, self.deadline).await
    }
}

fn output(common: &Common, variables: &Variables) -> Output {
    let is_dumb = variables.is("TERM", "dumb");
    Output::new(&common.output, variables.is_set("NO_COLOR"), is_dumb)
}

/// Executes a command. Returns its exit code.
pub(super) fn run(command: &impl Command, variables: &Variables) -> Exit {
    let client = match Client::new(command.common(), variables) {
        Ok(client) => client,
        Err((output, problem)) => {
            output.problem(&problem);
            return problem.exit;
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            client.output.note(&format!(
                "nico-rewrap: the system cannot start more threads ({error})"
            ));
            return Exit::Bug;
        }
    };
    let result = runtime.block_on(command.execute(&client));
    // A thread that still waits for an answer of the operator must not delay the exit.
    runtime.shutdown_background();
    result.unwrap_or_else(|problem| {
        client.output.problem(&problem);
        problem.exit
    })
}
