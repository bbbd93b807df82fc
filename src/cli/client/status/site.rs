//! The state of a site: every instance, the keys and the runs.

use std::collections::BTreeSet;

use futures_util::future::join_all;

use crate::{
    cli::client::{
        Client,
        connection::{Session, Sessions},
        problem::Problem,
    },
    proto::rewrap as pb,
};

/// One instance and its answer.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) address: String,
    pub(crate) status: Result<pb::Status, Problem>,
}

/// The state of a site, from the answers of its instances.
#[derive(Debug)]
pub(crate) struct Site {
    /// Where the client asked.
    pub(crate) place: String,
    pub(crate) context: Option<String>,
    /// The name of the site in the context.
    pub(crate) name: Option<String>,
    pub(crate) caller: pb::Caller,
    pub(crate) instances: Vec<Instance>,
    /// The differences between the instances.
    pub(crate) disagreements: Vec<String>,
    /// `None` if machine identity is disabled.
    pub(crate) keys: Option<pb::ListKeysResponse>,
    /// The newest run that is not an automatic census.
    pub(crate) last_run: Option<pb::Run>,
}

impl Site {
    /// Asks every instance for its status, and the first one that answers for the rest.
    pub(crate) async fn ask(client: &Client, sessions: &Sessions) -> Result<Self, Problem> {
        let asking = sessions.0.iter().map(|(address, session)| async move {
            Instance {
                address: address.clone(),
                status: status(session.as_ref()).await,
            }
        });
        let instances = join_all(asking).await;
        let answering = sessions.0.iter().zip(&instances);
        let mut answering = answering.filter(|(_, instance)| instance.status.is_ok());
        let session = answering.find_map(|((_, session), _)| session.as_ref().ok());
        let Some(session) = session else {
            let mut problems = instances
                .into_iter()
                .filter_map(|instance| instance.status.err());
            return Err(problems
                .next()
                .unwrap_or_else(|| Problem::broken("no instance answers")));
        };
        let caller = session
            .ask(session.rewrap().who_am_i(pb::WhoAmIRequest {}))
            .await?;
        let keys = match session
            .ask(session.rewrap().list_keys(pb::ListKeysRequest {}))
            .await
        {
            Ok(keys) => Some(keys),
            Err(problem) if problem.reason == "MACHINE_IDENTITY_DISABLED" => None,
            Err(problem) => return Err(problem),
        };
        let last_run = last_run(session).await?;
        let disagreements = disagreements(&instances);
        Ok(Self {
            place: client.settings.place(),
            context: client.settings.context.clone(),
            name: client.settings.site.clone(),
            caller,
            instances,
            disagreements,
            keys,
            last_run,
        })
    }

    /// The instances that answered.
    pub(crate) fn answers(&self) -> impl Iterator<Item = &pb::Status> {
        self.instances
            .iter()
            .filter_map(|instance| instance.status.as_ref().ok())
    }

    /// The runs in progress, each once.
    pub(crate) fn active_runs(&self) -> Vec<&pb::Run> {
        let mut seen = BTreeSet::new();
        let runs = self.answers().flat_map(|status| &status.active_runs);
        runs.filter(|run| seen.insert(run.id.as_str())).collect()
    }

    /// The files that have changed on disk, each once.
    pub(crate) fn changed_on_disk(&self) -> BTreeSet<&str> {
        let files = self.answers().flat_map(|status| &status.changed_on_disk);
        files.map(String::as_str).collect()
    }

    /// The next steps for the operator.
    pub(crate) fn next_steps(&self) -> Vec<String> {
        if !self.disagreements.is_empty() {
            return vec![
                "Restart the instances that differ, and look again: nico-rewrap status".to_owned(),
            ];
        }
        if !self.changed_on_disk().is_empty() {
            return vec!["Restart nico-rewrap, so that it reads the changed files.".to_owned()];
        }
        if let Some(run) = self
            .active_runs()
            .iter()
            .find(|run| run.kind() != pb::RunKind::Census)
        {
            return vec![format!("nico-rewrap runs watch {}", run.id)];
        }
        let Some(keys) = &self.keys else {
            return vec![
                "Set [machine_identity].enabled = true, and restart nico-rewrap.".to_owned(),
            ];
        };
        if keys.census.is_none() {
            return vec!["nico-rewrap census".to_owned()];
        }
        let is = |state| {
            let verdict = move |key: &&pb::Key| {
                key.verdict
                    .as_ref()
                    .is_some_and(|verdict| verdict.state() == state)
            };
            keys.keys.iter().filter(verdict)
        };
        if is(pb::VerdictState::InUse).next().is_some() {
            return vec!["nico-rewrap rotate".to_owned()];
        }
        let soaking = is(pb::VerdictState::Soaking).filter(|key| key.in_secrets);
        let mut steps: Vec<_> = soaking
            .map(|key| format!("nico-rewrap can-i-delete {} --wait", key.key_id))
            .collect();
        steps.extend(
            is(pb::VerdictState::Removable)
                .filter(|key| key.in_secrets)
                .map(|key| {
                    format!(
                        "You may remove {} from the secrets of nico-api and nico-rewrap.",
                        key.key_id
                    )
                }),
        );
        if is(pb::VerdictState::CannotSay).next().is_some() {
            steps.push("nico-rewrap verify".to_owned());
        }
        steps
    }
}

async fn status(session: Result<&Session, &Problem>) -> Result<pb::Status, Problem> {
    let session = session.map_err(Clone::clone)?;
    session
        .ask(session.rewrap().get_status(pb::GetStatusRequest {}))
        .await
}

/// The newest run that has ended and was started by a caller.
async fn last_run(session: &Session) -> Result<Option<pb::Run>, Problem> {
    let request = pb::ListRunsRequest {
        page_size: 20,
        page_token: String::new(),
    };
    let page = session.ask(session.rewrap().list_runs(request)).await?;
    let mut ended = page
        .runs
        .into_iter()
        .filter(|run| run.state() != pb::RunState::Running);
    Ok(ended.find(|run| run.kind() != pb::RunKind::Census))
}

/// The differences between the instances: in the target key, or in the bytes of a key.
pub(crate) fn disagreements(instances: &[Instance]) -> Vec<String> {
    let answers: Vec<_> = instances
        .iter()
        .filter_map(|instance| Some((instance.address.as_str(), instance.status.as_ref().ok()?)))
        .collect();
    let mut problems = Vec::new();
    let targets: BTreeSet<_> = answers
        .iter()
        .map(|(_, status)| status.target_key_id.as_str())
        .collect();
    if targets.len() > 1 {
        let each = answers.iter().map(|(address, status)| {
            let target = status.target_key_id.as_str();
            let target = if target.is_empty() {
                "none (machine identity is disabled)"
            } else {
                target
            };
            format!("{address} has {target}")
        });
        problems.push(format!(
            "the target key differs: {}",
            each.collect::<Vec<_>>().join(", ")
        ));
    }
    let ids: BTreeSet<_> = answers
        .iter()
        .flat_map(|(_, status)| status.keys.iter().map(|key| key.key_id.as_str()))
        .collect();
    for id in ids {
        let values: Vec<_> = answers
            .iter()
            .map(|(address, status)| {
                let key = status.keys.iter().find(|key| key.key_id == id);
                (
                    *address,
                    key.map_or("no such key", |key| key.check_value.as_str()),
                )
            })
            .collect();
        let different: BTreeSet<_> = values.iter().map(|(_, value)| *value).collect();
        if different.len() > 1 {
            let each = values
                .iter()
                .map(|(address, value)| format!("{address} has {value}"));
            problems.push(format!(
                "the key {id:?} differs: {}",
                each.collect::<Vec<_>>().join(", ")
            ));
        }
    }
    problems
}
