//! The checks that need no run: they use only the answers of the instances.

use super::item::Check;
use crate::{
    cli::client::{output::text::Mark, status::Site, whoami},
    proto::rewrap as pb,
};

/// A check, its mark, and the message.
type Line = (Check, Mark, String);

/// All of these checks, in their order. `expected` is the target key id that the operator expects.
pub(super) fn site_checks(site: &Site, expected: Option<&str>) -> Vec<Line> {
    let mut lines = vec![reachable(site)];
    lines.push((
        Check::Authorized,
        Mark::Good,
        format!("you are {}", whoami::caller_text(&site.caller)),
    ));
    lines.push(enabled(site));
    lines.extend(expected.map(|expected| expected_target(site, expected)));
    lines.extend(instances_agree(site));
    lines.push(files_unchanged(site));
    lines.push(database(site));
    lines.push(history(site));
    lines.push(no_other_apply(site));
    lines
}

fn reachable(site: &Site) -> Line {
    let answers = site.answers().count();
    let silent: Vec<_> = site
        .instances
        .iter()
        .filter(|instance| instance.status.is_err())
        .map(|instance| instance.address.as_str())
        .collect();
    if !silent.is_empty() {
        let message = format!("these addresses do not answer: {}", silent.join(", "));
        return (Check::Reachable, Mark::Warning, message);
    }
    let message = match answers {
        1 => "the instance answers".to_owned(),
        _ => format!("all {answers} instances answer"),
    };
    (Check::Reachable, Mark::Good, message)
}

fn enabled(site: &Site) -> Line {
    if !site.answers().all(|status| status.enabled) {
        let message = "machine identity is disabled: set [machine_identity].enabled = true";
        return (Check::Enabled, Mark::Bad, message.to_owned());
    }
    let target = site.answers().next();
    let target = target.map_or("", |status| status.target_key_id.as_str());
    (
        Check::Enabled,
        Mark::Good,
        format!("machine identity is enabled, and the target key is {target}"),
    )
}

/// Whether all instances have the target key that the operator expects. A server with the old
/// target key reports every secret as on target, so a rotation would seem to be complete.
fn expected_target(site: &Site, expected: &str) -> Line {
    let mut targets = site.answers().map(|status| status.target_key_id.as_str());
    let (mark, message) = match targets.find(|target| *target != expected) {
        None => (Mark::Good, format!("{expected} is the expected target key")),
        Some(target) => (
            Mark::Bad,
            format!(
                "the target key is {target}, and --expect-target is {expected}: restart servers that still have the old \
                 target key, or correct --expect-target"
            ),
        ),
    };
    (Check::ExpectedTarget, mark, message)
}

fn instances_agree(site: &Site) -> Vec<Line> {
    if site.disagreements.is_empty() {
        let message = "all instances have the same target key and the same key bytes";
        return vec![(Check::InstancesAgree, Mark::Good, message.to_owned())];
    }
    let problems = site.disagreements.iter();
    problems
        .map(|problem| (Check::InstancesAgree, Mark::Bad, problem.clone()))
        .collect()
}

fn files_unchanged(site: &Site) -> Line {
    let changed: Vec<_> = site.changed_on_disk().into_iter().collect();
    if changed.is_empty() {
        let message = "the files on disk are those that the server has read";
        return (Check::FilesUnchanged, Mark::Good, message.to_owned());
    }
    let message = format!(
        "changed on disk since the start: {}: restart nico-rewrap",
        changed.join(", ")
    );
    (Check::FilesUnchanged, Mark::Bad, message)
}

fn database(site: &Site) -> Line {
    let databases: Vec<_> = site
        .answers()
        .filter_map(|status| status.database.as_ref())
        .collect();
    if databases.is_empty() || databases.iter().any(|database| !database.reachable) {
        return (
            Check::Database,
            Mark::Bad,
            "the database does not answer".to_owned(),
        );
    }
    if databases.iter().any(|database| database.in_recovery) {
        let message = "the database is a standby, and accepts no writes";
        return (Check::Database, Mark::Bad, message.to_owned());
    }
    let version = databases
        .first()
        .map_or("", |database| database.server_version.as_str());
    (
        Check::Database,
        Mark::Good,
        format!("the database answers: Postgres {version}"),
    )
}

fn history(site: &Site) -> Line {
    if site.answers().all(|status| status.history_persistent) {
        let message = "runs and censuses are kept in the database";
        return (Check::History, Mark::Good, message.to_owned());
    }
    let message =
        "runs and censuses are kept in memory only: an instance forgets them when it ends";
    (Check::History, Mark::Warning, message.to_owned())
}

fn no_other_apply(site: &Site) -> Line {
    let runs = site.active_runs();
    let apply = runs
        .into_iter()
        .find(|run| run.kind() == pb::RunKind::Apply);
    match apply {
        None => (
            Check::NoOtherApply,
            Mark::Good,
            "no apply is in progress".to_owned(),
        ),
        Some(run) => (
            Check::NoOtherApply,
            Mark::Bad,
            format!(
                "an apply of {} is in progress: nico-rewrap runs watch {}",
                run.caller, run.id
            ),
        ),
    }
}
