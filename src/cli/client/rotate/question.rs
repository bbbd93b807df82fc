//! The question before the apply. It does without `dialoguer`: the answer is a word on a line, which nobody types by
//! accident, and the line editing of the terminal suffices for it.

use std::io::{self, IsTerminal, Write};

use tokio::task::spawn_blocking;

use crate::cli::client::{Client, exit::Exit, output::note, problem::Problem};

/// Asks for permission, unless an option has given it.
pub(super) async fn ask(client: &Client, yes: bool, confirm: Option<&str>) -> Result<(), Problem> {
    let site = client.settings.site.as_deref();
    let is_answered = match site {
        Some(site) => confirm == Some(site),
        None => yes,
    };
    if is_answered {
        return Ok(());
    }
    let option = site.map_or_else(|| "--yes".to_owned(), |site| format!("--confirm {site}"));
    if client.no_input || !io::stdin().is_terminal() {
        return Err(refused(&format!(
            "this command asks for permission before it changes anything, and it cannot ask here: add {option}"
        )));
    }
    let (prompt, expected) = match site {
        Some(site) => (
            format!("\nType the name of the site ({site}) to start: "),
            site.to_owned(),
        ),
        None => ("\nType yes to start: ".to_owned(), "yes".to_owned()),
    };
    // The answer is on the same line. An error is ignored: there is nobody to ask.
    let _ = io::stderr().write_all(prompt.as_bytes());
    let mut signals = client.signals().await?;
    let answer = spawn_blocking(|| {
        let mut line = String::new();
        io::stdin().read_line(&mut line).map(|_| line)
    });
    let answer = tokio::select! {
        answer = answer => answer,
        _ = signals.next() => {
            note("");
            return Err(refused("the question was not answered"));
        }
    };
    match answer {
        Ok(Ok(line)) if line.trim() == expected => Ok(()),
        _ => Err(refused(&format!("the answer was not {expected:?}"))),
    }
}

fn refused(why: &str) -> Problem {
    Problem::new(Exit::Refused, format!("{why}. Nothing was changed"))
}
