//! Readiness by latches: ready is who waits for nothing any more.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::watch;
use tonic_health::{ServingStatus, server::HealthReporter};

/// What has to happen before this process is ready, and what became of it.
/// Clones share the same state.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<watch::Sender<Waiting>>);

/// Latch, and why it is not released yet.
type Waiting = BTreeMap<&'static str, String>;

impl Readiness {
    /// Waits for every one of `latches`.
    #[must_use]
    pub fn waiting_for(latches: &[&'static str]) -> Self {
        let waiting = latches
            .iter()
            .map(|latch| (*latch, "not yet".to_owned()))
            .collect();
        Self(Arc::new(watch::Sender::new(waiting)))
    }

    /// Says why a latch is not released.
    pub fn hold(&self, latch: &'static str, reason: impl Into<String>) {
        self.0.send_modify(|waiting| {
            waiting.insert(latch, reason.into());
        });
    }

    /// Releases a latch.
    pub fn release(&self, latch: &'static str) {
        self.0.send_modify(|waiting| {
            waiting.remove(latch);
        });
    }

    /// Whether everything is released.
    ///
    /// # Errors
    ///
    /// What is still waited for, and why.
    pub fn check(&self) -> Result<(), String> {
        let waiting = self.0.borrow();
        if waiting.is_empty() {
            return Ok(());
        }
        let reasons: Vec<_> = waiting
            .iter()
            .map(|(latch, reason)| format!("{latch}: {reason}"))
            .collect();
        Err(reasons.join("; "))
    }

    /// Keeps the health service of `services` up to date.
    pub(crate) async fn report_to(&self, reporter: &HealthReporter, services: &[&str]) {
        let mut changes = self.0.subscribe();
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
        readiness.hold("process", "shutting down");
        assert!(readiness.check().is_err());
    }
}
