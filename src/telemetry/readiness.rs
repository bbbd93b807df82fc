//! Readiness by latches: the process is ready when every latch is released.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;
use tonic_health::{ServingStatus, server::HealthReporter};

use super::metrics;

/// The names of the latches.
pub mod latches {
    /// The certificate of the server is not valid now.
    pub const CERTIFICATE: &str = "certificate";
    /// The database cannot be used.
    pub const DATABASE: &str = "database";
    /// The gRPC listener is not up yet.
    pub const GRPC: &str = "grpc";
    /// Keys are still to be read.
    pub const KEYS: &str = "keys";
    /// The process is shutting down.
    pub const PROCESS: &str = "process";

    /// All of them.
    pub(in crate::telemetry) const ALL: [&str; 5] = [CERTIFICATE, DATABASE, GRPC, KEYS, PROCESS];
}

/// The latches that keep this process from being ready. Clones share the same state.
#[derive(Debug, Clone)]
pub struct Readiness {
    latches: Arc<watch::Sender<Waiting>>,
    note: Arc<Mutex<Option<String>>>,
    changed_on_disk: Arc<Mutex<Vec<String>>>,
}

/// The held latches, by name.
type Waiting = BTreeMap<&'static str, Held>;

#[derive(Debug)]
struct Held {
    reason: String,
    /// Whether calls are refused too, not only probes.
    refuses_calls: bool,
}

impl Readiness {
    /// Starts with all of `latches` held.
    #[must_use]
    pub fn waiting_for(latches: &[&'static str]) -> Self {
        let waiting = latches
            .iter()
            .map(|latch| {
                let held = Held {
                    reason: "not yet".to_owned(),
                    refuses_calls: true,
                };
                (*latch, held)
            })
            .collect();
        Self {
            latches: Arc::new(watch::Sender::new(waiting)),
            note: Arc::default(),
            changed_on_disk: Arc::default(),
        }
    }

    /// Holds a latch for this reason.
    pub fn hold(&self, latch: &'static str, reason: impl Into<String>) {
        self.insert(latch, reason.into(), true);
    }

    /// Holds a latch for probes only. Calls still run, because their own errors are more precise.
    pub fn degrade(&self, latch: &'static str, reason: impl Into<String>) {
        self.insert(latch, reason.into(), false);
    }

    fn insert(&self, latch: &'static str, reason: String, refuses_calls: bool) {
        self.latches.send_modify(|waiting| {
            let held = Held {
                reason,
                refuses_calls,
            };
            waiting.insert(latch, held);
        });
        metrics::latch(latch, false);
    }

    /// Releases a latch.
    pub fn release(&self, latch: &'static str) {
        self.latches.send_modify(|waiting| {
            waiting.remove(latch);
        });
        metrics::latch(latch, true);
    }

    /// Sets a note about what a run waits for. The note does not change the readiness.
    pub fn set_note(&self, note: Option<String>) {
        *self.note.lock().unwrap_or_else(PoisonError::into_inner) = note;
    }

    /// The note about what a run waits for.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        let note = self.note.lock().unwrap_or_else(PoisonError::into_inner);
        note.clone()
    }

    /// Sets the texts about sources that have changed on disk since the start. They do not
    /// change the readiness.
    pub fn set_changed_on_disk(&self, texts: Vec<String>) {
        let changed = &self.changed_on_disk;
        *changed.lock().unwrap_or_else(PoisonError::into_inner) = texts;
    }

    /// The texts about sources that have changed on disk since the start.
    #[must_use]
    pub fn changed_on_disk(&self) -> Vec<String> {
        let changed = &self.changed_on_disk;
        changed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether calls may run.
    ///
    /// # Errors
    ///
    /// The held latches and their reasons.
    pub fn check(&self) -> Result<(), String> {
        self.reasons(|held| held.refuses_calls)
    }

    /// Whether every latch is released. Probes ask for this.
    ///
    /// # Errors
    ///
    /// The held latches and their reasons.
    pub fn probe(&self) -> Result<(), String> {
        self.reasons(|_| true)
    }

    fn reasons(&self, counts: impl Fn(&Held) -> bool) -> Result<(), String> {
        let waiting = self.latches.borrow();
        let reasons: Vec<_> = waiting
            .iter()
            .filter(|(_, held)| counts(held))
            .map(|(latch, held)| format!("{latch}: {}", held.reason))
            .collect();
        if reasons.is_empty() {
            Ok(())
        } else {
            Err(reasons.join("; "))
        }
    }

    /// Keeps the status of `services` in the gRPC health service up to date.
    pub(crate) async fn report_to(&self, reporter: &HealthReporter, services: &[&str]) {
        let mut changes = self.latches.subscribe();
        loop {
            let status = if changes.borrow_and_update().is_empty() {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            };
            for service in services {
                reporter.set_service_status(service, status).await;
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_every_latch_is_released() {
        let readiness = Readiness::waiting_for(&["database", "grpc"]);
        readiness.release("grpc");
        readiness.hold("database", "connection refused");
        assert_eq!(
            readiness.check(),
            Err("database: connection refused".to_owned())
        );
        readiness.clone().release("database");
        assert_eq!(readiness.check(), Ok(()));
        readiness.degrade("database", "gone");
        assert_eq!(readiness.check(), Ok(()));
        assert_eq!(readiness.probe(), Err("database: gone".to_owned()));
        readiness.release("database");
        assert_eq!(readiness.probe(), Ok(()));
        readiness.hold("process", "shutting down");
        assert!(readiness.check().is_err() && readiness.probe().is_err());
    }
}
