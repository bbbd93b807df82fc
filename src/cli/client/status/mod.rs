//! `status`: one screen about the whole site.

mod document;
mod site;
mod text;

use clap::Args;

use self::{site::Site, text::status_text};
use super::{Client, Command, exit::Exit, options::Common, problem::Problem};

/// Options of `status`.
#[derive(Debug, Args)]
pub(crate) struct Status {
    #[command(flatten)]
    common: Common,
}

impl Command for Status {
    fn common(&self) -> &Common {
        &self.common
    }

    async fn execute(&self, client: &Client) -> Result<Exit, Problem> {
        let sessions = client.connect_all().await?;
        let site = Site::ask(client, &sessions).await?;
        client.output.result(Exit::Done, &site.document(), || {
            status_text(client.output.style, &site)
        });
        Ok(Exit::Done)
    }
}
