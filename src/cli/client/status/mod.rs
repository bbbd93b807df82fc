//! `status`: one screen about the whole site.

mod document;
mod site;
mod text;

use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, sleep_until};

pub(super) use self::site::Site;
use self::text::status_text;
use super::{
    Client, Command,
    exit::Exit,
    options::{Common, Format},
    output::text::plain,
    problem::Problem,
};

/// How often `--watch` asks.
const INTERVAL: Duration = Duration::from_secs(2);

/// Moves the cursor to the upper left corner, and clears the screen.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Options of `status`.
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Ask again every two seconds, until Ctrl-C or --timeout.
    ///
    /// On a terminal, the command draws the screen again. Otherwise it writes a JSON line for each
    /// answer.
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    common: Common,
}

impl Command for Status {
    fn common(&self) -> &Common {
        &self.common
    }

    async fn execute(&self, client: &Client) -> Result<Exit, Problem> {
        if self.watch {
            return watch(client).await;
        }
        let sessions = client.connect_all().await?;
        let site = Site::ask(client, &sessions).await?;
        client.output.result(Exit::Done, &site.document(), || {
            status_text(client.output.style, &site)
        });
        Ok(Exit::Done)
    }
}

/// Shows the screen again and again.
async fn watch(client: &Client) -> Result<Exit, Problem> {
    let mut signals = client.signals().await?;
    loop {
        let next = Instant::now() + INTERVAL;
        let asked = tokio::select! {
            asked = ask(client) => asked,
            _ = signals.next() => return Ok(Exit::Done),
        };
        let is_screen = client.output.format == Format::Text && client.output.is_screen;
        match asked {
            Ok(site) if is_screen => {
                client.output.raw(&format!(
                    "{CLEAR}{}",
                    status_text(client.output.style, &site)
                ));
            }
            Ok(site) => client.output.compact(&site.document()),
            // The server may come back.
            Err(problem) if problem.is_broken && is_screen => {
                client
                    .output
                    .raw(&format!("{CLEAR}{}\n", plain(&problem.message)));
            }
            Err(problem) if problem.is_broken => client.output.note(&problem.message),
            Err(problem) => return Err(problem),
        }
        let is_over = client.deadline.is_some_and(|deadline| deadline <= next);
        if is_over || client.output.is_closed() {
            return Ok(Exit::Done);
        }
        tokio::select! {
            () = sleep_until(next) => {}
            _ = signals.next() => return Ok(Exit::Done),
        }
    }
}

async fn ask(client: &Client) -> Result<Site, Problem> {
    let sessions = client.connect_all().await?;
    Site::ask(client, &sessions).await
}
