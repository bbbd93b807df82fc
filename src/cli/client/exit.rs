//! The exit codes of the client.

use std::process::ExitCode;

/// What the exit code of the program says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done, and nothing is wrong.
    Done = 0,
    /// A bug.
    Bug = 1,
    /// The command line is wrong.
    Usage = 2,
    /// Finished, but rows or checks failed.
    Failures = 3,
    /// Refused. Nothing was changed.
    Refused = 4,
    /// Incomplete. Run it again.
    Incomplete = 5,
    /// The server cannot be reached.
    Unreachable = 6,
    /// The caller is not allowed to do this.
    NotAllowed = 7,
    /// The answer is no, or not yet.
    No = 8,
    /// The question cannot be answered.
    CannotSay = 9,
    /// A file or a setting of the client is wrong.
    Config = 78,
}

impl Exit {
    /// The code.
    pub(super) const fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// The exit codes, for the help.
pub(crate) const HELP: &str = "\
Exit codes:
  0   done, and nothing is wrong
  1   a bug
  2   the command line is wrong
  3   finished, but rows or checks failed
  4   refused, nothing was changed
  5   incomplete: run it again
  6   the server cannot be reached
  7   not allowed
  8   no, or not yet
  9   unknown: the server cannot answer the question
  78  a file or a setting of the client is wrong";
