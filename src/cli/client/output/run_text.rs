//! A run as text.

use std::fmt::Write as _;

use super::{
    document::{kind_name, state_name},
    table::table,
    text::{Style, age, count, counted, duration, moment, plain, rate, span},
};
use crate::{cli::client::problem::Problem, proto::rewrap as pb};

/// The kind of a run, as text.
pub(crate) const fn kind_text(kind: pb::RunKind) -> &'static str {
    match kind {
        pb::RunKind::DryRun => "dry run",
        pb::RunKind::Apply => "apply",
        pb::RunKind::Verify => "verify",
        pb::RunKind::Census => "census",
        pb::RunKind::Unspecified => "run",
    }
}

/// The organization, or "site".
pub(crate) fn scope_text(run: &pb::Run) -> String {
    match &run.scope {
        Some(pb::run::Scope::OrganizationId(id)) => format!("organization {}", plain(id)),
        _ => "site".to_owned(),
    }
}

/// The progress of a run, on one line.
pub(crate) fn progress_text(run: &pb::Run) -> String {
    let progress = run.progress.unwrap_or_default();
    let mut text = match progress.rows_total {
        0 => counted(progress.rows_done, "row"),
        total => format!(
            "{} of {} rows",
            count(progress.rows_done),
            count(total.max(progress.rows_done))
        ),
    };
    let _ = write!(text, ", {}", rate(progress.rows_per_second));
    if let Some(limit) = progress.rate_limit_rows_per_second {
        let _ = write!(text, " (limit {})", rate(limit));
    }
    if let Some(remaining) = duration(progress.remaining) {
        let _ = write!(text, ", about {} left", span(remaining));
    }
    text
}

/// A whole run.
pub(crate) fn run_text(style: Style, run: &pb::Run) -> String {
    let mut text = String::new();
    let state = state_name(run.state());
    let title = format!(
        "{} of {}: {}",
        kind_text(run.kind()),
        scope_text(run),
        state.to_lowercase()
    );
    let _ = writeln!(text, "{}", style.bold(&capitalized(&title)));
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<12}{}", plain(&value));
    };
    line("id", run.id.clone());
    if run.kind() != pb::RunKind::Census {
        line("target key", run.target_key_id.clone());
    }
    line(
        "started",
        format!("{} ({} ago)", moment(run.start_time), age(run.start_time)),
    );
    if run.end_time.is_some() {
        line("ended", moment(run.end_time));
    }
    let caller = if run.caller.is_empty() {
        "the server itself"
    } else {
        &run.caller
    };
    line("caller", caller.to_owned());
    line("instance", run.instance.clone());
    if run.state() == pb::RunState::Running {
        line("progress", progress_text(run));
    }
    if let Some(report) = &run.report {
        for (name, value) in report_lines(run.kind(), report) {
            line(name, value);
        }
        if run.kind() == pb::RunKind::Apply {
            let durable = if run.durable {
                "yes"
            } else {
                "no: a crash of the database can undo rows of this run"
            };
            line("durable", durable.to_owned());
        }
    }
    if let Some(problem) = Problem::of_run(run) {
        line("error", problem.message);
    }
    text + &failures_text(style, &run.failure_groups, &run.id)
}

fn capitalized(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(characters).collect()
}

fn report_lines(kind: pb::RunKind, report: &pb::Report) -> Vec<(&'static str, String)> {
    let rows = format!(
        "{} examined: {} {}, {} on target, {} failed",
        count(report.rows_examined),
        count(report.rows_updated),
        if kind == pb::RunKind::DryRun {
            "would be re-wrapped"
        } else {
            "re-wrapped"
        },
        count(report.rows_on_target),
        count(report.rows_failed),
    );
    let secrets = format!(
        "{} {}, {} on target",
        count(report.secrets_rewrapped),
        if kind == pb::RunKind::DryRun {
            "would be re-wrapped"
        } else {
            "re-wrapped"
        },
        count(report.secrets_on_target),
    );
    let mut lines = match kind {
        pb::RunKind::Census => vec![("rows", count(report.rows_examined))],
        pb::RunKind::Verify => vec![
            (
                "rows",
                format!(
                    "{} examined, {} failed",
                    count(report.rows_examined),
                    count(report.rows_failed)
                ),
            ),
            (
                "secrets",
                format!("{} opened and checked", count(report.secrets_verified)),
            ),
        ],
        _ => vec![("rows", rows), ("secrets", secrets)],
    };
    if report.rows_in_doubt > 0 {
        lines.push((
            "in doubt",
            format!(
                "{}: run again to see their state",
                counted(report.rows_in_doubt, "row")
            ),
        ));
    }
    lines
}

/// The failures, grouped by their cause. Empty if there are none.
pub(crate) fn failures_text(style: Style, groups: &[pb::FailureGroup], run_id: &str) -> String {
    let mut text = String::new();
    for group in groups {
        let key = match group.key_id.as_str() {
            "" => String::new(),
            id => format!(" (key id {id})"),
        };
        let title = format!(
            "{}{key}: {} of {}",
            group.reason,
            counted(group.secrets, "secret"),
            counted(group.organizations, "organization")
        );
        let _ = writeln!(text, "\n{}", style.bold(&plain(&title)));
        text += &style.indented(&format!("what to do: {}", group.remedy));
        let shown = group.sample_organization_ids.join(", ");
        let more = group
            .organizations
            .saturating_sub(group.sample_organization_ids.len() as u64);
        let more = if more > 0 {
            format!(" and {} more", count(more))
        } else {
            String::new()
        };
        text += &style.indented(&format!("organizations: {shown}{more}"));
    }
    if !groups.is_empty() {
        let _ = writeln!(
            text,
            "\nAll failures: nico-rewrap runs show {run_id} -o json"
        );
    }
    text
}

/// A list of runs, the newest first.
pub(crate) fn runs_table(runs: &[pb::Run]) -> String {
    if runs.is_empty() {
        return "There are no runs.\n".to_owned();
    }
    let rows = runs.iter().map(|run| {
        let report = run.report.unwrap_or_default();
        let numbers = run.report.is_some();
        let number = |value: u64| {
            if numbers {
                count(value)
            } else {
                "-".to_owned()
            }
        };
        let progress = run.progress.unwrap_or_default();
        vec![
            run.id.clone(),
            kind_name(run.kind()).to_owned(),
            scope_text(run),
            state_name(run.state()).to_owned(),
            moment(run.start_time),
            if numbers {
                count(report.rows_examined)
            } else {
                count(progress.rows_done)
            },
            number(report.rows_updated),
            number(report.rows_failed),
            if run.caller.is_empty() {
                "-".to_owned()
            } else {
                run.caller.clone()
            },
        ]
    });
    table(
        &[
            "RUN",
            "KIND",
            "SCOPE",
            "STATE",
            "STARTED",
            "ROWS",
            "RE-WRAPPED",
            "FAILED",
            "CALLER",
        ],
        &[5, 6, 7],
        rows.collect(),
    )
}

/// The last census, on one line.
pub(crate) fn census_text(census: Option<&pb::Census>) -> String {
    census.map_or_else(
        || "there was no census yet".to_owned(),
        |census| {
            format!(
                "{} ({} ago): {}, {}, {} unreadable",
                moment(census.time),
                age(census.time),
                counted(census.rows, "organization"),
                counted(census.secrets, "secret"),
                count(census.unreadable),
            )
        },
    )
}
