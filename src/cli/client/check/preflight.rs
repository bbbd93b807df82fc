//! The checks before a rotation, in their order. Each line is shown as soon as it is known.

use super::{
    item::{Check, Item},
    site::site_checks,
};
use crate::{
    cli::client::{
        Client,
        connection::Session,
        exit::Exit,
        options::Format,
        output::{
            run_text::census_text,
            text::{Mark, count, counted},
        },
        problem::Problem,
        run::{Request, exit_of, follow, start},
        status::Site,
    },
    proto::rewrap as pb,
};

/// How many runs are searched for earlier applies.
const RUNS: u32 = 100;

/// What the checks found.
#[derive(Debug)]
pub(crate) struct Preflight {
    pub(crate) items: Vec<Item>,
    /// The connection for the runs.
    pub(crate) session: Session,
    /// The target key id of the instance that executes the runs.
    pub(crate) target: String,
    pub(crate) keys: pb::ListKeysResponse,
    /// `None` if an earlier check failed.
    pub(crate) dry_run: Option<pb::Run>,
    /// Whether the server refused a run.
    refused: bool,
}

impl Preflight {
    /// The exit code of the checks.
    pub(crate) fn exit(&self) -> Exit {
        match (self.has_bad(), self.refused) {
            (_, true) => Exit::Refused,
            (true, false) => Exit::Failures,
            (false, false) => Exit::Done,
        }
    }

    fn has_bad(&self) -> bool {
        self.items.iter().any(|item| item.mark == Mark::Bad)
    }

    /// Whether a check other than the dry run prevents a rotation.
    pub(crate) fn prevents_rotation(&self) -> bool {
        let mut bad = self.items.iter().filter(|item| item.mark == Mark::Bad);
        bad.any(|item| item.check != Check::DryRun) || self.dry_run.is_none() || self.refused
    }

    fn add(&mut self, client: &Client, check: Check, mark: Mark, message: impl Into<String>) {
        let item = item(check, mark, message);
        show(client, &item);
        self.items.push(item);
    }
}

fn item(check: Check, mark: Mark, message: impl Into<String>) -> Item {
    Item {
        check,
        mark,
        message: message.into(),
    }
}

fn show(client: &Client, item: &Item) {
    if client.output.format == Format::Text {
        client.output.raw(&item.text(client.output.style));
    }
}

/// Makes all checks. If a check without a run fails, the census and the dry run are left out.
/// `expected` is the target key id that the operator expects.
pub(crate) async fn preflight(
    client: &Client,
    expected: Option<&str>,
) -> Result<Preflight, Problem> {
    let unreachable = |problem: Problem| {
        let check = match problem.exit {
            Exit::NotAllowed => Check::Authorized,
            _ => Check::Reachable,
        };
        show(client, &item(check, Mark::Bad, problem.message.clone()));
        problem
    };
    let sessions = client.connect_all().await.map_err(unreachable)?;
    let site = Site::ask(client, &sessions).await.map_err(unreachable)?;
    let session = sessions
        .first()
        .ok_or_else(|| Problem::broken("no instance answers"))?;
    let status = site.answers().next().cloned().unwrap_or_default();
    let mut preflight = Preflight {
        items: Vec::new(),
        session,
        target: status.target_key_id.clone(),
        keys: site.keys.clone().unwrap_or_default(),
        dry_run: None,
        refused: false,
    };
    for (check, mark, message) in site_checks(&site, expected) {
        preflight.add(client, check, mark, message);
    }
    if preflight.has_bad() {
        return Ok(preflight);
    }
    if census(client, &mut preflight).await? {
        dry_run(client, &mut preflight).await?;
    }
    Ok(preflight)
}

/// Takes a census. Returns whether it is complete.
async fn census(client: &Client, preflight: &mut Preflight) -> Result<bool, Problem> {
    let request = Request::new(pb::RunKind::Census, None);
    if run(client, preflight, Check::Census, &request)
        .await?
        .is_none()
    {
        return Ok(false);
    }
    let session = &preflight.session;
    preflight.keys = session
        .ask(session.rewrap().list_keys(pb::ListKeysRequest {}))
        .await?;
    let census = preflight.keys.census.clone();
    let unreadable = census.as_ref().map_or(0, |census| census.unreadable);
    let mark = if unreadable > 0 {
        Mark::Warning
    } else {
        Mark::Good
    };
    preflight.add(
        client,
        Check::Census,
        mark,
        format!("census of {}", census_text(census.as_ref())),
    );
    Ok(true)
}

/// Makes a dry run and adds the checks that depend on its report.
async fn dry_run(client: &Client, preflight: &mut Preflight) -> Result<(), Problem> {
    let mut request = Request::new(pb::RunKind::DryRun, None);
    request.expect_target.clone_from(&preflight.target);
    let Some(dry_run) = run(client, preflight, Check::DryRun, &request).await? else {
        return Ok(());
    };
    let report = dry_run.report.unwrap_or_default();
    for group in &dry_run.failure_groups {
        let key = match group.key_id.as_str() {
            "" => String::new(),
            id => format!(" under key id {id}"),
        };
        let message = format!(
            "dry run: {}: {}{key} of {} cannot be re-wrapped. {}",
            group.reason,
            counted(group.secrets, "secret"),
            group.sample_organization_ids.join(", "),
            group.remedy
        );
        preflight.add(client, Check::DryRun, Mark::Bad, message);
    }
    if dry_run.failure_groups.is_empty() {
        let message = format!(
            "dry run: {} of {} would be re-wrapped, none fails",
            count(report.rows_updated),
            counted(report.rows_examined, "row")
        );
        preflight.add(client, Check::DryRun, Mark::Good, message);
    }
    let (mark, message) = same_bytes(preflight, &dry_run).await?;
    preflight.add(client, Check::SameBytes, mark, message);
    preflight.dry_run = Some(dry_run);
    Ok(())
}

/// Whether the target key has the same bytes here as in nico-api: secrets that nico-api wrote
/// under it must open.
async fn same_bytes(preflight: &Preflight, dry_run: &pb::Run) -> Result<(Mark, String), Problem> {
    let target = &preflight.target;
    let key = preflight.keys.keys.iter().find(|key| key.key_id == *target);
    let secrets = key.map_or(0, |key| key.secrets);
    let mut groups = dry_run.failure_groups.iter();
    if let Some(group) =
        groups.find(|group| group.reason == "NOT_AUTHENTIC" && group.key_id == *target)
    {
        return Ok((
            Mark::Bad,
            format!(
                "{} under {target} cannot be opened: the bytes of this key differ from those of nico-api",
                counted(group.secrets, "secret")
            ),
        ));
    }
    if secrets == 0 {
        return Ok((
            Mark::Warning,
            format!(
                "no secret is under {target} yet, so it is not known whether nico-api has the same bytes under this id: let nico-api \
                 write one (rotate the signing key of a test organization), and check again. Or compare the check value with \
                 that of the key of nico-api: nico-rewrap keys check-value"
            ),
        ));
    }
    let is_left = dry_run.report.is_some_and(|report| report.rows_updated > 0);
    if is_left && was_applied(preflight).await? {
        return Ok((
            Mark::Warning,
            format!(
                "{} under {target} open, but nico-rewrap may have written all of them: compare the check value with that of \
                 the key of nico-api: nico-rewrap keys check-value",
                counted(secrets, "secret")
            ),
        ));
    }
    Ok((
        Mark::Good,
        format!(
            "same bytes: {} under {target} open",
            counted(secrets, "secret")
        ),
    ))
}

/// Whether an earlier run has re-wrapped secrets to the target key.
async fn was_applied(preflight: &Preflight) -> Result<bool, Problem> {
    let request = pb::ListRunsRequest {
        page_size: RUNS,
        page_token: String::new(),
    };
    let session = &preflight.session;
    let page = session.ask(session.rewrap().list_runs(request)).await?;
    Ok(page.runs.iter().any(|run| {
        run.kind() == pb::RunKind::Apply
            && run.target_key_id == preflight.target
            && run
                .report
                .is_none_or(|report| report.rows_updated + report.rows_in_doubt > 0)
    }))
}

/// Makes a run. `None` if the server refuses it or if it does not finish. A line of the output then
/// has the reason.
async fn run(
    client: &Client,
    preflight: &mut Preflight,
    check: Check,
    request: &Request,
) -> Result<Option<pb::Run>, Problem> {
    let run = match start(client, &preflight.session, request).await {
        Ok(run) => follow(client, &preflight.session, run).await?,
        Err(problem) if problem.exit == Exit::Refused => {
            preflight.refused = true;
            preflight.add(client, check, Mark::Bad, problem.message);
            return Ok(None);
        }
        Err(problem) => return Err(problem),
    };
    match exit_of(&run) {
        Exit::Done | Exit::Failures => Ok(Some(run)),
        exit => {
            preflight.refused |= exit == Exit::Refused;
            let problem = Problem::of_run(&run);
            let message = problem.map_or_else(
                || format!("the run {} did not finish", run.id),
                |p| p.message,
            );
            preflight.add(client, check, Mark::Bad, message);
            Ok(None)
        }
    }
}
