//! The composition root: binds the listeners, checks the files, serves calls, and drains
//! them at shutdown.
//!
//! The HTTP listener answers probes from the start to the end of the process.

mod certificate;
mod changes;
mod critical_tasks;
mod error;
mod gauges;
mod keys;
mod listeners;
mod self_test;
mod watch;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    net::TcpListener,
    sync::watch::{Receiver, Sender},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use self::keys::log as log_keys;
use self::{
    certificate::{hold_for_certificate, wait_for_certificate},
    critical_tasks::{CriticalTasks, spawn_tracked},
    keys::Site,
    listeners::log_listening,
};
pub use self::{error::AppError, listeners::Listeners};
use crate::{
    api::{
        call::Calls,
        context::{CallContext, InstanceInfo},
        grpc,
        guard::Guard,
    },
    audit::AuditLog,
    config::{Config, OnDisk},
    run::{censuses::Censuses, history::History},
    server::{self, ServerOptions, admin_socket::AdminSocket, probes, status::StatusPage},
    telemetry::{
        self, Metrics,
        readiness::{
            Readiness,
            latches::{DATABASE, GRPC, PROCESS},
        },
    },
    tls::Reloader,
};

/// How long the server waits for clients to receive the last answers, after the grace period.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// How often to compact the histograms. The exporter itself does this only if it also serves the
/// metrics over HTTP. Its interval is the same.
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
    metrics: Metrics,
    reload_signal: Receiver<u64>,
    shutdown: CancellationToken,
) -> Result<(), AppError> {
    log_listening(&listeners);
    let readiness = Readiness::waiting_for(&[GRPC]);
    readiness.hold(GRPC, "opening the TLS files and the audit log");
    tokio::spawn(compact_histograms(metrics.clone()));
    changes::register();
    telemetry::build(env!("CARGO_PKG_VERSION"), env!("NICO_REWRAP_REVISION"));
    let probes_over = CancellationToken::new();
    let page = StatusPage::new(readiness.clone());
    let probes = spawn_tracked(probes::serve(
        listeners.http,
        readiness.clone(),
        metrics,
        page.clone(),
        probes_over.clone(),
    ));
    // Blocking: a file may be on a disk that hangs.
    let ready = tokio::task::spawn_blocking(move || App::prepare(config));
    let over = match shutdown.run_until_cancelled(ready).await {
        None => Ok(()),
        Some(Err(panicked)) => Err(AppError::Bug(panicked.to_string())),
        Some(Ok(Err(error))) => Err(error),
        Some(Ok(Ok(app))) => {
            let grpc = (listeners.grpc, listeners.admin_socket);
            let http = (&probes, &page);
            app.serve(grpc, http, readiness, reload_signal, shutdown)
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
    site: Option<Site>,
    on_disk: OnDisk,
}

impl App {
    /// Checks the files and the target key. Does not use the network.
    fn prepare(config: Config) -> Result<Self, AppError> {
        let tls = Reloader::start(config.tls);
        let audit = AuditLog::open(&config.audit).map_err(AppError::Audit)?;
        let site = config.machine_identity.map(Site::prepare).transpose()?;
        Ok(Self {
            tls,
            audit,
            trust: config.trust,
            policy: config.policy,
            options: config.server,
            site,
            on_disk: config.on_disk,
        })
    }

    async fn serve(
        self,
        (listener, admin_socket): (TcpListener, Option<AdminSocket>),
        (probes, page): (&TaskTracker, &StatusPage),
        readiness: Readiness,
        reload_signal: Receiver<u64>,
        shutdown: CancellationToken,
    ) -> Result<(), AppError> {
        let tasks = TaskTracker::new();
        let setup_problem = Sender::new(None);
        let history = History::new(self.site.as_ref().map(|site| site.store.clone()));
        let settings = self.site.as_ref();
        let settings = settings.map(|site| (site.database_tls, site.census_interval, site.soak));
        let (database_tls, census_interval, soak) = settings.unwrap_or_default();
        let known_censuses = Arc::new(Censuses::new(history.clone(), soak));
        let context = CallContext {
            runner: self.site.as_ref().map(|site| site.runner.clone()),
            history: history.clone(),
            censuses: known_censuses.clone(),
            info: InstanceInfo {
                name: instance_name(&self.options, &listener),
                start_time: SystemTime::now(),
                database_tls: database_tls.to_owned(),
            },
            policy: self.policy.clone(),
            readiness: readiness.clone(),
            setup_problem: setup_problem.subscribe(),
            audit: self.audit.clone(),
            max_runs: self.options.max_runs,
            receipt_log: self.options.receipt_log.clone(),
            census_interval,
        };
        let calls = Calls::new(context, tasks.clone(), shutdown.clone());
        page.set_calls(calls.clone());
        let censuses = calls.clone();
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
        tokio::spawn(changes::watch(
            self.on_disk,
            reload_interval,
            reload_signal.clone(),
            readiness.clone(),
        ));
        hold_for_certificate(&self.tls.states().borrow(), &readiness);
        tokio::spawn(wait_for_certificate(self.tls.states(), readiness.clone()));
        if let Some(site) = &self.site {
            readiness.hold(DATABASE, "connecting to it");
            site.hold(&readiness);
        }
        let critical = CriticalTasks {
            probes: probes.clone(),
            grpc: spawn_tracked(server::serve(
                listener,
                admin_socket,
                self.tls.states(),
                Arc::new(self.trust),
                guard,
                self.options,
                shutdown.clone(),
            )),
            reloading: spawn_tracked(self.tls.run(reload_interval, reload_signal)),
        };
        readiness.release(GRPC);

        if let Some(site) = &self.site {
            let runner = site.runner.clone();
            tokio::spawn(gauges::watch(runner, known_censuses, history.clone()));
        }
        let store = self.site.as_ref().map(|site| site.store.clone());
        let database = watch::database(store, &readiness, &setup_problem, &history);
        let keys = watch_runner(self.site, &readiness);
        let over = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            error = database => Err(error),
            error = keys => Err(error),
            // A shutdown also ends the listener, and `select!` may poll this branch first.
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

/// Compacts the histograms regularly.
async fn compact_histograms(metrics: Metrics) {
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

/// Reads the keys that are still missing. After that, shows in `/readyz` what a run waits for.
/// Returns only if the keys cannot be used.
async fn watch_runner(site: Option<Site>, readiness: &Readiness) -> AppError {
    let runner = match site {
        Some(site) => site.complete(readiness).await,
        None => std::future::pending().await,
    };
    match runner {
        Ok(runner) => {
            if let Some(runner) = runner.get() {
                note_stalls(runner.stall(), readiness).await;
            }
            std::future::pending().await
        }
        Err(error) => error,
    }
}

/// Shows in `/readyz` what a run waits for.
async fn note_stalls(mut stall: Receiver<Option<String>>, readiness: &Readiness) {
    while stall.changed().await.is_ok() {
        let note = stall.borrow_and_update().clone();
        readiness.set_note(note);
    }
}
