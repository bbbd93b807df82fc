//! `can-i-delete`: whether a key may be deleted, with the evidence.

use std::{fmt::Write as _, time::Duration};

use clap::Args;
use futures_util::future::join_all;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::{
    Client, Command,
    connection::{Session, Sessions},
    exit::Exit,
    options::Common,
    output::{
        document::{self, document, verdict_name},
        run_text::census_text,
        text::{Style, age, counted, moment, plain, rfc3339, span, time},
    },
    problem::Problem,
    run::{Request, start},
};
use crate::proto::rewrap as pb;

/// The shortest and the longest pause between two questions.
const SHORTEST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How often this command starts a census after the end of the soak.
const CENSUS_INTERVAL: Duration = Duration::from_secs(30);

/// How often a line says what the command waits for.
const NOTE_INTERVAL: Duration = Duration::from_secs(60);

/// Options of `can-i-delete`.
#[derive(Debug, Args)]
pub(crate) struct CanIDelete {
    /// The id of the key.
    #[arg(value_name = "KEY")]
    key_id: String,
    /// Wait until the answer is yes.
    ///
    /// --timeout limits how long. The command does not wait for a key that is the target.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    common: Common,
}

/// The verdicts of all instances about a key.
#[derive(Debug, Clone)]
pub(super) struct Evidence {
    state: pb::VerdictState,
    explanation: String,
    /// The entry of the instance with the worst verdict. `None` if no instance has an entry for the
    /// key.
    key: Option<pb::Key>,
    census: Option<pb::Census>,
    instances: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VerdictDocument<'a> {
    key_id: &'a str,
    answer: &'static str,
    state: &'static str,
    explanation: &'a str,
    clean_since: Option<String>,
    removable_at: Option<String>,
    stragglers: u64,
    last_straggler: Option<String>,
    in_secrets: bool,
    check_value: &'a str,
    secrets: u64,
    organizations: u64,
    sample_organization_ids: &'a [String],
    census: Option<document::Census>,
    instances: usize,
}

impl Command for CanIDelete {
    fn common(&self) -> &Common {
        &self.common
    }

    async fn execute(&self, client: &Client) -> Result<Exit, Problem> {
        let sessions = client.connect_all().await?;
        let mut evidence = evidence(client, &sessions, &self.key_id).await?;
        if self.wait && evidence.state != pb::VerdictState::Target {
            evidence = self.wait(client, sessions, evidence).await?;
        }
        let exit = exit_of(evidence.state);
        let document = document("Verdict", evidence.document(&self.key_id));
        let style = client.output.style;
        client
            .output
            .result(exit, &document, || evidence.text(style, &self.key_id));
        Ok(exit)
    }
}

impl CanIDelete {
    /// Asks until the key may be deleted or the time limit is reached.
    async fn wait(
        &self,
        client: &Client,
        mut sessions: Sessions,
        mut last: Evidence,
    ) -> Result<Evidence, Problem> {
        let mut noted: Option<Instant> = None;
        let mut asked_for_census: Option<Instant> = None;
        while last.state != pb::VerdictState::Removable {
            if noted.is_none_or(|noted| noted.elapsed() >= NOTE_INTERVAL) {
                noted = Some(Instant::now());
                client.output.note(&format!(
                    "{}: {}: {}",
                    plain(&self.key_id),
                    verdict_name(last.state),
                    plain(&last.explanation)
                ));
            }
            let is_due = asked_for_census.is_none_or(|asked| asked.elapsed() >= CENSUS_INTERVAL);
            if last.is_soaked() && is_due {
                asked_for_census = Some(Instant::now());
                take_census(client, &sessions).await;
            }
            let pause = last.pause();
            let rest = client
                .deadline
                .map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if rest.is_some_and(|rest| rest < pause) {
                client.output.note("--timeout has passed");
                return Ok(last);
            }
            sleep(pause).await;
            match evidence(client, &sessions, &self.key_id).await {
                Ok(evidence) => last = evidence,
                Err(problem) if problem.is_broken => {
                    if let Ok(other) = client.connect_all().await {
                        sessions = other;
                    }
                }
                Err(problem) => return Err(problem),
            }
        }
        Ok(last)
    }
}

/// Starts a census and does not wait for its end. Ignores a refusal: another census may be in
/// progress, or the caller may only read.
async fn take_census(client: &Client, sessions: &Sessions) {
    if let Some(session) = sessions.first() {
        let _ = start(client, &session, &Request::new(pb::RunKind::Census, None)).await;
    }
}

/// Asks every instance about a key. The worst verdict counts.
pub(super) async fn evidence(
    client: &Client,
    sessions: &Sessions,
    key_id: &str,
) -> Result<Evidence, Problem> {
    let lists = join_all(
        sessions
            .0
            .iter()
            .map(|(_, session)| list_keys(session.as_ref())),
    )
    .await;
    let mut worst: Option<Evidence> = None;
    let mut first_problem = None;
    let mut instances = 0;
    for ((address, _), list) in sessions.0.iter().zip(lists) {
        match list {
            Ok(list) => {
                instances += 1;
                let evidence = Evidence::of(&list, key_id);
                let is_worse = |worst: &Evidence| rank(evidence.state) > rank(worst.state);
                if worst.as_ref().is_none_or(is_worse) {
                    worst = Some(evidence);
                }
            }
            // An answer of the server, which permits nothing.
            Err(problem) if !problem.is_broken => return Err(problem),
            Err(problem) => {
                client
                    .output
                    .note(&format!("{address} does not answer: {}", problem.message));
                first_problem.get_or_insert(problem);
            }
        }
    }
    match worst {
        Some(worst) => Ok(Evidence { instances, ..worst }),
        None => Err(first_problem.unwrap_or_else(|| Problem::broken("no instance answers"))),
    }
}

async fn list_keys(session: Result<&Session, &Problem>) -> Result<pb::ListKeysResponse, Problem> {
    let session = session.map_err(Clone::clone)?;
    session
        .ask(session.rewrap().list_keys(pb::ListKeysRequest {}))
        .await
}

/// The order of verdicts, from "may be deleted" to "is the target key". The highest rank counts.
const fn rank(state: pb::VerdictState) -> u8 {
    match state {
        pb::VerdictState::Removable => 0,
        pb::VerdictState::Soaking => 1,
        pb::VerdictState::CannotSay | pb::VerdictState::Unspecified => 2,
        pb::VerdictState::InUse => 3,
        pb::VerdictState::Target => 4,
    }
}

fn exit_of(state: pb::VerdictState) -> Exit {
    match state {
        pb::VerdictState::Removable => Exit::Done,
        pb::VerdictState::Target | pb::VerdictState::InUse | pb::VerdictState::Soaking => Exit::No,
        pb::VerdictState::CannotSay | pb::VerdictState::Unspecified => Exit::CannotSay,
    }
}

const fn answer(state: pb::VerdictState) -> &'static str {
    match state {
        pb::VerdictState::Removable => "YES",
        pb::VerdictState::Target | pb::VerdictState::InUse => "NO",
        pb::VerdictState::Soaking => "NOT_YET",
        pb::VerdictState::CannotSay | pb::VerdictState::Unspecified => "CANNOT_SAY",
    }
}

impl Evidence {
    fn of(list: &pb::ListKeysResponse, key_id: &str) -> Self {
        let census = list.census.clone();
        let Some(key) = list.keys.iter().find(|key| key.key_id == key_id).cloned() else {
            return Self {
                state: pb::VerdictState::CannotSay,
                explanation: "The server does not hold a key with this id, and the last census found no secret under it: \
                              check the id."
                    .to_owned(),
                key: None,
                census,
                instances: 1,
            };
        };
        let verdict = key.verdict.clone().unwrap_or_default();
        Self {
            state: verdict.state(),
            explanation: verdict.explanation,
            key: Some(key),
            census,
            instances: 1,
        }
    }

    fn verdict(&self) -> pb::Verdict {
        let verdict = self.key.as_ref().and_then(|key| key.verdict.clone());
        verdict.unwrap_or_default()
    }

    /// Whether only a census is missing.
    fn is_soaked(&self) -> bool {
        let removable_at = time(self.verdict().removable_at);
        self.state == pb::VerdictState::Soaking
            && removable_at.is_some_and(|at| at <= std::time::SystemTime::now())
    }

    /// How long to wait before the next question.
    fn pause(&self) -> Duration {
        let removable_at = time(self.verdict().removable_at);
        let rest = removable_at.and_then(|at| at.duration_since(std::time::SystemTime::now()).ok());
        let pause = rest.unwrap_or(SHORTEST_PAUSE * 2);
        pause.clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
    }

    fn document<'a>(&'a self, key_id: &'a str) -> VerdictDocument<'a> {
        let verdict = self.verdict();
        let key = self.key.as_ref();
        VerdictDocument {
            key_id,
            answer: answer(self.state),
            state: verdict_name(self.state),
            explanation: &self.explanation,
            clean_since: rfc3339(verdict.clean_since),
            removable_at: rfc3339(verdict.removable_at),
            stragglers: verdict.stragglers,
            last_straggler: rfc3339(verdict.last_straggler),
            in_secrets: key.is_some_and(|key| key.in_secrets),
            check_value: key.map_or("", |key| key.check_value.as_str()),
            secrets: key.map_or(0, |key| key.secrets),
            organizations: key.map_or(0, |key| key.organizations),
            sample_organization_ids: key.map_or(&[], |key| key.sample_organization_ids.as_slice()),
            census: self.census.as_ref().map(document::Census::from),
            instances: self.instances,
        }
    }

    fn text(&self, style: Style, key_id: &str) -> String {
        let answer = match self.state {
            pb::VerdictState::Removable => "Yes",
            pb::VerdictState::Target | pb::VerdictState::InUse => "No",
            pb::VerdictState::Soaking => "Not yet",
            pb::VerdictState::CannotSay | pb::VerdictState::Unspecified => "Cannot say",
        };
        let title = format!(
            "{answer}: {} is {}",
            plain(key_id),
            verdict_name(self.state)
        );
        let mut text = format!(
            "{}\n{}",
            style.bold(&title),
            style.indented(&self.explanation)
        );
        let _ = writeln!(
            text,
            "  last census   {}",
            census_text(self.census.as_ref())
        );
        let verdict = self.verdict();
        if let Some(key) = self.key.as_ref().filter(|_| self.census.is_some()) {
            let used = format!(
                "{} of {}",
                counted(key.secrets, "secret"),
                counted(key.organizations, "organization")
            );
            let _ = writeln!(text, "  under it      {used}");
            if !key.sample_organization_ids.is_empty() {
                let ids = plain(&key.sample_organization_ids.join(", "));
                let ids = style.wrapped(&ids, 16, "                ");
                let _ = writeln!(text, "  for example   {ids}");
            }
        }
        if verdict.clean_since.is_some() {
            let _ = writeln!(
                text,
                "  clean since   {} ({})",
                moment(verdict.clean_since),
                age(verdict.clean_since)
            );
            let rest = time(verdict.removable_at)
                .and_then(|at| at.duration_since(std::time::SystemTime::now()).ok());
            let rest = rest.map_or_else(
                || "the soak is over".to_owned(),
                |rest| format!("in {}", span(rest)),
            );
            let _ = writeln!(
                text,
                "  removable at  {} ({rest})",
                moment(verdict.removable_at)
            );
        }
        if verdict.stragglers > 0 {
            let _ = writeln!(
                text,
                "  stragglers    {}, the last at {}",
                verdict.stragglers,
                moment(verdict.last_straggler)
            );
        }
        let _ = writeln!(
            text,
            "  asked         {}",
            counted(self.instances as u64, "instance")
        );
        text
    }
}
