//! The texts that the plain-text page and the HTML page share.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::api::overview::{CensusOverview, Overview, RunOverview};

/// The text of a page without an overview.
pub(super) const NO_OVERVIEW: &str =
    "The server is starting, or the database does not answer: keys and runs are unknown.";

/// The text of a page without runs.
pub(super) const NO_RUNS: &str = "The database does not answer: runs are unknown.";

/// A time, RFC 3339 in seconds. The clock of the database can have any value.
pub(super) fn time(time: SystemTime) -> String {
    /// The first second of the year 10000, which RFC 3339 cannot express.
    const END: u64 = 253_402_300_800;
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) if since.as_secs() < END => humantime::format_rfc3339_seconds(time).to_string(),
        _ => "an invalid time (the clock of the database is wrong)".to_owned(),
    }
}

/// A duration, in its two largest units.
pub(super) fn duration(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        return "less than 1s".to_owned();
    }
    let text = humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string();
    let units: Vec<_> = text.split(' ').take(2).collect();
    units.join(" ")
}

/// How long ago a time is.
pub(super) fn ago(time: SystemTime, now: SystemTime) -> String {
    let age = now.duration_since(time).unwrap_or_default();
    format!("{} ago", duration(age))
}

/// A number with groups of three digits.
pub(super) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number with its noun.
pub(super) fn counted(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", number(count))
}

/// The kind of a run, and "of one organization" if it is not site-wide.
pub(super) fn kind(run: &RunOverview) -> String {
    let scope = if run.is_site {
        ""
    } else {
        " of one organization"
    };
    format!("{}{scope}", run.kind)
}

/// The progress of a run.
pub(super) fn progress(run: &RunOverview) -> String {
    let progress = &run.progress;
    let mut text = match progress.rows_total {
        0 => counted(progress.rows_done, "row"),
        total => format!(
            "{} of {}",
            number(progress.rows_done),
            counted(total, "row")
        ),
    };
    text += &format!(", {:.0} rows/s", progress.rows_per_second);
    if let Some(limit) = progress.rate_limit {
        text += &format!(" (limit {limit:.0})");
    }
    if let Some(remaining) = progress.remaining {
        text += &format!(", {} left", duration(remaining));
    }
    text
}

/// The counts of an ended run, and the reason of its error.
pub(super) fn result(run: &RunOverview) -> String {
    let mut parts = Vec::new();
    if let Some(counts) = &run.counts {
        parts.push(counted(counts.rows_examined(), "row"));
        let verb = if run.writes {
            "re-wrapped"
        } else {
            "to re-wrap"
        };
        for (count, what) in [
            (counts.rows_updated, verb),
            (counts.rows_failed, "failed"),
            (counts.rows_in_doubt, "in doubt"),
        ] {
            if count > 0 {
                parts.push(format!("{} {what}", number(count)));
            }
        }
    }
    for (reason, secrets) in &run.failures {
        parts.push(format!("{reason} × {}", number(*secrets)));
    }
    if let Some(error) = &run.error {
        parts.push(format!("ended with {error}"));
    }
    parts.join(", ")
}

/// The last census, on one line.
pub(super) fn census(overview: &Overview) -> String {
    match &overview.census {
        None if overview.has_keys => "There was no census yet.".to_owned(),
        None => "Machine identity is disabled, or the keys are not read yet.".to_owned(),
        Some(CensusOverview {
            time: taken,
            rows,
            secrets,
            unreadable,
        }) => format!(
            "Census of {} ({}): {}, {}, {} unreadable.",
            time(*taken),
            ago(*taken, overview.now),
            counted(*rows, "row"),
            counted(*secrets, "secret"),
            number(*unreadable)
        ),
    }
}

/// Where runs are kept.
pub(super) fn history(overview: &Overview) -> &'static str {
    if overview.is_persistent {
        "Runs of all instances, from the schema nico_rewrap."
    } else {
        "Only runs of this instance since its start: the schema nico_rewrap does not exist or cannot be used."
    }
}

/// The share of `part` in `of`, from 0 to 1.
#[expect(clippy::cast_precision_loss, reason = "the width of a bar")]
pub(super) fn share(part: u64, of: u64) -> f64 {
    if of == 0 {
        0.0
    } else {
        (part as f64 / of as f64).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_are_easy_to_read() {
        let texts = [0, 7, 999, 1000, 1_234_567].map(number);
        assert_eq!(texts, ["0", "7", "999", "1,000", "1,234,567"]);
        assert_eq!(counted(1, "row"), "1 row");
        let seconds = |seconds| duration(Duration::from_secs_f64(seconds));
        assert_eq!(
            [0.4, 59.9, 3725.0, 90_061.0].map(seconds),
            ["less than 1s", "59s", "1h 2m", "1day 1h"]
        );
        assert_eq!((share(1, 4), share(1, 0), share(5, 4)), (0.25, 0.0, 1.0));
    }
}
