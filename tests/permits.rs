//! A permit covers what it was given for, whatever the caller of the runner asks for.

use nico_rewrap::run::record::Kind;
use nico_rewrap::run::{RunError, RunIo, RunSpec};
use tokio_util::sync::CancellationToken;

use crate::allocations::{dry_run, permit, site_of};

#[tokio::test]
async fn a_permit_without_an_apply_starts_none() {
    let runner = site_of(3, "kv1").await;
    let stop = CancellationToken::new();
    let apply = RunSpec {
        kind: Kind::Apply,
        ..dry_run()
    };
    let ended = runner.run(&permit(), &apply, RunIo::default(), &stop).await;
    assert!(
        matches!(ended.result, Err(RunError::NotPermitted)),
        "{:?}",
        ended.result
    );
    assert_eq!(ended.report.rows_examined(), 0);
    let ended = runner
        .run(&permit(), &dry_run(), RunIo::default(), &stop)
        .await;
    assert!(ended.result.is_ok(), "{:?}", ended.result);
    assert_eq!(ended.report.counts.rows_updated, 3);
}
