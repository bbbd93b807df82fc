//! `whoami`: how the server sees the caller.

use clap::Args;

use super::{
    Client, Command,
    exit::Exit,
    options::Common,
    output::{
        document::{self, document},
        text::plain,
    },
    problem::Problem,
};
use crate::proto::rewrap as pb;

/// Options of `whoami`.
#[derive(Debug, Args)]
pub(crate) struct WhoAmI {
    #[command(flatten)]
    common: Common,
}

impl Command for WhoAmI {
    fn common(&self) -> &Common {
        &self.common
    }

    async fn execute(&self, client: &Client) -> Result<Exit, Problem> {
        let session = client.connect().await?;
        let caller = session
            .ask(session.rewrap().who_am_i(pb::WhoAmIRequest {}))
            .await?;
        let exit = if caller.allowed {
            Exit::Done
        } else {
            Exit::NotAllowed
        };
        let document = document("Caller", document::Caller::from(&caller));
        client.output.result(exit, &document, || text(&caller));
        Ok(exit)
    }
}

/// The caller on one line.
pub(super) fn caller_text(caller: &pb::Caller) -> String {
    let mut text = match (caller.kind.as_str(), caller.name.as_str()) {
        ("none" | "", _) => "nobody: no rule gives this certificate an identity".to_owned(),
        (kind, "") => kind.to_owned(),
        (kind, name) => format!("{name} ({kind})"),
    };
    if !caller.organization.is_empty() {
        text += &format!(", organization {}", caller.organization);
    }
    if !caller.group.is_empty() {
        text += &format!(", group {}", caller.group);
    }
    plain(&text)
}

fn text(caller: &pb::Caller) -> String {
    let mut text = format!("{}\n", caller_text(caller));
    if !caller.rule.is_empty() {
        text += &format!("  rule     {}\n", plain(&caller.rule));
    }
    text += if caller.allowed {
        "  allowed  yes\n"
    } else {
        "  allowed  no\n"
    };
    if !caller.reason.is_empty() {
        text += &format!("  reason   {}\n", plain(&caller.reason));
    }
    text
}
