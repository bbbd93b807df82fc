//! Checks the keys before an apply writes its first row.
//!
//! The sample comes from the last census. If no census exists, or if its sample decides nothing,
//! the check takes a census of its own. An apply of one organization must stay cheap: it uses the
//! result of an earlier check for a minute.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{context::Inner, error::ServiceError, passed_check::Passed};
use crate::{
    run::{
        Census, RunError, RunIo, RunSpec, Runner, Scope,
        key_check::{Canaries, Checked, check_keys as check_sample, is_used_by},
        record::Kind,
    },
    store::StoreError,
    telemetry::Trace,
};

/// How long the result of a check holds for applies of one organization.
const RESULT_LIFE: Duration = Duration::from_secs(60);

/// How old a census may be if none of its sample secrets under the target key opens. After this
/// time, nico-api may have written secrets that open, so the check takes a new census. The first
/// value is for a site-wide apply, the second for one organization.
const SITE_CENSUS_LIFE: Duration = Duration::from_secs(60);
const CENSUS_LIFE: Duration = Duration::from_secs(15 * 60);

/// Refuses wrong key bytes under a right key id before an apply.
pub(super) async fn check_keys(
    inner: &Inner,
    runner: &Runner,
    spec: &RunSpec,
    stop: &CancellationToken,
    trace: &Trace,
) -> Result<(), ServiceError> {
    if spec.kind != Kind::Apply {
        return Ok(());
    }
    let span = trace.span("key_check");
    let check = async {
        let mut passed = inner.key_check.0.lock().await;
        let censuses = *inner.context.censuses.changes().borrow();
        let still_holds =
            |last: &Passed| last.censuses == censuses && last.at.elapsed() < RESULT_LIFE;
        if spec.scope != Scope::Site && passed.as_ref().is_some_and(still_holds) {
            return Ok(());
        }
        let checked = check(inner, runner, spec, stop, span.trace()).await?;
        if checked.wrong.is_empty() {
            let at = Instant::now();
            *passed = Some(Passed { at, censuses });
            return Ok(());
        }
        drop(passed);
        refuse(runner, spec, checked).await
    };
    stop.run_until_cancelled(check).await.unwrap_or(Ok(()))
}

/// Refuses the apply because of wrong keys. For an apply of one organization, only the target key
/// and the keys of its row count.
async fn refuse(runner: &Runner, spec: &RunSpec, checked: Checked) -> Result<(), ServiceError> {
    let target = runner.keyring().target().id();
    for wrong in checked.wrong {
        let concerns = match &spec.scope {
            Scope::Organization(id) if wrong.key_id != target.as_str() => {
                let used = is_used_by(runner, id.as_str(), &wrong.key_id).await;
                used.map_err(StoreError::into_unavailable)?
            }
            _ => true,
        };
        if concerns {
            return Err(wrong.into());
        }
    }
    Ok(())
}

async fn check(
    inner: &Inner,
    runner: &Runner,
    spec: &RunSpec,
    stop: &CancellationToken,
    trace: Trace,
) -> Result<Checked, ServiceError> {
    let runs = inner.context.history.all().await;
    // If the history cannot be read, the check still excludes the texts that this process has
    // written.
    let canaries = Canaries::of(runs.unwrap_or_default());
    let last = inner.context.censuses.last().await;
    if let Some(census) = last {
        let checked = check_sample(runner, &census, &canaries).await;
        let checked = checked.map_err(StoreError::into_unavailable)?;
        let life = match spec.scope {
            Scope::Site => SITE_CENSUS_LIFE,
            Scope::Organization(_) => CENSUS_LIFE,
        };
        let is_recent = || census.time.elapsed().is_ok_and(|age| age < life);
        let is_decided = !checked.is_outdated && (checked.target_opens || is_recent());
        if is_decided || !checked.wrong.is_empty() {
            return Ok(checked);
        }
    }
    let Some(census) = take_census(runner, spec, stop, trace).await? else {
        return Ok(Checked::default());
    };
    let checked = check_sample(runner, &census, &canaries).await;
    Ok(checked.map_err(StoreError::into_unavailable)?)
}

/// A census only for this check. `None` if the run is stopped, or if it cannot see the whole table.
/// In the second case, the run itself reports the problem.
async fn take_census(
    runner: &Runner,
    spec: &RunSpec,
    stop: &CancellationToken,
    trace: Trace,
) -> Result<Option<Census>, ServiceError> {
    let spec = RunSpec {
        kind: Kind::Census,
        scope: Scope::Site,
        max_rows_per_second: 0,
        stop_after_failures: 0,
        ..spec.clone()
    };
    let io = RunIo {
        trace,
        ..RunIo::default()
    };
    let ended = Box::pin(runner.census(&spec, false, &io, stop)).await;
    match ended.result {
        Ok(()) => Ok(ended.census),
        Err(RunError::Store(StoreError::Setup(problem))) => {
            tracing::warn!(
                %problem,
                "cannot take a census before the apply, so the keys are not checked"
            );
            Ok(None)
        }
        Err(RunError::Store(error)) => Err(error.into_unavailable().into()),
        // The run was stopped.
        Err(_) => Ok(None),
    }
}
