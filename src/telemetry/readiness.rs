//! Readiness by latches: ready is who waits for nothing any more.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;
use tonic_health::{ServingStatus, server::HealthReporter};

/// What has to happen before this process is ready, and what became of it.
/// Clones share the same state.
#[derive(Debug, Clone)]
pub struct Readiness {
    latches: Arc<watch::Sender<Waiting>>,
    note: Arc<Mutex<Option<String>>>,
}

/// Latch, and why it is held.
type Waiting = BTreeMap<&'static str, Held>;

#[derive(Debug)]
struct Held {
    reason: String,
    /// Calls are refused meanwhile, and not only probes.
    refuses_calls: bool,
}

impl Readiness {
    /// Waits for every one of `latches`.
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
        }
    }

    /// Says why a latch is not released.
    pub fn hold(&self, latch: &'static str, reason: impl Into<String>) {
        self.insert(latch, reason.into(), true);
    }

    /// Holds a latch for probes alone: calls are still carried out, since their own errors say
    /// more.
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
    }

    /// Releases a latch.
    pub fn release(&self, latch: &'static str) {
        self.latches.send_modify(|waiting| {
            waiting.remove(latch);
        });
    }

    /// Says beside the readiness what a run waits for. A process whose run waits is ready.
    pub fn set_note(&self, note: Option<String>) {
        *self.note.lock().unwrap_or_else(PoisonError::into_inner) = note;
    }

    /// What a run waits for.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        let note = self.note.lock().unwrap_or_else(PoisonError::into_inner);
        note.clone()
    }

    /// Whether calls can be carried out.
    ///
    /// # Errors
    ///
    /// What is still waited for, and why.
    pub fn check(&self) -> Result<(), String> {
        self.reasons(|held| held.refuses_calls)
    }

    /// Whether everything is released: what a probe wants to know.
    ///
    /// # Errors
    ///
    /// What is waited for, and why.
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

    /// Keeps the health service of `services` up to date.
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
