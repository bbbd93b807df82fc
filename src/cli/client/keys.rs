//! `keys list`: every key id, where it is used, and whether it may be deleted.

use clap::Args;

use super::{
    Client, Command,
    exit::Exit,
    options::Common,
    output::{
        document::{self, document, verdict_name},
        run_text::census_text,
        table::table,
        text::{Style, count, plain},
    },
    problem::Problem,
};
use crate::proto::rewrap as pb;

/// Options of `keys list`.
#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    common: Common,
}

impl Command for List {
    fn common(&self) -> &Common {
        &self.common
    }

    async fn execute(&self, client: &Client) -> Result<Exit, Problem> {
        let session = client.connect().await?;
        let keys = session
            .ask(session.rewrap().list_keys(pb::ListKeysRequest {}))
            .await?;
        show(client, &keys);
        Ok(Exit::Done)
    }
}

/// Writes the keys.
pub(super) fn show(client: &Client, keys: &pb::ListKeysResponse) {
    let document = document("Keys", document::Keys::from(keys));
    client.output.result(Exit::Done, &document, || {
        format!(
            "Last census: {}\n\n{}",
            census_text(keys.census.as_ref()),
            keys_table(client.output.style, keys)
        )
    });
}

/// The table of the keys, and below it the reason of each verdict. Without a census, the table has
/// no numbers.
pub(super) fn keys_table(style: Style, keys: &pb::ListKeysResponse) -> String {
    let has_census = keys.census.is_some();
    let number = |value: u64| {
        if has_census {
            count(value)
        } else {
            "-".to_owned()
        }
    };
    let rows = keys.keys.iter().map(|key| {
        let verdict = key
            .verdict
            .as_ref()
            .map(pb::Verdict::state)
            .unwrap_or_default();
        vec![
            key.key_id.clone(),
            if key.in_secrets {
                key.check_value.clone()
            } else {
                "not loaded".to_owned()
            },
            number(key.secrets),
            number(key.organizations),
            verdict_name(verdict).to_owned(),
        ]
    });
    let heads = ["KEY", "CHECK VALUE", "SECRETS", "ORGANIZATIONS", "VERDICT"];
    let mut text = table(&heads, &[2, 3], rows.collect());
    for key in &keys.keys {
        if let Some(verdict) = &key.verdict {
            let line = plain(&format!("{}: {}", key.key_id, verdict.explanation));
            text += &format!("  {}\n", style.wrapped(&line, 2, "    "));
        }
    }
    text
}
