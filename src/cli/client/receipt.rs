//! `receipt show`: the receipt of an apply.

use clap::Args;

use super::{
    Client, Command,
    exit::Exit,
    options::{Common, Format},
    problem::Problem,
};
use crate::proto::rewrap as pb;

/// Options of `receipt show`.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The id of the run.
    #[arg(value_name = "RUN")]
    run: String,
    #[command(flatten)]
    common: Common,
}

impl Command for Show {
    fn common(&self) -> &Common {
        &self.common
    }

    async fn execute(&self, client: &Client) -> Result<Exit, Problem> {
        let session = client.connect().await?;
        let request = pb::GetReceiptRequest {
            run_id: self.run.clone(),
        };
        let receipt = session.ask(session.rewrap().get_receipt(request)).await?;
        if receipt.document.is_empty() {
            return Err(Problem::new(
                Exit::Refused,
                "this run has no receipt. Only an apply that wrote something has one, and the server keeps receipts only \
                 if the schema nico_rewrap exists: nico-rewrap state migrate",
            ));
        }
        let document: Box<serde_json::value::RawValue> = serde_json::from_str(&receipt.document)
            .map_err(|_| Problem::new(Exit::Bug, "the receipt of the server is not JSON"))?;
        if client.output.format == Format::Jsonl {
            client.output.result(Exit::Done, &document, String::new);
        } else {
            // Exactly the stored bytes: the next receipt contains the hash of this text.
            client.output.raw(&format!("{}\n", receipt.document));
        }
        client
            .output
            .note(&format!("SHA-256 of this receipt: {}", receipt.sha256));
        Ok(Exit::Done)
    }
}
