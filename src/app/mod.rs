//! The composition root: binds the listeners, checks the files, serves calls, and drains
//! them at shutdown.
//!
//! The HTTP listener answers probes from the start to the end of the process.

mod certificate;
mod critical_tasks;
mod error;
mod listeners;
mod self_test;
mod watch;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{
    net::TcpListener,
    sync::watch::{Receiver, Sender},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    certificate::{hold_for_certificate, wait_for_certificate},
    critical_tasks::{CriticalTasks, spawn_tracked},
    listeners::log_listening,
    self_test::self_test,
};
pub use self::{error::AppError, listeners::Listeners};
use crate::{
    api::{
        call::{CallContext, Calls, InstanceInfo},
        grpc,
        guard::Guard,
    },
    audit::AuditLog,
    config::Config,
    run::{Runner, Site, censuses::Censuses, history::History},
    server::{self, ServerOptions, probes},
    store::Store,
    telemetry::readiness::Readiness,
    tls::Reloader,
};

const GRPC: &str = "grpc";
const DATABASE: &str = "database";
const PROCESS: &str = "process";

/// How long clients may take to receive the last answers, after the grace period of the
/// calls.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// How often to compact the histograms. The exporter does this in a task of its own only if
/// it also serves the metrics over HTTP. This is the interval of that task.
const UPKEEP: Duration = Duration::from_secs(5);

/// Serves until `shutdown` is cancelled. Then waits for the calls in progress, at most for the
/// grace period, and a few more seconds for the last answers.
///
/// Each change of `reload_signal` makes the server check the TLS files and reopen the audit
/// log. The server answers probes before it reads any file, since a disk or the database can be
/// slow. `/readyz` says what the server waits for.
///
/// # Errors
///
/// [`AppError`] with the setting that is wrong, or [`AppError::Bug`] if a task ends that must
/// run until shutdown.
pub async fn run(
    config: Config,
    listeners: Listeners,
    metrics: PrometheusHandle,
    reload_signal: Receiver<u64>,
    shutdown: CancellationToken,
) -> Result<(), AppError> {
    log_listening(&listeners);
    let readiness = Readiness::waiting_for(&[GRPC]);
    readiness.hold(GRPC, "opening the TLS files and the audit log");
    tokio::spawn(upkeep(metrics.clone()));
    let probes_over = CancellationToken::new();
    let probes = spawn_tracked(probes::serve(
        listeners.http,
        readiness.clone(),
        metrics,
        probes_over.clone(),
    ));
    // Blocking: a file may be on a disk that hangs.
    let ready = tokio::task::spawn_blocking(move || App::prepare(config));
    let over = match shutdown.run_until_cancelled(ready).await {
        None => Ok(()),
        Some(Err(panicked)) => Err(AppError::Bug(panicked.to_string())),
        Some(Ok(Err(error))) => Err(error),
        Some(Ok(Ok(app))) => {
            app.serve(listeners.grpc, &probes, readiness, reload_signal, shutdown)
                .await
        }
    };
    probes_over.cancel();
    // Limited: a client may keep its connection open.
    let _ = timeout(Duration::from_millis(100), probes.wait()).await;
    over
}

/// Checks the files and the target key, without starting a server.
///
/// # Errors
///
/// [`AppError`] with the setting that is wrong.
pub fn check(config: Config) -> Result<(), AppError> {
    App::prepare(config).map(drop)
}

/// A server that has read and checked its files.
struct App {
    tls: Reloader,
    audit: AuditLog,
    trust: crate::auth::identity::TrustRules,
    policy: crate::auth::authorize::Policy,
    options: ServerOptions,
    runner: Option<Runner>,
    database_tls: &'static str,
    census_interval: Duration,
    soak: Duration,
}

impl App {
    /// Checks the files and the target key. Does not use the network.
    fn prepare(config: Config) -> Result<Self, AppError> {
        let tls = Reloader::start(config.tls);
        let audit = AuditLog::open(&config.audit).map_err(AppError::Audit)?;
        let mut runner = None;
        let (mut database_tls, mut census_interval, mut soak) =
            ("", Duration::ZERO, Duration::ZERO);
        if let Some(machine_identity) = config.machine_identity {
            database_tls = machine_identity.database_tls;
            census_interval = machine_identity.census_interval;
            soak = machine_identity.soak;
            self_test(&machine_identity.keyring)?;
            let store = Store::new(&machine_identity.database, machine_identity.store)
                .map_err(|error| AppError::Bug(error.to_string()))?;
            let site = Site {
                keyring: machine_identity.keyring,
                store,
            };
            runner = Some(Runner::new(Arc::new(site), machine_identity.rate));
        }
        Ok(Self {
            tls,
            audit,
            trust: config.trust,
            policy: config.policy,
            options: config.server,
            runner,
            database_tls,
            census_interval,
            soak,
        })
    }

    async fn serve(
        self,
        listener: TcpListener,
        probes: &TaskTracker,
        readiness: Readiness,
        reload_signal: Receiver<u64>,
        shutdown: CancellationToken,
    ) -> Result<(), AppError> {
        let tasks = TaskTracker::new();
        let setup_problem = Sender::new(None);
        let history = History::new(self.runner.as_ref().map(Runner::site).cloned());
        let changed_on_disk = Sender::new(Vec::new());
        let context = CallContext {
            runner: self.runner.clone(),
            history: history.clone(),
            censuses: Arc::new(Censuses::new(history.clone(), self.soak)),
            info: InstanceInfo {
                name: instance_name(&self.options, &listener),
                start_time: SystemTime::now(),
                database_tls: self.database_tls.to_owned(),
                changed_on_disk: changed_on_disk.subscribe(),
            },
            policy: self.policy.clone(),
            readiness: readiness.clone(),
            setup_problem: setup_problem.subscribe(),
            audit: self.audit.clone(),
            max_runs: self.options.max_runs,
        };
        let calls = Calls::new(context, tasks.clone(), shutdown.clone());
        let censuses = calls.clone();
        let census_interval = self.census_interval;
        tasks.spawn(async move { censuses.take_censuses(census_interval).await });
        let routes = grpc::routes(calls).map_err(|error| AppError::Bug(error.to_string()))?;
        let guard = Guard::new(
            routes,
            self.policy,
            self.audit.clone(),
            self.options.request_read_timeout,
        );

        let grace = self.options.shutdown_grace;
        let reload_interval = self.options.tls_reload_interval;
        tokio::spawn(reopen(self.audit, reload_signal.clone()));
        hold_for_certificate(&self.tls.states().borrow(), &readiness);
        tokio::spawn(wait_for_certificate(self.tls.states(), readiness.clone()));
        if let Some(runner) = &self.runner {
            readiness.hold(DATABASE, "connecting to it");
            tokio::spawn(note_stalls(runner.stall(), readiness.clone()));
        }
        let critical = CriticalTasks {
            probes: probes.clone(),
            grpc: spawn_tracked(server::serve(
                listener,
                self.tls.states(),
                Arc::new(self.trust),
                guard,
                self.options,
                shutdown.clone(),
            )),
            reloading: spawn_tracked(self.tls.run(reload_interval, reload_signal)),
        };
        readiness.release(GRPC);

        let database = watch::database(self.runner, &readiness, &setup_problem, &history);
        let over = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            error = database => Err(error),
            // A shutdown ends the listener, too, and this branch may be polled first.
            error = critical.ended() => if shutdown.is_cancelled() { Ok(()) } else { Err(error) },
        };
        readiness.hold(PROCESS, "shutting down");
        shutdown.cancel();
        tracing::info!(grace = %humantime::format_duration(grace), "shutting down");

        tasks.close();
        let in_time = timeout(grace, tasks.wait()).await.is_ok();
        // Limited: a health watch stays open until its client closes it.
        let _ = timeout(DRAIN_TIMEOUT, critical.grpc.wait()).await;
        if in_time {
            tracing::info!("shut down");
        } else {
            tracing::warn!(
                "shut down with calls in progress: they did not end within [rewrap].shutdown_grace"
            );
        }
        over
    }
}

/// The configured name of this instance, or host name and port.
fn instance_name(options: &ServerOptions, listener: &TcpListener) -> String {
    options.instance_name.clone().unwrap_or_else(|| {
        let host = rustix::system::uname();
        let host = host.nodename().to_string_lossy().into_owned();
        let port = listener.local_addr().map_or(0, |address| address.port());
        format!("{host}:{port}")
    })
}

/// Compacts the histograms. Without this, a histogram keeps every sample until the next
/// scrape, and there may be none.
async fn upkeep(metrics: PrometheusHandle) {
    loop {
        metrics.run_upkeep();
        sleep(UPKEEP).await;
    }
}

async fn reopen(audit: AuditLog, mut reload_signal: Receiver<u64>) {
    while reload_signal.changed().await.is_ok() {
        let audit = audit.clone();
        // Blocking: the disk may be slow.
        let _ = tokio::task::spawn_blocking(move || audit.reopen()).await;
    }
}

/// Shows in `/readyz` what a run waits for.
async fn note_stalls(mut stall: Receiver<Option<String>>, readiness: Readiness) {
    while stall.changed().await.is_ok() {
        let note = stall.borrow_and_update().clone();
        readiness.set_note(note);
    }
}
