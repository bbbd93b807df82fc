//! The explanation of a verdict.

use std::time::{SystemTime, UNIX_EPOCH};

use super::{KeyRecord, LastCensus, VerdictState};

/// Says why the verdict is `state`.
pub(super) fn explain(
    state: VerdictState,
    record: &KeyRecord,
    last: Option<&LastCensus>,
    removable_at: Option<SystemTime>,
) -> String {
    let since = record.clean.map(|clean| time(clean.start));
    let since = since.as_deref().unwrap_or("the last census");
    match state {
        VerdictState::Target => {
            "This is the target key: an apply writes every secret under it.".to_owned()
        }
        VerdictState::InUse => format!(
            "{} under this key: run an apply, then a census.",
            match record.secrets {
                1 => "1 secret is".to_owned(),
                many => format!("{many} secrets are"),
            }
        ),
        VerdictState::Soaking => {
            let until = removable_at.map_or_else(|| "the end of the soak".to_owned(), time);
            format!(
                "No secret has been under this key since {since}: keep it until a census after \
                 {until} finds no secret under it."
            )
        }
        VerdictState::Removable => format!(
            "No secret has been under this key since {since}. Backups of the database from before \
             then still need it."
        ),
        VerdictState::CannotSay => match last {
            None => "No census has run yet: start one.".to_owned(),
            Some(last) if last.unreadable > 0 => format!(
                "{} unreadable and may need any key: repair or remove the secrets that the census \
                 lists, then start another census.",
                match last.unreadable {
                    1 => "1 secret is".to_owned(),
                    many => format!("{many} secrets are"),
                }
            ),
            Some(_) => "The last census does not settle this: start another census.".to_owned(),
        },
    }
}

/// RFC 3339, UTC, in seconds.
fn time(time: SystemTime) -> String {
    /// The first second of the year 10000, which RFC 3339 cannot express.
    const END: u64 = 253_402_300_800;
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) if since.as_secs() < END => humantime::format_rfc3339_seconds(time).to_string(),
        _ => "a time that the clock of the database has wrong".to_owned(),
    }
}
