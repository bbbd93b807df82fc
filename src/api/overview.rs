//! What the status page shows: keys, runs and instances of the site. Everybody who can reach the
//! plain HTTP port can read the page, so it names no organization and no caller.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use super::call::Calls;
use crate::{
    domain::{census::Tally, verdict::VerdictState},
    run::{
        Census, Scope, Site,
        record::{Counts, Kind, Progress, RunRecord, RunState},
    },
};

/// The number of runs that the history keeps, and the number of runs on the page. Censuses are not
/// shown as runs: the page shows the last census with the keys.
const HISTORY: u32 = 100;
const SHOWN: usize = 10;

/// The state of a site, as one instance sees it.
#[derive(Debug, Clone)]
pub struct Overview {
    /// The version and the source revision of the program.
    pub version: &'static str,
    /// The name of this instance.
    pub instance: String,
    /// When this instance started.
    pub start_time: SystemTime,
    /// When this overview was made.
    pub now: SystemTime,
    /// Whether machine identity is enabled and the keys have been read.
    pub has_keys: bool,
    /// The keys, the target first.
    pub keys: Vec<KeyOverview>,
    /// The last census.
    pub census: Option<CensusOverview>,
    /// Whether the history survives a restart.
    pub is_persistent: bool,
    /// The runs in progress, of all instances, and the last runs. `None` if the database does not
    /// answer.
    pub runs: Option<RunsOverview>,
}

/// A key id that is in the secrets or in the last census.
#[derive(Debug, Clone)]
pub struct KeyOverview {
    /// The id.
    pub key_id: String,
    /// The check value; `None` if the key is not in the secrets.
    pub check_value: Option<String>,
    /// Secrets under the key in the last census.
    pub secrets: Option<u64>,
    /// The verdict, such as `REMOVABLE`.
    pub verdict: &'static str,
    /// The reason of the verdict, for the operator.
    pub explanation: String,
}

/// A census.
#[derive(Debug, Clone, Copy)]
pub struct CensusOverview {
    /// When its snapshot was taken.
    pub time: SystemTime,
    /// Rows.
    pub rows: u64,
    /// Secrets.
    pub secrets: u64,
    /// Secrets without a readable key id.
    pub unreadable: u64,
}

/// The runs that are known.
#[derive(Debug, Clone, Default)]
pub struct RunsOverview {
    /// In progress, the oldest first.
    pub active: Vec<RunOverview>,
    /// Ended, the newest first.
    pub last: Vec<RunOverview>,
    /// Each instance that has executed one of the last runs, and when its last run started.
    pub instances: BTreeMap<String, SystemTime>,
}

/// A run.
#[derive(Debug, Clone)]
pub struct RunOverview {
    /// The id.
    pub id: String,
    /// The kind, as text.
    pub kind: &'static str,
    /// Whether the run writes rows.
    pub writes: bool,
    /// Whether it covers the site. Otherwise, it covers one organization.
    pub is_site: bool,
    /// Its state, such as `FINISHED`.
    pub state: &'static str,
    /// The target key.
    pub target_key_id: String,
    /// The instance that executes it.
    pub instance: String,
    /// When it started.
    pub start_time: SystemTime,
    /// The time since its start, or its whole duration after its end.
    pub duration: Duration,
    /// The progress.
    pub progress: Progress,
    /// The counts. Absent while the run is in progress.
    pub counts: Option<Counts>,
    /// The reason of its error.
    pub error: Option<String>,
    /// The number of failed secrets by reason.
    pub failures: BTreeMap<String, u64>,
}

impl Calls {
    /// The state of the site now.
    pub async fn overview(&self) -> Overview {
        let now = SystemTime::now();
        let (keys, census, has_keys) = match self.site() {
            Ok(site) => {
                let (keys, census) = self.keys(site).await;
                (keys, census, true)
            }
            Err(_) => (Vec::new(), None, false),
        };
        Overview {
            version: concat!(
                env!("CARGO_PKG_VERSION"),
                " (",
                env!("NICO_REWRAP_REVISION"),
                ")"
            ),
            instance: self.info().name.clone(),
            start_time: self.info().start_time,
            now,
            has_keys,
            keys,
            census,
            is_persistent: self.history().is_persistent(),
            runs: self.runs(now).await,
        }
    }

    async fn keys(&self, site: &Site) -> (Vec<KeyOverview>, Option<CensusOverview>) {
        let known = self.censuses().key_use(site).await;
        let tally = known.last.as_ref().map(|census| &census.tally);
        let loaded = site.keyring.iter().map(|kek| kek.id().as_str());
        let counted = tally
            .into_iter()
            .flat_map(|tally| tally.keys.keys().map(String::as_str));
        let mut ids: Vec<&str> = loaded.chain(counted).collect();
        ids.sort_unstable();
        ids.dedup();
        let target = site.keyring.target().id().as_str();
        ids.sort_by_key(|id| *id != target);
        let keys = ids.into_iter().map(|id| {
            let verdict = known.verdict(id);
            let secrets = |tally: &Tally| tally.keys.get(id).map_or(0, |key| key.secrets);
            KeyOverview {
                key_id: id.to_owned(),
                check_value: site
                    .keyring
                    .get(id)
                    .map(|kek| kek.check_value().to_string()),
                secrets: tally.map(secrets),
                verdict: verdict_name(verdict.state),
                explanation: verdict.explanation,
            }
        });
        (
            keys.collect(),
            known.last.as_ref().map(CensusOverview::from),
        )
    }

    async fn runs(&self, now: SystemTime) -> Option<RunsOverview> {
        let history = self.history();
        let mut active = history.active().await.ok()?;
        active.sort_by_key(|run| run.start_time);
        let page = history.list(None, HISTORY).await.ok()?;
        let known: Vec<_> = page.runs.into_iter().map(|(_, run)| run).collect();
        let mut instances = BTreeMap::new();
        for run in known.iter().chain(&active) {
            let last = instances
                .entry(run.instance.clone())
                .or_insert(run.start_time);
            *last = (*last).max(run.start_time);
        }
        let ended = known
            .iter()
            .filter(|run| run.state != RunState::Running && run.kind != Kind::Census);
        Some(RunsOverview {
            active: active
                .iter()
                .map(|run| RunOverview::new(run, now))
                .collect(),
            last: ended
                .take(SHOWN)
                .map(|run| RunOverview::new(run, now))
                .collect(),
            instances,
        })
    }
}

fn verdict_name(state: VerdictState) -> &'static str {
    match state {
        VerdictState::Target => "TARGET",
        VerdictState::InUse => "IN_USE",
        VerdictState::Soaking => "SOAKING",
        VerdictState::Removable => "REMOVABLE",
        VerdictState::CannotSay => "CANNOT_SAY",
    }
}

impl From<&Census> for CensusOverview {
    fn from(census: &Census) -> Self {
        Self {
            time: census.time,
            rows: census.tally.rows,
            secrets: census.tally.secrets,
            unreadable: census.tally.unreadable,
        }
    }
}

impl RunOverview {
    fn new(run: &RunRecord, now: SystemTime) -> Self {
        let end = run.end_time.unwrap_or(now);
        let mut failures = BTreeMap::new();
        for group in &run.failure_groups {
            *failures.entry(group.reason.clone()).or_default() += group.secrets;
        }
        Self {
            id: run.id.clone(),
            kind: match run.kind {
                Kind::DryRun => "dry run",
                Kind::Apply => "apply",
                Kind::Verify => "verify",
                Kind::Census => "census",
            },
            writes: run.kind == Kind::Apply,
            is_site: run.scope == Scope::Site,
            state: run.state.name(),
            target_key_id: run.target_key_id.clone(),
            instance: run.instance.clone(),
            start_time: run.start_time,
            duration: end.duration_since(run.start_time).unwrap_or_default(),
            progress: run.progress,
            counts: run.counts,
            // Its message can name an organization or a caller.
            error: run.problem.as_ref().map(|problem| problem.reason.clone()),
            failures,
        }
    }
}
