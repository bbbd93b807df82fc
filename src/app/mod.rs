//! The composition root: binds the listeners, checks the files, serves calls, and drains
//! them at shutdown.
//!
//! The HTTP listener answers probes from the start to the end of the process.

mod changes;
mod keys;
mod watch;

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use metrics_exporter_prometheus::PrometheusHandle;
use rustls::pki_types::UnixTime;
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch::Receiver,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    api::{call::Calls, grpc, guard::Guard},
    audit::AuditLog,
    config::{Config, OnDisk},
    server::ServerOptions,
    server::{self, probes},
    store::SchemaError,
    telemetry::readiness::Readiness,
    tls::{Reloader, TlsState},
};

use self::keys::Site;
pub(crate) use self::keys::log as log_keys;

const GRPC: &str = "grpc";
const DATABASE: &str = "database";
const CERTIFICATE: &str = "certificate";
const PROCESS: &str = "process";

/// Maximum number of connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// How often to check a certificate that is outside its validity period.
const RETRY: Duration = Duration::from_secs(1);

/// How long clients may take to receive the last answers, after the grace period of the
/// calls.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// How often to compact the histograms. The exporter does this in a task of its own only if
/// it also serves the metrics over HTTP. This is the interval of that task.
const UPKEEP: Duration = Duration::from_secs(5);

/// Why the server did not start, or ended without a shutdown signal.
#[derive(Debug, Error)]
pub enum AppError {
    /// The database lacks tables or columns.
    #[error("database_url: {0}")]
    Schema(SchemaError),
    /// The target key failed its self-test.
    #[error(
        "[machine_identity].current_encryption_key_id: key {0:?} failed its seal-and-open test"
    )]
    TargetKey(String),
    /// The keys in Vault cannot be read, or the target key is not among them.
    #[error("{0}")]
    Keys(String),
    /// The audit log cannot be opened.
    #[error("[rewrap].audit_log: can't be opened for appending ({0})")]
    Audit(std::io::Error),
    /// A listener cannot be bound.
    #[error("[rewrap].{setting}: can't listen on {address} ({source})")]
    Bind {
        /// The setting.
        setting: &'static str,
        /// The value of the setting.
        address: SocketAddr,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A bug.
    #[error("{0}")]
    Bug(String),
}

impl AppError {
    /// Whether the cause is the configuration, so that a restart alone does not help.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        matches!(
            self,
            Self::Schema(_) | Self::TargetKey(_) | Self::Keys(_) | Self::Audit(_)
        )
    }
}

/// The two bound listeners.
#[derive(Debug)]
pub struct Listeners {
    /// The listener for gRPC.
    pub grpc: TcpListener,
    /// The listener for probes and metrics.
    pub http: TcpListener,
}

impl Listeners {
    /// Binds the configured addresses.
    ///
    /// # Errors
    ///
    /// [`AppError::Bind`] with the setting whose address cannot be bound.
    pub async fn bind(options: &ServerOptions) -> Result<Self, AppError> {
        Ok(Self {
            grpc: bind("listen", options.listen).await?,
            http: bind("metrics_endpoint", options.metrics_endpoint).await?,
        })
    }
}

async fn bind(setting: &'static str, address: SocketAddr) -> Result<TcpListener, AppError> {
    let listener = if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        bind_both(address)
    } else {
        TcpListener::bind(address).await
    };
    listener.map_err(|source| AppError::Bind {
        setting,
        address,
        source,
    })
}

/// Binds `[::]` for IPv6 and IPv4, regardless of the system's `net.ipv6.bindv6only`.
fn bind_both(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

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
    changes::register();
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
        listener: TcpListener,
        probes: &TaskTracker,
        readiness: Readiness,
        reload_signal: Receiver<u64>,
        shutdown: CancellationToken,
    ) -> Result<(), AppError> {
        let tasks = TaskTracker::new();
        let calls = Calls::new(
            self.site.as_ref().map(|site| site.runner.clone()),
            self.policy.clone(),
            readiness.clone(),
            self.audit.clone(),
            self.options.max_runs,
            tasks.clone(),
            shutdown.clone(),
        );
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
                self.tls.states(),
                Arc::new(self.trust),
                guard,
                self.options,
                shutdown.clone(),
            )),
            reloading: spawn_tracked(self.tls.run(reload_interval, reload_signal)),
        };
        readiness.release(GRPC);

        let store = self.site.as_ref().map(|site| site.store.clone());
        let database = watch::database(store, &readiness);
        let keys = watch_runner(self.site, &readiness);
        let over = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            error = database => Err(error),
            error = keys => Err(error),
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

/// The tasks that must run until shutdown. If one ends, the process exits, so that a restart
/// brings the task back: without the reload task, the server would keep accepting revoked
/// certificates.
struct CriticalTasks {
    grpc: TaskTracker,
    probes: TaskTracker,
    reloading: TaskTracker,
}

impl CriticalTasks {
    /// Waits until one of the tasks ends or panics.
    async fn ended(&self) -> AppError {
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
fn spawn_tracked(task: impl Future<Output = ()> + Send + 'static) -> TaskTracker {
    let tracker = TaskTracker::new();
    tracker.spawn(task);
    tracker.close();
    tracker
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

fn log_listening(listeners: &Listeners) {
    let address = |listener: &TcpListener| {
        listener
            .local_addr()
            .map_or_else(|error| error.to_string(), |address| address.to_string())
    };
    tracing::info!(
        grpc = address(&listeners.grpc),
        http = address(&listeners.http),
        "listening"
    );
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

/// Keeps the server unready until its certificate is valid: the clock may not be set yet, or a
/// renewed certificate may arrive later. A certificate that expires after that does not end
/// readiness.
///
/// The server accepts handshakes in the meantime: clients refuse the certificate themselves.
async fn wait_for_certificate(states: Receiver<Arc<TlsState>>, readiness: Readiness) {
    while hold_for_certificate(&states.borrow(), &readiness) {
        sleep(RETRY).await;
    }
    readiness.release(CERTIFICATE);
}

/// Holds readiness and returns true if the server's certificate is outside its validity
/// period.
fn hold_for_certificate(state: &TlsState, readiness: &Readiness) -> bool {
    let validity = state.validity();
    if validity.contains(UnixTime::now()) {
        return false;
    }
    readiness.hold(
        CERTIFICATE,
        format!(
            "the server's certificate of [tls].identity_pemfile_path is {validity}: renew the \
             certificate or correct the clock"
        ),
    );
    true
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn any_vital_task_that_ends_is_told_of() {
        let runs = || spawn_tracked(pending());
        let panics = || spawn_tracked(async { panic!("a test's own") });
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
