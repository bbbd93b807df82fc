//! The explanation of a verdict.

use std::time::{SystemTime, UNIX_EPOCH};

use super::{Conditions, KeyRecord, Ledger, VerdictState};

/// Explains why the verdict is `state`, and gives the time of the last census.
pub(super) fn explain(
    ledger: &Ledger,
    state: VerdictState,
    record: &KeyRecord,
    removable_at: Option<SystemTime>,
    conditions: &Conditions<'_>,
) -> String {
    let since = record.clean.map(|clean| time(clean.start));
    let since = since.as_deref().unwrap_or("the last census");
    let last = ledger.last.as_ref().map(|last| time(last.point.start));
    let last = last.as_deref().unwrap_or("now");
    let text = match state {
        VerdictState::Target => {
            return "This is the target key: an apply writes every secret under it.".to_owned();
        }
        VerdictState::InUse => format!(
            "{} under this key: run an apply, then a census.",
            secrets(record.secrets)
        ),
        VerdictState::Soaking => {
            let until = removable_at.map_or_else(|| "the end of the soak".to_owned(), time);
            format!(
                "No census from {since} to {last} has found a secret under this key. Keep the key \
                 until a census after {until} also finds no such secret."
            )
        }
        VerdictState::Removable => format!(
            "No census from {since} to {last} has found a secret under this key. Backups of the \
             database from before {since} still need it."
        ),
        VerdictState::CannotSay => return cannot_say(ledger, conditions),
    };
    if conditions.is_outdated {
        return format!(
            "{text} This is the result of the census of {last}. The schema nico_rewrap cannot be read \
             now, and may have newer censuses."
        );
    }
    match &ledger.failed {
        Some(failed) => {
            let (at, reason) = (time(failed.time), &failed.reason);
            format!("{text} The census of {at} failed with {reason}.")
        }
        None => text,
    }
}

fn cannot_say(ledger: &Ledger, conditions: &Conditions<'_>) -> String {
    match (&ledger.last, &ledger.failed) {
        _ if conditions.is_outdated => {
            "The censuses in the schema nico_rewrap cannot be read, and \
             one of them may have found a secret under this key: ask again when the schema can be \
             read."
                .to_owned()
        }
        (_, Some(failed)) if !failed.can_pass => format!(
            "The census of {} failed with {}, so secrets may exist that no census sees: solve this problem, then start another census.",
            time(failed.time),
            failed.reason
        ),
        (None, Some(failed)) => format!(
            "No census has finished. The census of {} failed with {}: start another one.",
            time(failed.time),
            failed.reason
        ),
        (None, None) => "No census has run yet: start one.".to_owned(),
        (Some(last), _) if last.unreadable > 0 => format!(
            "{} unreadable and may need any key: repair or remove the secrets that the census \
             lists, then start another census.",
            secrets(last.unreadable)
        ),
        (Some(_), _) => {
            "The last census does not decide about this key: start another census.".to_owned()
        }
    }
}

fn secrets(number: u64) -> String {
    match number {
        1 => "1 secret is".to_owned(),
        many => format!("{many} secrets are"),
    }
}

/// RFC 3339, UTC, in seconds.
fn time(time: SystemTime) -> String {
    /// The first second of the year 10000, which RFC 3339 cannot express.
    const END: u64 = 253_402_300_800;
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) if since.as_secs() < END => humantime::format_rfc3339_seconds(time).to_string(),
        _ => "an invalid time (the clock of the database is wrong)".to_owned(),
    }
}
