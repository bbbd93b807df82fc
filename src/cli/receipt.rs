//! `receipt verify`: checks a file of receipts. It needs no server.

use std::{
    fs,
    io::{self, Read, Write},
    path::PathBuf,
};

use clap::{Args, Subcommand};

use super::client::{self, Exit, ShowReceipt, Variables};
use crate::run::receipt::verify_chain;

/// The commands about receipts.
#[derive(Debug, Subcommand)]
pub(super) enum Receipt {
    /// Print the receipt of an apply.
    ///
    /// The server keeps receipts only if the schema nico_rewrap exists in the database.
    Show(ShowReceipt),
    /// Check that a file of receipts is an unbroken chain.
    ///
    /// The file has one receipt on each line, as in [rewrap].receipt_log. The exit code is 3 if a
    /// receipt was changed, removed or inserted.
    Verify(Verify),
}

/// Options of `receipt verify`.
#[derive(Debug, Args)]
pub(super) struct Verify {
    /// The file, or `-` for standard input.
    file: PathBuf,
}

impl Receipt {
    pub(super) fn run(&self, variables: &Variables) -> Exit {
        match self {
            Self::Show(show) => client::run(show, variables),
            Self::Verify(verify) => verify.run(),
        }
    }
}

impl Verify {
    fn run(&self) -> Exit {
        let text = if self.file.as_os_str() == "-" {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text).map(|_| text)
        } else {
            fs::read_to_string(&self.file)
        };
        let name = self.file.display();
        let (exit, message) = match text.map(|text| verify_chain(&text)) {
            Err(error) => (
                Exit::Usage,
                format!("nico-rewrap: {name} can't be read ({error})"),
            ),
            Ok(Err(broken)) => (Exit::Failures, format!("nico-rewrap: {name}: {broken}")),
            Ok(Ok(0)) => (
                Exit::Failures,
                format!("nico-rewrap: {name} has no receipts"),
            ),
            Ok(Ok(receipts)) => {
                let plural = if receipts == 1 { "" } else { "s" };
                // An error is ignored: the exit code is the answer.
                let _ = writeln!(
                    io::stdout(),
                    "{receipts} receipt{plural} in an unbroken chain"
                );
                return Exit::Done;
            }
        };
        let _ = writeln!(io::stderr(), "{message}");
        exit
    }
}
