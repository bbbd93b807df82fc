//! The screen of `status`.

use std::fmt::Write as _;

use super::site::{Instance, Site};
use crate::{
    cli::client::{
        keys::keys_table,
        output::{
            document::state_name,
            run_text::{census_text, failures_text, kind_text, progress_text, scope_text},
            table::table,
            text::{Mark, Style, age, count, duration, plain, span},
        },
        whoami,
    },
    proto::rewrap as pb,
};

/// The whole screen.
pub(crate) fn status_text(style: Style, site: &Site) -> String {
    let mut text = String::new();
    let name = site.name.as_ref().map(|name| format!("site {name}"));
    let context = site.context.as_ref().map(|name| format!("context {name}"));
    let named: Vec<_> = name.into_iter().chain(context).collect();
    let named = if named.is_empty() {
        String::new()
    } else {
        format!(" ({})", named.join(", "))
    };
    let _ = writeln!(text, "{}{}", style.bold(&plain(&site.place)), plain(&named));
    let _ = writeln!(text, "You are {}.", whoami::caller_text(&site.caller));
    let _ = writeln!(text, "\n{}", style.bold("Instances"));
    text += &instances(&site.instances);
    text += &agreement(style, site);
    text += &database(style, site);
    let census = site.keys.as_ref().and_then(|keys| keys.census.as_ref());
    match &site.keys {
        Some(keys) => {
            let _ = writeln!(text, "\n{}", style.bold("Keys"));
            text += &keys_table(style, keys);
            let _ = writeln!(text, "Last census: {}", census_text(census));
        }
        None => {
            let _ = writeln!(
                text,
                "\n{} machine identity is disabled on this site",
                style.mark(Mark::Warning)
            );
        }
    }
    text += &runs(style, site);
    for file in site.changed_on_disk() {
        text.push('\n');
        text += &style.marked(
            Mark::Warning,
            &format!("{file} has changed on disk since the server started"),
        );
    }
    let steps = site.next_steps();
    let _ = writeln!(text, "\n{}", style.bold("Next"));
    if steps.is_empty() {
        text += "  nothing to do\n";
    }
    for step in steps {
        text += &style.indented(&step);
    }
    text
}

fn instances(instances: &[Instance]) -> String {
    let rows = instances.iter().map(|instance| match &instance.status {
        Ok(status) => vec![
            status.instance.clone(),
            instance.address.clone(),
            format!("{} ({})", status.version, status.revision),
            format!("{} ago", age(status.start_time)),
            if status.enabled {
                status.target_key_id.clone()
            } else {
                "disabled".to_owned()
            },
            String::new(),
        ],
        Err(problem) => {
            let dash = || "-".to_owned();
            vec![
                dash(),
                instance.address.clone(),
                dash(),
                dash(),
                dash(),
                problem.message.clone(),
            ]
        }
    });
    let heads = [
        "INSTANCE",
        "ADDRESS",
        "VERSION",
        "STARTED",
        "TARGET KEY",
        "",
    ];
    table(&heads, &[], rows.collect())
}

fn agreement(style: Style, site: &Site) -> String {
    let mut text = String::new();
    for problem in &site.disagreements {
        text += &style.marked(Mark::Bad, problem);
    }
    let answers = site.answers().count();
    if answers > 1 && site.disagreements.is_empty() {
        text += &style.marked(
            Mark::Good,
            &format!("all {answers} instances have the same target key and the same key bytes"),
        );
    }
    let silent = site.instances.len() - answers;
    if silent > 0 {
        let all = site.instances.len();
        text += &style.marked(
            Mark::Warning,
            &format!("{silent} of {all} addresses do not answer"),
        );
    }
    if site.answers().any(|status| !status.history_persistent) {
        text += &style.marked(
            Mark::Warning,
            "runs and censuses are kept in memory only: an instance forgets them when it ends. To keep them: nico-rewrap \
             state migrate",
        );
    }
    text
}

fn database(style: Style, site: &Site) -> String {
    let Some(database) = site.answers().find_map(|status| status.database.as_ref()) else {
        return String::new();
    };
    let mut text = format!("\n{}\n", style.bold("Database"));
    if !database.reachable {
        let _ = writeln!(text, "  {} does not answer", style.mark(Mark::Bad));
        return text;
    }
    let lag = duration(database.replica_lag);
    let lag = lag.map_or_else(String::new, |lag| format!(", replica lag {}", span(lag)));
    let _ = writeln!(
        text,
        "  Postgres {}, TLS: {}{lag}",
        plain(&database.server_version),
        plain(&database.tls)
    );
    if database.in_recovery {
        let _ = writeln!(
            text,
            "  {} it is a standby, and accepts no writes",
            style.mark(Mark::Bad)
        );
    }
    text
}

fn runs(style: Style, site: &Site) -> String {
    let mut text = String::new();
    for run in site.active_runs() {
        let _ = writeln!(
            text,
            "\n{}",
            style.bold(&format!("Run in progress: {}", title(run)))
        );
        let _ = writeln!(text, "  {}", progress_text(run));
    }
    if let Some(run) = &site.last_run {
        let state = state_name(run.state()).to_lowercase();
        let _ = writeln!(
            text,
            "\n{}",
            style.bold(&format!(
                "Last run: {}, {state} {} ago",
                title(run),
                age(run.end_time)
            ))
        );
        let report = run.report.unwrap_or_default();
        let _ = writeln!(
            text,
            "  {} rows examined, {} re-wrapped, {} failed",
            count(report.rows_examined),
            count(report.rows_updated),
            count(report.rows_failed)
        );
        text += &failures_text(style, &run.failure_groups, &run.id);
    }
    text
}

fn title(run: &pb::Run) -> String {
    let caller = if run.caller.is_empty() {
        "the server itself"
    } else {
        &run.caller
    };
    plain(&format!(
        "{} of {} by {caller}, {}",
        kind_text(run.kind()),
        scope_text(run),
        run.id
    ))
}
