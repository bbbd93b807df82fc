//! The status page as text, for `curl`.

use super::{
    Shown,
    words::{
        NO_OVERVIEW, NO_RUNS, ago, census, duration, history, kind, number, progress, result,
        share, time,
    },
};
use crate::api::overview::{Overview, RunsOverview};

/// The width of a bar, in characters.
const BAR: usize = 30;

/// The whole page.
pub(super) fn page(shown: &Shown) -> String {
    let mut lines = Vec::new();
    if let Some(overview) = &shown.overview {
        lines.push(format!(
            "nico-rewrap {}, instance {}, since {}",
            overview.version,
            overview.instance,
            time(overview.start_time)
        ));
    } else {
        lines.push("nico-rewrap".to_owned());
    }
    match &shown.not_ready {
        None => lines.push("ready".to_owned()),
        Some(reason) => lines.push(format!("NOT READY: {reason}")),
    }
    lines.extend(
        shown
            .note
            .iter()
            .map(|note| format!("a run makes no progress: {note}")),
    );
    let changed = shown.changed_on_disk.iter();
    lines.extend(changed.map(|change| {
        format!("changed on disk since the start: {change}. Restart nico-rewrap to read it")
    }));
    match &shown.overview {
        None => lines.push(NO_OVERVIEW.to_owned()),
        Some(overview) => {
            keys(overview, &mut lines);
            match &overview.runs {
                None => lines.push(format!("\n{NO_RUNS}")),
                Some(runs) => self::runs(overview, runs, &mut lines),
            }
        }
    }
    let mut text = lines.join("\n");
    // Key ids come from the database. A terminal must not get their control characters.
    text.retain(|c| !c.is_control() || c == '\n');
    text + "\n"
}

fn keys(overview: &Overview, lines: &mut Vec<String>) {
    lines.push(format!("\nKEYS\n{}", census(overview)));
    let all = overview.census.map_or(0, |census| census.secrets);
    let length = |id: &str| id.chars().filter(|c| !c.is_control()).count();
    let width = overview.keys.iter().map(|key| length(&key.key_id));
    let width = width.max().unwrap_or(0).min(40);
    for key in &overview.keys {
        let secrets = key.secrets.map_or_else(|| "?".to_owned(), number);
        let bar = bar(share(key.secrets.unwrap_or(0), all));
        let id: String = key.key_id.chars().filter(|c| !c.is_control()).collect();
        lines.push(format!(
            "  {id:width$}  {:15}  {:10}  {secrets:>11}  {bar}\n    {}",
            key.check_value.as_deref().unwrap_or("not in secrets"),
            key.verdict,
            key.explanation,
        ));
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "between 0 and BAR"
)]
fn bar(share: f64) -> String {
    let filled = (share * BAR as f64).ceil() as usize;
    "#".repeat(filled) + &".".repeat(BAR - filled)
}

fn runs(overview: &Overview, runs: &RunsOverview, lines: &mut Vec<String>) {
    lines.push("\nRUNS IN PROGRESS".to_owned());
    if runs.active.is_empty() {
        lines.push("  none".to_owned());
    }
    for run in &runs.active {
        lines.push(format!(
            "  {} to {} at {}, for {}: {}\n    run {}",
            kind(run),
            run.target_key_id,
            run.instance,
            duration(run.duration),
            progress(run),
            run.id
        ));
    }
    lines.push(format!("\nLAST RUNS\n{}", history(overview)));
    if runs.last.is_empty() {
        lines.push("  none".to_owned());
    }
    for run in &runs.last {
        lines.push(format!(
            "  {}  {:8}  {} to {} at {}, {}: {}\n    run {}",
            time(run.start_time),
            run.state,
            kind(run),
            run.target_key_id,
            run.instance,
            duration(run.duration),
            result(run),
            run.id
        ));
    }
    lines.push(format!("\nINSTANCES\n  {} (this one)", overview.instance));
    for (instance, last) in &runs.instances {
        if *instance != overview.instance {
            lines.push(format!(
                "  {instance}: last run {}",
                ago(*last, overview.now)
            ));
        }
    }
}
