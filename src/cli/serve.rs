//! `serve`: reads the configuration, runs the server and returns the exit code.

use std::{ffi::OsString, path::PathBuf, process::ExitCode, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use super::{EX_CONFIG, EXIT_FLUSH_TIMEOUT, VERSION, fail, no_threads, notify, runtime};
use crate::{
    app::{self, AppError, Listeners},
    config::{Config, Environment, SiteKeys},
    domain::envelope::hardware,
    telemetry,
};

/// How long the last spans may take to reach the collector.
const TRACES_LIMIT: Duration = Duration::from_secs(2);

pub(super) fn run(files: &[PathBuf], environment: Environment) -> ExitCode {
    let config = match Config::load(files, &environment) {
        Ok(config) => config,
        Err(error) => return fail(&error, EX_CONFIG),
    };
    let notify_socket = notify::socket(&environment);
    // The environment may contain keys. Dropping wipes it.
    drop(environment);
    if let Err(error) = telemetry::start_logging(&config.log) {
        return fail(&no_threads(&error), 1);
    }
    log_startup(&config);
    let traces = config.traces.clone();
    let served = runtime()
        .map_err(|error| AppError::Bug(error.to_string()))
        .and_then(|runtime| {
            let served = runtime.block_on(async {
                if let Some(options) = traces {
                    telemetry::start_traces(options);
                }
                let served = serve(config, notify_socket).await;
                telemetry::stop_traces(TRACES_LIMIT).await;
                served
            });
            // A blocking thread, for example in a DNS query, must not delay the exit.
            runtime.shutdown_background();
            served
        });
    let code = match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the server ended with an error");
            ExitCode::from(if error.is_configuration() {
                EX_CONFIG
            } else {
                1
            })
        }
    };
    telemetry::flush_logs(EXIT_FLUSH_TIMEOUT);
    code
}

async fn serve(config: Config, notify_socket: Option<OsString>) -> Result<(), AppError> {
    let shutdown = shutdown_signal()?;
    let reload_signal = reload_signal()?;
    let metrics = telemetry::Metrics::start().map_err(|error| AppError::Bug(error.to_string()))?;
    match Listeners::bind(&config.server).await {
        Ok(listeners) => {
            // From here on, SIGHUP reloads files, and the kernel accepts connections of probes.
            notify::ready(notify_socket.as_deref());
            app::run(config, listeners, metrics, reload_signal, shutdown).await
        }
        // Reports a configuration error first, if there is one: a restart cannot fix that.
        Err(error) => Err(app::check(config).err().unwrap_or(error)),
    }
}

/// Returns a token that SIGTERM or SIGINT cancels.
fn shutdown_signal() -> Result<CancellationToken, AppError> {
    let install = |kind| signal(kind).map_err(|error| AppError::Bug(error.to_string()));
    let mut terminate = install(SignalKind::terminate())?;
    let mut interrupt = install(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        cancel.cancel();
    });
    Ok(token)
}

/// Returns a counter of SIGHUPs.
fn reload_signal() -> Result<watch::Receiver<u64>, AppError> {
    let mut hangup =
        signal(SignalKind::hangup()).map_err(|error| AppError::Bug(error.to_string()))?;
    let (counter, reload_signal) = watch::channel(0);
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            tracing::info!("SIGHUP: checking the TLS files and reopening the audit log");
            counter.send_modify(|count| *count += 1);
        }
    });
    Ok(reload_signal)
}

/// Logs what an operator needs to compare two instances.
fn log_startup(config: &Config) {
    tracing::info!(
        version = VERSION,
        aes_hardware = hardware::has_aes_gcm_instructions(),
        config = ?config,
        "starting"
    );
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let Some(machine_identity) = &config.machine_identity else {
        tracing::warn!(
            "[machine_identity].enabled is not true: the server answers every call with \
             FAILED_PRECONDITION"
        );
        return;
    };
    if let Some((file, certificates)) = machine_identity.database.root_certificates() {
        tracing::info!(
            setting = "database_url: sslrootcert",
            file = %file.display(),
            certificates,
            "TLS file read"
        );
    }
    if let SiteKeys::Complete(keyring) = &machine_identity.keys {
        app::log_keys(keyring);
    }
}
