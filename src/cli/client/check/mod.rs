//! `check`: the pre-flight of a rotation.

mod item;
mod preflight;
mod site;

use clap::Args;
use serde::Serialize;

pub(super) use self::{
    item::ItemDocument,
    preflight::{Preflight, preflight},
};
use super::{Client, Command, exit::Exit, options::Common, output::document, problem::Problem};

/// Options of `check`.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The target key id that you expect. If the server has another target key, the check fails
    #[arg(long, value_name = "KEY")]
    expect_target: Option<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CheckDocument {
    ok: bool,
    checks: Vec<ItemDocument>,
    dry_run: Option<document::Run>,
}

impl Command for Check {
    fn common(&self) -> &Common {
        &self.common
    }

    async fn execute(&self, client: &Client) -> Result<Exit, Problem> {
        let preflight = preflight(client, self.expect_target.as_deref()).await?;
        let exit = preflight.exit();
        let document = CheckDocument {
            ok: exit == Exit::Done,
            checks: preflight.items.iter().map(ItemDocument::from).collect(),
            dry_run: preflight.dry_run.as_ref().map(document::Run::from),
        };
        client
            .output
            .result(exit, &document::document("Check", document), || {
                if exit == Exit::Done {
                    "\nNothing prevents a rotation.\n".to_owned()
                } else {
                    "\nCorrect what is marked, and check again.\n".to_owned()
                }
            });
        Ok(exit)
    }
}
