//! The tasks whose end must end the server.

use tokio_util::task::TaskTracker;

use super::error::AppError;

/// The tasks that must run until shutdown. If one ends, the process exits, so that a restart
/// brings the task back: without the reload task, the server would keep accepting revoked
/// certificates.
pub(super) struct CriticalTasks {
    pub(super) grpc: TaskTracker,
    pub(super) probes: TaskTracker,
    pub(super) reloading: TaskTracker,
}

impl CriticalTasks {
    /// Waits until one of the tasks ends or panics.
    pub(super) async fn ended(&self) -> AppError {
        let task = tokio::select! {
            () = self.grpc.wait() => "serves gRPC",
            () = self.probes.wait() => "serves probes and metrics",
            () = self.reloading.wait() => "reloads TLS files",
        };
        AppError::Bug(format!(
            "the task that {task} ended: this is a bug; restart nico-rewrap"
        ))
    }
}

/// Spawns a task whose end can be awaited more than once.
pub(super) fn spawn_tracked(task: impl Future<Output = ()> + Send + 'static) -> TaskTracker {
    let tracker = TaskTracker::new();
    tracker.spawn(task);
    tracker.close();
    tracker
}

#[cfg(test)]
mod tests {
    use std::{future::pending, time::Duration};

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn the_end_of_a_critical_task_is_an_error_that_names_the_task() {
        let runs = || spawn_tracked(pending());
        let panics = || spawn_tracked(async { panic!("expected by the test") });
        let cases = [
            (spawn_tracked(async {}), runs(), runs(), "gRPC"),
            (panics(), runs(), runs(), "gRPC"),
            (runs(), panics(), runs(), "probes"),
            (runs(), runs(), panics(), "TLS files"),
        ];
        for (grpc, probes, reloading, name) in cases {
            let critical = CriticalTasks {
                grpc,
                probes,
                reloading,
            };
            let error = critical.ended().await;
            assert!(error.to_string().contains(name), "{error}");
            assert!(!error.is_configuration(), "a restart may help");
        }
        let critical = CriticalTasks {
            grpc: runs(),
            probes: runs(),
            reloading: runs(),
        };
        let ended = timeout(Duration::from_millis(50), critical.ended()).await;
        assert!(ended.is_err());
    }
}
