//! New certificates, bundles and revocation lists without a restart.
//!
//! The files are read again at an interval and compared by content. Notifications of
//! the file system would be quicker and are not to be relied on: not over NFS, not
//! across Kubernetes' swaps of a symlink above the file, not when their queue
//! overflows. A SIGHUP makes the next look immediate.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use thiserror::Error;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    Expiry, Fault, Paths, TlsFiles, TlsState,
    check::check,
    file_contents::{CRLS, Fingerprint, TlsFileContents},
    format_time,
};
use crate::{regular_file, telemetry};

/// What the files held when they were loaded for the first time.
pub struct Loaded {
    files: TlsFiles,
    fingerprint: Fingerprint,
    state: TlsState,
}

/// The files alone.
impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.files.fmt(f)
    }
}

/// Loads the files for the first time. `Ok(None)` if a setting is missing; the others are
/// checked all the same. The server's certificate may be one that is not valid at this time.
pub(crate) fn load(paths: &Paths) -> Result<Option<Loaded>, Vec<Fault>> {
    let material = TlsFileContents::read(paths);
    let fingerprint = material.fingerprint();
    let state = state(material, paths, false)?;
    Ok(paths.complete().zip(state).map(|(files, state)| Loaded {
        files,
        fingerprint,
        state,
    }))
}

fn state(
    material: TlsFileContents,
    paths: &Paths,
    new_certificate: bool,
) -> Result<Option<TlsState>, Vec<Fault>> {
    let checked = check(material, new_certificate)?;
    let state = checked.map(|checked| TlsState::new(checked, paths.crl_policy));
    // All else has been checked.
    let setting = CRLS;
    state
        .transpose()
        .map_err(|error| vec![Fault { setting, error }])
}

/// Looks after the files, and hands on what they say while that is good.
pub struct Reloader {
    files: TlsFiles,
    fingerprint: Fingerprint,
    current: watch::Sender<Arc<TlsState>>,
    /// What is wrong with the files since they were last good.
    failure: Option<String>,
    /// Reading that takes longer than [`READ_TIMEOUT`]. It ends: each file is bounded in time.
    stuck: Option<JoinHandle<Result<Option<Renewed>, ReloadError>>>,
}

/// How long reading may take before connections are measured again without it. Longer
/// than one file may take, so that the message names the file.
const READ_TIMEOUT: Duration = regular_file::READ_TIMEOUT.saturating_add(Duration::from_secs(1));

/// A snapshot, and the fingerprint of what it was made of.
type Renewed = (Fingerprint, TlsState);

/// Why the files that are there now are not used.
#[derive(Debug, Error)]
enum ReloadError {
    #[error("{}", all(.0))]
    Files(Vec<Fault>),
    #[error("reading the files takes too long: is what they are on still there?")]
    ReadTimeout,
    #[error("loading the files panicked: this is a bug")]
    Panicked,
    #[error(
        "{} has no admin bundle any more, and without one admins would be bound to none: put it \
         back, or restart without it",
        .0.display()
    )]
    AdminBundleGone(PathBuf),
}

fn all(faults: &[Fault]) -> String {
    let texts: Vec<_> = faults.iter().map(Fault::to_string).collect();
    texts.join("; ")
}

impl Reloader {
    /// Uses what was loaded.
    #[must_use]
    pub fn start(loaded: Loaded) -> Self {
        let Loaded {
            files,
            fingerprint,
            state,
        } = loaded;
        state.log(&files);
        report_expiry(state.expiry());
        Self {
            files,
            fingerprint,
            current: watch::Sender::new(Arc::new(state)),
            failure: None,
            stuck: None,
        }
    }

    /// What the files say. It is sent anew at every look, changed or not, so that
    /// connections are measured again: certificates and revocation lists end while
    /// nobody touches a file.
    #[must_use]
    pub fn states(&self) -> watch::Receiver<Arc<TlsState>> {
        self.current.subscribe()
    }

    /// Looks every `period`, and whenever `reload_signal` changes. Never ends.
    pub async fn run(mut self, period: Duration, mut reload_signal: watch::Receiver<u64>) {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let asked = tokio::select! {
                _ = ticks.tick() => false,
                Ok(()) = reload_signal.changed() => true,
            };
            self.look(asked).await;
        }
    }

    async fn look(&mut self, asked: bool) {
        if asked {
            regular_file::try_again();
        }
        match self.load().await.and_then(|loaded| self.kept(loaded)) {
            Err(error) => self.failed(&error, asked),
            Ok(None) => {
                if self.failure.take().is_some() || asked {
                    tracing::info!("the TLS files are as they were when they were last loaded");
                    telemetry::tls_reload_failing(false);
                }
            }
            Ok(Some((fingerprint, state))) => {
                state.log(&self.files);
                report_expiry(state.expiry());
                telemetry::tls_reloaded(true);
                telemetry::tls_reload_failing(false);
                tracing::info!(
                    certificate_expires = format_time(state.expiry().server),
                    next_crl_update = state.expiry().crl.map(format_time),
                    "TLS files reloaded"
                );
                self.fingerprint = fingerprint;
                self.failure = None;
                self.current.send_replace(Arc::new(state));
                return;
            }
        }
        self.current.send_modify(|_| {});
    }

    /// `None` where the files are as they were.
    async fn load(&mut self) -> Result<Option<Renewed>, ReloadError> {
        let (files, known) = (self.files.clone(), self.fingerprint);
        let mut loading = self
            .stuck
            .take()
            .unwrap_or_else(|| tokio::task::spawn_blocking(move || renewed(files, known)));
        match timeout(READ_TIMEOUT, &mut loading).await {
            Ok(loaded) => loaded.unwrap_or(Err(ReloadError::Panicked)),
            Err(_) => {
                self.stuck = Some(loading);
                Err(ReloadError::ReadTimeout)
            }
        }
    }

    /// A bundle that vanishes must not free those that were bound to it: half of a
    /// replacement looks the same.
    fn kept(&self, loaded: Option<Renewed>) -> Result<Option<Renewed>, ReloadError> {
        if let Some((_, state)) = &loaded
            && self.current.borrow().has_admin_bundle()
            && !state.has_admin_bundle()
        {
            let path = self.files.admin_root_ca.clone();
            return Err(ReloadError::AdminBundleGone(path.unwrap_or_default()));
        }
        Ok(loaded)
    }

    /// Told once for each thing that goes wrong, not at every look.
    fn failed(&mut self, error: &ReloadError, asked: bool) {
        let failure = error.to_string();
        if asked || self.failure.as_ref() != Some(&failure) {
            tracing::error!(
                %error,
                "TLS files not reloaded: what was loaded before stays in use"
            );
            telemetry::tls_reloaded(false);
            telemetry::tls_reload_failing(true);
        }
        self.failure = Some(failure);
    }
}

/// Has the metrics say when the loaded certificates and lists end.
fn report_expiry(expiry: &Expiry) {
    telemetry::certificate_expiry("server", expiry.server);
    telemetry::certificate_expiry("root_ca", expiry.root_ca);
    if let Some(end) = expiry.admin_root_ca {
        telemetry::certificate_expiry("admin_root_ca", end);
    }
    if let Some(end) = expiry.crl {
        telemetry::crl_expiry(end);
    }
}

/// `None` where the files are as they were.
fn renewed(files: TlsFiles, known: Fingerprint) -> Result<Option<Renewed>, ReloadError> {
    let paths = Paths::from(files);
    let mut material = TlsFileContents::read(&paths);
    // An unreadable file must not look like an empty one that was there before.
    if !material.faults.is_empty() {
        return Err(ReloadError::Files(std::mem::take(&mut material.faults)));
    }
    let fingerprint = material.fingerprint();
    if fingerprint == known {
        return Ok(None);
    }
    // One that has expired in use must not keep a new revocation list out.
    let new_certificate = fingerprint.certificate != known.certificate;
    let state = state(material, &paths, new_certificate).map_err(ReloadError::Files)?;
    Ok(state.map(|state| (fingerprint, state)))
}
