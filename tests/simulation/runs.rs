//! Runs, and what their reports say.

use std::collections::BTreeSet;

use serde_json::json;
use tokio::task::JoinHandle;

use super::world::World;
use crate::certs;
use crate::grpcurl::{Call, GrpcError, Report};
use crate::outcome::counters;
use crate::seal::key_id;
use crate::seed;

/// A run that has no answer yet.
pub(super) struct Running {
    pub(super) instance: usize,
    dry_run: bool,
    pub(super) target: String,
    task: JoinHandle<Result<Report, GrpcError>>,
    /// Organizations that tenants have written since the run began.
    pub(super) touched: BTreeSet<String>,
    /// Whether the instance or Postgres was killed, or rows were locked.
    pub(super) disturbed: bool,
    /// Whether another run was under way at the same time.
    overlapped: bool,
    /// Whether the index hid a row.
    damaged: bool,
}

impl World {
    pub(super) async fn start_run(&mut self) {
        let instance = self.some_instance().await;
        if self.runs.iter().any(|run| run.instance == instance) {
            return self.finish_runs_of(instance).await;
        }
        let dry_run = self.rng.u32(..4) == 0;
        let target = self.instances[instance].as_ref().unwrap().target.clone();
        if target == self.last_apply && !dry_run {
            // A run that finds nothing to do shows little.
            self.target_another_key(instance).await;
        }
        let target = self.instances[instance].as_ref().unwrap().target.clone();
        if !dry_run {
            self.last_apply.clone_from(&target);
        }
        self.note(format!(
            "instance {instance}: dry run {dry_run} to {target}"
        ));
        let call = Call::new(self.server(instance), certs::admin());
        let task = tokio::spawn(async move { call.reencrypt(&json!({"dryRun": dry_run})).await });
        self.runs.iter_mut().for_each(|run| run.overlapped = true);
        self.writing.insert(target.clone());
        self.runs.push(Running {
            instance,
            dry_run,
            target,
            task,
            touched: BTreeSet::new(),
            disturbed: self.locker.is_some(),
            overlapped: !self.runs.is_empty(),
            damaged: self.hidden.is_some(),
        });
    }

    pub(super) async fn finish_run(&mut self) {
        if !self.runs.is_empty() {
            let run = self.runs.remove(0);
            self.finish_one(run).await;
        }
    }

    pub(super) async fn finish_runs_of(&mut self, instance: usize) {
        while let Some(at) = self.runs.iter().position(|run| run.instance == instance) {
            let run = self.runs.remove(at);
            self.finish_one(run).await;
        }
    }

    pub(super) async fn finish_all_runs(&mut self) {
        while !self.runs.is_empty() {
            self.finish_run().await;
        }
    }

    async fn finish_one(&mut self, run: Running) {
        let answer = run.task.await.unwrap();
        self.note(format!("instance {}: {answer:?}", run.instance));
        // Organizations that were written since the last check count, too.
        let touched: BTreeSet<_> = run.touched.union(&self.touched).cloned().collect();
        match answer {
            Err(error) => {
                self.count("runs that ended early");
                let reason = error.reason().unwrap_or_default();
                let expected = match reason.as_str() {
                    "ROWS_NOT_VISIBLE" => run.damaged,
                    "APPLY_UNDER_WAY" => run.overlapped || run.disturbed,
                    _ => run.disturbed,
                };
                assert!(expected, "{error:?}");
            }
            Ok(report) => {
                let counted = counters(&report);
                assert!(
                    !run.damaged,
                    "a report although a row is hidden: {report:?}"
                );
                assert_eq!(report.current_encryption_key_id, run.target);
                assert_eq!(
                    report.failures.is_empty(),
                    counted.failed == 0,
                    "{report:?}"
                );
                assert!(counted.failed == 0 || run.disturbed, "{report:?}");
                let says_clean = counted.failed == 0 && (!run.dry_run || counted.updated == 0);
                if counted.updated > 0 {
                    self.count("runs that re-wrapped rows");
                }
                self.count(if says_clean {
                    "clean reports"
                } else {
                    "other reports"
                });
                if says_clean && !run.overlapped {
                    self.check_clean(&run.target, &touched).await;
                }
                if !run.dry_run && touched.is_empty() && !run.overlapped && !run.disturbed {
                    assert_eq!(
                        report.rows_examined as usize,
                        self.expected.len(),
                        "{report:?}"
                    );
                }
                // A report is durable.
                let rows = seed::snapshot(&self.observer).await;
                for (id, row) in rows {
                    if !touched.contains(&id) && !run.overlapped {
                        self.durable.insert(id, row.version_parts().0);
                    }
                }
            }
        }
    }

    /// Checks that every secret is under the key that a clean report names.
    async fn check_clean(&self, target: &str, touched: &BTreeSet<String>) {
        let rows = seed::snapshot(&self.observer).await;
        for (id, row) in rows.iter().filter(|(id, _)| !touched.contains(*id)) {
            for text in row.texts.iter().flatten() {
                assert_eq!(key_id(text), target, "{id} after a clean report");
            }
        }
    }

    /// A run without faults, which must complete.
    pub(super) async fn run_to_the_end(&mut self, dry_run: bool) {
        let call = Call::new(self.server(0), certs::admin());
        let mut attempts = 0;
        let report = loop {
            match call.reencrypt(&json!({"dryRun": dry_run})).await {
                Ok(report) => break report,
                // The session of a killed instance may still hold the lock of the site.
                Err(error) => {
                    attempts += 1;
                    assert!(attempts < 50, "{error:?}");
                    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                }
            }
        };
        self.writing.insert(self.target.clone());
        let counted = counters(&report);
        assert_eq!(counted.failed, 0, "{report:?}");
        assert_eq!(
            report.rows_examined as usize,
            self.expected.len(),
            "{report:?}"
        );
        if dry_run {
            assert_eq!(counted.updated, 0, "{report:?}");
        }
        self.check_clean(&self.target.clone(), &BTreeSet::new())
            .await;
    }
}
