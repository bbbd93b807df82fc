//! The question before the apply.

use std::io::{self, IsTerminal};

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
            format!("\nType the name of the site ({site}) to start:"),
            site.to_owned(),
        ),
        None => ("\nType yes to start:".to_owned(), "yes".to_owned()),
    };
    note(&prompt);
    let mut signals = client.signals().await?;
    let answer = spawn_blocking(|| {
        let mut line = String::new();
        io::stdin().read_line(&mut line).map(|_| line)
    });
    let answer = tokio::select! {
        answer = answer => answer,
        _ = signals.next() => return Err(refused("the question was not answered")),
    };
    match answer {
        Ok(Ok(line)) if line.trim() == expected => Ok(()),
        _ => Err(refused(&format!("the answer was not {expected:?}"))),
    }
}

fn refused(why: &str) -> Problem {
    Problem::new(Exit::Refused, format!("{why}. Nothing was changed"))
}
