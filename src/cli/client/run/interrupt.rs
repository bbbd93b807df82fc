//! Ctrl-C and SIGTERM while a run is watched.

use std::io::{self, IsTerminal};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::client::{exit::Exit, output::note, problem::Problem};

/// The signals that end a command. A signal that arrives while nobody waits is not lost.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

/// The request that a signal stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndSignal {
    /// Somebody pressed Ctrl-C.
    Interrupt,
    /// SIGTERM: the process must end.
    Terminate,
}

impl Signals {
    pub(crate) fn install() -> Result<Self, Problem> {
        let install = |kind| {
            signal(kind)
                .map_err(|error| Problem::new(Exit::Bug, format!("no signal handler ({error})")))
        };
        Ok(Self {
            interrupt: install(SignalKind::interrupt())?,
            terminate: install(SignalKind::terminate())?,
        })
    }

    pub(crate) async fn next(&mut self) -> EndSignal {
        tokio::select! {
            _ = self.interrupt.recv() => EndSignal::Interrupt,
            _ = self.terminate.recv() => EndSignal::Terminate,
        }
    }
}

/// The answer of the operator after Ctrl-C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// Leave. The run continues on the server.
    Detach,
    /// Stop the run.
    Stop,
    /// Go on watching.
    Continue,
}

/// Whether somebody can answer a question.
pub(super) fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks what to do. Blocks.
pub(super) fn ask() -> Choice {
    note(
        "\nThe run continues on the server. What do you want to do?\n  d  detach: leave this command, the run continues\n  \
         s  stop: the run stops after the current rows, committed rows stay committed\n  c  continue: watch the run again",
    );
    loop {
        note("Type d, s or c, and Enter:");
        let mut line = String::new();
        match io::stdin().read_line(&mut line) {
            // Standard input is closed: nobody can answer.
            Ok(0) | Err(_) => return Choice::Detach,
            Ok(_) => {}
        }
        match line.trim() {
            "d" => return Choice::Detach,
            "s" => return Choice::Stop,
            "c" => return Choice::Continue,
            _ => {}
        }
    }
}
