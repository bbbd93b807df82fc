//! Loads new certificates, bundles and revocation lists without a restart.
//!
//! The reloader reads the files at an interval and compares their contents. File system
//! notifications would be faster, but they are not reliable: they do not work over NFS, they
//! miss the swap of a symlink above the file (Kubernetes), and their queue can overflow.
//! SIGHUP makes the reloader read the files immediately.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use thiserror::Error;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    Expiry, FileError, Paths, TlsFiles, TlsState,
    check::check,
    file_contents::{CRLS, Fingerprint, TlsFileContents},
    format_time,
    revocation::RevocationList,
};
use crate::{regular_file, telemetry};

/// The result of the first load of the files.
pub struct Loaded {
    files: TlsFiles,
    fingerprint: Fingerprint,
    state: TlsState,
}

/// Shows the paths of the files only.
impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.files.fmt(f)
    }
}

/// Loads the files for the first time. `Ok(None)` if a required setting is missing and the other
/// files are without errors. The server's certificate need not be valid now.
pub(crate) fn load(paths: &Paths) -> Result<Option<Loaded>, Vec<FileError>> {
    let contents = TlsFileContents::read(paths);
    let fingerprint = contents.fingerprint();
    let state = state(contents, paths, false, &[])?;
    Ok(paths.complete().zip(state).map(|(files, state)| Loaded {
        files,
        fingerprint,
        state,
    }))
}

fn state(
    contents: TlsFileContents,
    paths: &Paths,
    new_certificate: bool,
    loaded: &[RevocationList],
) -> Result<Option<TlsState>, Vec<FileError>> {
    let checked = check(contents, new_certificate)?;
    let wants_admin_bundle = paths.admin_root_ca.is_some();
    let policy = paths.crl_policy;
    let state = checked.map(|checked| TlsState::new(checked, policy, wants_admin_bundle, loaded));
    // Everything else has been checked, so the cause must be the lists.
    let setting = CRLS;
    state
        .transpose()
        .map_err(|error| vec![FileError { setting, error }])
}

/// Watches the files, and publishes a new [`TlsState`] when they change and are valid.
pub struct Reloader {
    files: TlsFiles,
    fingerprint: Fingerprint,
    current: watch::Sender<Arc<TlsState>>,
    /// The error of the last poll, if it failed.
    failure: Option<String>,
    /// A read that takes longer than [`READ_TIMEOUT`]. The next poll waits for it again. It ends
    /// eventually, because the time for each file is bounded.
    stuck: Option<JoinHandle<Result<Option<Renewed>, ReloadError>>>,
}

/// How long a poll waits for the files before it re-checks the connections without them. This
/// is longer than the limit for one file, so that the error message can name the file.
const READ_TIMEOUT: Duration = regular_file::READ_TIMEOUT.saturating_add(Duration::from_secs(1));

/// A new state, and the fingerprint of the files that it was built from.
type Renewed = (Fingerprint, TlsState);

/// Why the current files are not used.
#[derive(Debug, Error)]
enum ReloadError {
    #[error("{}", all(.0))]
    Files(Vec<FileError>),
    #[error("timed out while reading the TLS files: check that their file system is available")]
    ReadTimeout,
    #[error("loading the files panicked: this is a bug")]
    Panicked,
    #[error(
        "{} no longer has an admin bundle: restore the file of [tls].admin_root_cafile_path, or \
         restart nico-rewrap to run without an admin bundle. Without one, only the issuers of \
         [rewrap].admin_issuers_in_root_ca make administrators",
        .0.display()
    )]
    AdminBundleGone(PathBuf),
}

fn all(errors: &[FileError]) -> String {
    let texts: Vec<_> = errors.iter().map(FileError::to_string).collect();
    texts.join("; ")
}

impl Reloader {
    /// Starts with the files that were loaded.
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

    /// The current state. Every poll sends it, changed or not, so that each connection verifies
    /// its certificate again: certificates and revocation lists also expire while the files do
    /// not change.
    #[must_use]
    pub fn states(&self) -> watch::Receiver<Arc<TlsState>> {
        self.current.subscribe()
    }

    /// Polls the files every `period`, and whenever `reload_signal` changes. Never returns.
    pub async fn run(mut self, period: Duration, mut reload_signal: watch::Receiver<u64>) {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let requested = tokio::select! {
                _ = ticks.tick() => false,
                Ok(()) = reload_signal.changed() => true,
            };
            self.poll(requested).await;
        }
    }

    /// Reads the files once. `requested`: a signal asked for it, so the log tells the result.
    async fn poll(&mut self, requested: bool) {
        if requested {
            regular_file::try_again();
        }
        let loaded = self.load().await;
        let loaded = loaded.and_then(|loaded| self.reject_lost_bundle(loaded));
        match loaded.and_then(|loaded| self.reject_older_lists(loaded)) {
            Err(error) => self.failed(&error, requested),
            Ok(None) => {
                if self.failure.take().is_some() || requested {
                    tracing::info!("the TLS files have not changed since they were last loaded");
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

    /// `None` if the files have not changed.
    async fn load(&mut self) -> Result<Option<Renewed>, ReloadError> {
        let (files, known) = (self.files.clone(), self.fingerprint);
        let current = self.current.borrow().clone();
        let mut loading = self.stuck.take().unwrap_or_else(|| {
            tokio::task::spawn_blocking(move || renewed(files, known, &current))
        });
        match timeout(READ_TIMEOUT, &mut loading).await {
            Ok(loaded) => loaded.unwrap_or(Err(ReloadError::Panicked)),
            Err(_) => {
                self.stuck = Some(loading);
                Err(ReloadError::ReadTimeout)
            }
        }
    }

    /// Refuses a state that lost the admin bundle. The file may be missing only for the moment in
    /// which it is replaced, and the new state would stop the runs of all administrators. The
    /// loaded bundle admits nobody whom it did not admit before.
    fn reject_lost_bundle(&self, loaded: Option<Renewed>) -> Result<Option<Renewed>, ReloadError> {
        if let Some((_, state)) = &loaded
            && self.current.borrow().has_admin_bundle()
            && !state.has_admin_bundle()
        {
            let path = self.files.admin_root_ca.clone();
            return Err(ReloadError::AdminBundleGone(path.unwrap_or_default()));
        }
        Ok(loaded)
    }

    /// Refuses a state with a revocation list that is older than the loaded one.
    fn reject_older_lists(&self, loaded: Option<Renewed>) -> Result<Option<Renewed>, ReloadError> {
        if let Some((_, state)) = &loaded {
            let setting = CRLS;
            state
                .crl_ages
                .check_not_before(&self.current.borrow().crl_ages)
                .map_err(|error| ReloadError::Files(vec![FileError { setting, error }]))?;
        }
        Ok(loaded)
    }

    /// Logs and counts an error once, not at every poll.
    fn failed(&mut self, error: &ReloadError, requested: bool) {
        let failure = error.to_string();
        if requested || self.failure.as_ref() != Some(&failure) {
            tracing::error!(
                %error,
                "TLS files not reloaded: the files that were loaded before stay in use"
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
fn renewed(
    files: TlsFiles,
    known: Fingerprint,
    loaded: &TlsState,
) -> Result<Option<Renewed>, ReloadError> {
    let paths = Paths::from(files);
    let mut contents = TlsFileContents::read(&paths);
    // The fingerprint of an unreadable file is that of an empty one.
    if !contents.errors.is_empty() {
        return Err(ReloadError::Files(std::mem::take(&mut contents.errors)));
    }
    let fingerprint = contents.fingerprint();
    if fingerprint == known {
        return Ok(None);
    }
    // A server certificate that expired while in use must not block a new revocation list.
    let new_certificate = fingerprint.certificate != known.certificate;
    let state =
        state(contents, &paths, new_certificate, &loaded.lists).map_err(ReloadError::Files)?;
    Ok(state.map(|state| (fingerprint, state)))
}
