//! The variable parts of an error's message, for `google.rpc.ErrorInfo.metadata` (AIP-193), and
//! the metadata of nico-api's errors, which its clients print.

use tonic::metadata::MetadataMap;

use super::{Reason, ServiceError};
use crate::{
    auth::authorize::{ACTION, Denial},
    store::{Hidden, SetupError},
};

/// Length limit of `nico-error-text`, in characters. Some clients limit all metadata to 8 KiB.
const MAX_TEXT: usize = 1024;

/// The name of a variable part of the message, and its value.
type Part = (&'static str, String);

impl ServiceError {
    /// The variable parts of the message.
    pub(super) fn parts(&self) -> Vec<Part> {
        match self {
            Self::EndedEarly {
                error,
                counts,
                wait,
            } => {
                let mut parts = error.parts();
                parts.extend(counts.metadata());
                parts.extend(wait.clone().map(|wait| ("waiting_for", wait)));
                parts
            }
            Self::UnexpectedTarget { target, expected } => {
                vec![("target", target.clone()), ("expected", expected.clone())]
            }
            Self::UnknownOrganization(id) => vec![("organization_id", format!("{id:.100}"))],
            Self::Denied(denied) if denied.denial == Denial::CasbinPolicy => {
                vec![("action", ACTION.to_owned())]
            }
            Self::ApplyUnderWay(Some(holder)) => vec![
                ("run_id", holder.run_id.clone()),
                ("caller", holder.caller.clone()),
                ("instance", holder.instance.clone()),
                ("start_time", holder.start_time.clone()),
            ],
            Self::UnknownRun(id) => vec![("run_id", format!("{id:.100}"))],
            Self::RequestIdReused(id) => vec![("request_id", format!("{id:.100}"))],
            Self::WrongKeyMaterial(wrong) => vec![
                ("key_id", wrong.key_id.clone()),
                ("check_value", wrong.check_value.to_string()),
            ],
            Self::FailureLimit(failed) => vec![("rows_failed", failed.to_string())],
            Self::NotReady(cause) => vec![("cause", cause.clone())],
            Self::Database(error) => vec![("cause", error.to_string())],
            Self::DatabaseSetup(problem) => setup(problem),
            Self::Compressed(encoding) => vec![("encoding", encoding.clone())],
            Self::Disabled
            | Self::ApplyUnderWay(None)
            | Self::InvalidRun(_)
            | Self::Stopped
            | Self::InvalidOrganization(_)
            | Self::Denied(_)
            | Self::TooManyRuns
            | Self::NotReplicated
            | Self::AuditUnavailable
            | Self::ShuttingDown
            | Self::DeadlineExceeded
            | Self::Cancelled
            | Self::SlowRequest
            | Self::UnknownMethod
            | Self::MetadataTooLarge
            | Self::MalformedRequest
            | Self::Internal => Vec::new(),
        }
    }
}

fn setup(problem: &SetupError) -> Vec<Part> {
    match problem {
        SetupError::RowsNotVisible(hidden) => hidden_rows(hidden),
        SetupError::Privilege(privilege) => vec![("privilege", privilege.clone())],
        SetupError::Login(cause) => vec![("cause", cause.clone())],
        SetupError::Schema(cause) | SetupError::StateSchema(cause) | SetupError::Update(cause) => {
            vec![("cause", cause.clone())]
        }
        SetupError::TriggerCreated(triggers) => vec![("triggers", triggers.clone())],
        SetupError::ReadOnly => Vec::new(),
    }
}

fn hidden_rows(hidden: &Hidden) -> Vec<Part> {
    match hidden {
        Hidden::ByPolicy { tables, role } => {
            vec![("tables", tables.clone()), ("role", role.clone())]
        }
        Hidden::BySomePolicy => Vec::new(),
        Hidden::NotATable(tables) => vec![("tables", tables.clone())],
        Hidden::ByIndex {
            index,
            missing,
            repeated,
        } => vec![
            ("index", index.clone()),
            ("organizations_missing", missing.to_string()),
            ("organizations_repeated", repeated.to_string()),
        ],
        Hidden::ByDamage(sqlstate) => vec![("sqlstate", sqlstate.clone())],
        Hidden::InDamagedBlocks(blocks) => vec![("blocks", blocks.to_string())],
    }
}

/// Adds the metadata of nico-api's errors.
pub(super) fn add_nico_error(metadata: &mut MetadataMap, reason: &Reason, message: &str) {
    let texts = [
        ("nico-error-code", format!("NICO-API-{}", reason.number)),
        ("nico-error-text", ascii(message)),
        ("nico-error-mitigation", ascii(reason.mitigation)),
    ];
    for (name, text) in texts {
        if let Ok(text) = text.parse() {
            metadata.insert(name, text);
        }
    }
}

/// The text in ASCII on one line, and cut if it is too long.
fn ascii(text: &str) -> String {
    let is_printable = |c: &char| (' '..='~').contains(c);
    let character = |c| Some(c).filter(is_printable).unwrap_or('?');
    text.chars().take(MAX_TEXT).map(character).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_for_nico_api_are_ascii_on_one_line() {
        assert_eq!(ascii("a\nb\tü\u{2028}c~"), "a?b???c~");
        assert_eq!(ascii(&"é".repeat(5000)).len(), MAX_TEXT);
    }
}
