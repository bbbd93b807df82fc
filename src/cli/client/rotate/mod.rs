//! `rotate`: a whole rotation, from the pre-flight to the verdict.

mod canary;
mod plan;
mod question;

use clap::Args;
use serde::Serialize;

use super::{
    Client, Command,
    check::{ItemDocument, Preflight, preflight},
    exit::Exit,
    options::{Common, Format},
    output::{
        document::{self, FailureLine},
        run_text::{census_text, run_text},
        text::{counted, plain},
    },
    problem::Problem,
    run::{Request, all_failures, exit_of, follow, start},
};
use crate::{cli::client::keys::keys_table, proto::rewrap as pb};

/// How often an apply is repeated because somebody still writes under an old key.
const APPLIES: usize = 3;

/// Options of `rotate`.
#[derive(Debug, Args)]
pub(crate) struct Rotate {
    /// Re-wrap this organization first. The option can be repeated.
    #[arg(long, value_name = "ORG")]
    canary: Vec<String>,
    /// Run this shell command after each canary organization. If it fails, the rotation stops.
    ///
    /// The variable REWRAP_CANARY has the id of the organization. Let the command ask nico-api for
    /// a token of this organization.
    #[arg(long, value_name = "CMD", requires = "canary")]
    canary_check: Option<String>,
    /// The target key id that you expect. If the server has another target key, it refuses
    #[arg(long, value_name = "KEY")]
    expect_target: Option<String>,
    /// Do not ask before the apply
    #[arg(long)]
    yes: bool,
    /// The name of the site, if the context names one. It answers the question
    #[arg(long, value_name = "NAME")]
    confirm: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// What a rotation has done so far.
#[derive(Default)]
struct Rotation {
    canaries: Vec<pb::Run>,
    applies: Vec<pb::Run>,
    keys: pb::ListKeysResponse,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RotationDocument {
    target_key_id: String,
    checks: Vec<ItemDocument>,
    canaries: Vec<document::Run>,
    applies: Vec<document::Run>,
    census: Option<document::Census>,
    keys: Vec<document::Key>,
    next: Vec<String>,
}

impl Command for Rotate {
    fn common(&self) -> &Common {
        &self.common
    }

    async fn execute(&self, client: &Client) -> Result<Exit, Problem> {
        self.check_confirmation(client)?;
        let preflight = preflight(client, self.expect_target.as_deref()).await?;
        let mut rotation = Rotation::default();
        if preflight.prevents_rotation() {
            let problem = Problem::new(
                Exit::Refused,
                "the checks above prevent a rotation, and nothing was changed: correct what is marked, and call again",
            );
            if client.output.format == Format::Text {
                return Err(problem);
            }
            // A program has not seen the checks yet.
            client
                .output
                .note(&format!("nico-rewrap: {}", problem.message));
            rotation.keys.clone_from(&preflight.keys);
            rotation.show(client, &preflight, problem.exit);
            return Ok(problem.exit);
        }
        let rows = preflight.dry_run.as_ref().and_then(|run| run.report);
        let exit = if rows.is_some_and(|report| report.rows_updated == 0) {
            show_text(client, "\nNo row has to be re-wrapped.\n");
            let failed = rows.is_some_and(|report| report.rows_failed > 0);
            rotation.keys.clone_from(&preflight.keys);
            if failed { Exit::Failures } else { Exit::Done }
        } else {
            show_text(client, &plan::text(client, &preflight).await?);
            question::ask(client, self.yes, self.confirm.as_deref()).await?;
            let applied = self.apply(client, &preflight, &mut rotation).await;
            rotation.corrected(applied.map_err(|problem| Problem {
                exit: rotation.corrected(problem.exit),
                ..problem
            })?)
        };
        let exit = rotation.exit(exit, &preflight.target);
        rotation.show(client, &preflight, exit);
        Ok(exit)
    }
}

fn show_text(client: &Client, text: &str) {
    if client.output.format == Format::Text {
        client.output.raw(text);
    }
}

impl Rotate {
    /// Refuses a wrong --confirm before the checks begin.
    fn check_confirmation(&self, client: &Client) -> Result<(), Problem> {
        match (&self.confirm, &client.settings.site) {
            (Some(given), Some(site)) if given != site => Err(Problem::new(
                Exit::Refused,
                format!(
                    "--confirm is {given:?}, but the context names the site {site:?}: nothing was changed"
                ),
            )),
            (Some(_), None) => Err(Problem::usage(
                "--confirm: the connection names no site. Use --yes, or add `site` to the context",
            )),
            _ => Ok(()),
        }
    }

    /// Re-wraps the canaries, then the site. Repeats the apply of the site while secrets are
    /// written under an old key.
    async fn apply(
        &self,
        client: &Client,
        preflight: &Preflight,
        rotation: &mut Rotation,
    ) -> Result<Exit, Problem> {
        for organization in &self.canary {
            let run = apply(client, preflight, Some(organization.clone())).await?;
            let exit = exit_of(&run);
            rotation.canaries.push(run);
            if exit != Exit::Done {
                return Err(canary::failed(exit, organization, &rotation.canaries));
            }
            if let Some(command) = &self.canary_check {
                client.output.note(&format!(
                    "canary check of {}: {command}",
                    plain(organization)
                ));
                canary::check(command, organization).await?;
            }
        }
        loop {
            let run = apply(client, preflight, None).await?;
            let exit = exit_of(&run);
            rotation.applies.push(run);
            if !matches!(exit, Exit::Done | Exit::Failures) {
                return Ok(exit);
            }
            rotation.keys = census(client, preflight).await?;
            let in_use = rotation.in_use(&preflight.target);
            if exit == Exit::Failures || in_use == 0 || rotation.applies.len() == APPLIES {
                return Ok(exit);
            }
            client.output.note(&format!(
                "{} under another key after the apply: a process still writes under an old key. Applying again",
                counted(in_use, "secret")
            ));
        }
    }
}

/// One apply from its start to its end.
async fn apply(
    client: &Client,
    preflight: &Preflight,
    organization: Option<String>,
) -> Result<pb::Run, Problem> {
    let mut request = Request::new(pb::RunKind::Apply, organization);
    request.expect_target.clone_from(&preflight.target);
    let run = start(client, &preflight.session, &request).await?;
    client.output.note(&format!("apply {}", run.id));
    let run = follow(client, &preflight.session, run).await?;
    show_text(
        client,
        &format!("\n{}", run_text(client.output.style, &run)),
    );
    if client.output.format == Format::Jsonl {
        // If the server dies now, the result of the run must still be shown.
        for failure in all_failures(&preflight.session, &run)
            .await
            .unwrap_or_default()
        {
            client.output.line(&FailureLine::from(&failure));
        }
    }
    Ok(run)
}

/// The keys after a new census.
async fn census(client: &Client, preflight: &Preflight) -> Result<pb::ListKeysResponse, Problem> {
    let session = client.connect().await?;
    let request = Request::new(pb::RunKind::Census, None);
    let run = start(client, &session, &request).await?;
    let run = follow(client, &session, run).await?;
    if exit_of(&run) != Exit::Done {
        let what = Problem::of_run(&run)
            .map_or_else(|| "it did not finish".to_owned(), |problem| problem.message);
        return Err(Problem::new(
            Exit::Incomplete,
            format!(
                "the census after the apply failed ({what}): nico-rewrap census. The target key is {}",
                preflight.target
            ),
        ));
    }
    session
        .ask(session.rewrap().list_keys(pb::ListKeysRequest {}))
        .await
}

impl Rotation {
    /// Secrets under other keys than the target.
    fn in_use(&self, target: &str) -> u64 {
        let others = self.keys.keys.iter().filter(|key| key.key_id != target);
        others.map(|key| key.secrets).sum()
    }

    /// Something that was refused after an earlier run has changed rows is incomplete.
    fn corrected(&self, exit: Exit) -> Exit {
        let mut reports = self.canaries.iter().chain(&self.applies);
        let has_changed = reports.any(|run| {
            run.report
                .is_some_and(|report| report.rows_updated > 0 || report.rows_in_doubt > 0)
        });
        match exit {
            Exit::Refused if has_changed => Exit::Incomplete,
            exit => exit,
        }
    }

    /// If secrets are still under another key, the exit code is `No`, unless their rows failed.
    fn exit(&self, exit: Exit, target: &str) -> Exit {
        match exit {
            Exit::Done if self.in_use(target) > 0 => Exit::No,
            exit => exit,
        }
    }

    /// What to do next.
    fn next(&self, exit: Exit, target: &str) -> Vec<String> {
        let others = self
            .keys
            .keys
            .iter()
            .filter(|key| key.key_id != target && key.in_secrets);
        match exit {
            Exit::Done => others
                .map(|key| format!("nico-rewrap can-i-delete {} --wait", key.key_id))
                .collect(),
            Exit::Failures => vec!["Correct the failures, then: nico-rewrap rotate".to_owned()],
            Exit::No => vec![
                "Find the process that still writes under the old key: every nico-api must have the new target key. \
                 Then: nico-rewrap rotate"
                    .to_owned(),
            ],
            _ => vec!["nico-rewrap rotate".to_owned()],
        }
    }

    fn show(&self, client: &Client, preflight: &Preflight, exit: Exit) {
        let next = self.next(exit, &preflight.target);
        let document = RotationDocument {
            target_key_id: preflight.target.clone(),
            checks: preflight.items.iter().map(ItemDocument::from).collect(),
            canaries: self.canaries.iter().map(document::Run::from).collect(),
            applies: self.applies.iter().map(document::Run::from).collect(),
            census: self.keys.census.as_ref().map(document::Census::from),
            keys: self.keys.keys.iter().map(document::Key::from).collect(),
            next: next.clone(),
        };
        client
            .output
            .result(exit, &document::document("Rotation", document), || {
                let style = client.output.style;
                let mut text = String::new();
                if self.keys.census.is_some() {
                    text += &format!(
                        "\n{}\n{}Census: {}\n",
                        style.bold("Keys"),
                        keys_table(style, &self.keys),
                        census_text(self.keys.census.as_ref())
                    );
                }
                text += &plan::way_back(style, &preflight.keys, &preflight.target);
                text += &format!("\n{}\n", style.bold("Next"));
                for step in &next {
                    text += &style.indented(step);
                }
                text
            });
    }
}
