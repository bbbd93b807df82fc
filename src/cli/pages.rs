//! `completion`, `man` and the reference of the command line, made from the definitions.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

use clap::{Args, Command};
use clap_complete::Shell;

use super::client::Exit;

/// Options of `completion`.
#[derive(Debug, Args)]
pub(super) struct Completion {
    /// The shell.
    shell: Shell,
}

/// Options of `man`.
#[derive(Debug, Args)]
pub(super) struct Man {
    /// Write one page for each command into this directory, instead of the main page to standard
    /// output.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Completion {
    pub(super) fn run(&self, mut command: Command) -> Exit {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "nico-rewrap", &mut script);
        let mut script = String::from_utf8_lossy(&script).into_owned();
        if self.shell == Shell::Bash {
            // clap_complete 4.6 has two spellings of a name with a hyphen, which do not match.
            script = script.replace("nico__subcmd__rewrap", "nico__rewrap");
        }
        print(script.as_bytes())
    }
}

impl Man {
    pub(super) fn run(&self, command: Command) -> Exit {
        // Without the columns of a terminal, the pages are the same everywhere.
        let written = match &self.dir {
            None => render(&command).map(|page| {
                print(&page);
            }),
            Some(dir) => write_all(command, dir),
        };
        match written {
            Ok(()) => Exit::Done,
            Err(error) => {
                let name = self.dir.as_deref().unwrap_or(Path::new("standard output"));
                let _ = writeln!(io::stderr(), "nico-rewrap: {}: {error}", name.display());
                Exit::Usage
            }
        }
    }
}

/// Writes to standard output. An error is ignored: nobody reads.
pub(super) fn print(text: &[u8]) -> Exit {
    let _ = io::stdout().write_all(text);
    Exit::Done
}

fn render(command: &Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    Ok(page)
}

/// One page for each command that is not hidden.
fn write_all(command: Command, dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    clap_mangen::generate_to(command, dir)
}

/// Whether a command has a page.
pub(super) fn is_shown(command: &Command) -> bool {
    !command.is_hide_set() && command.get_name() != "help"
}
