//! New certificates, bundles and revocation lists without a restart.
//!
//! The files are read again at an interval and compared by content. Notifications of
//! the file system would be quicker and are not to be relied on: not over NFS, not
//! across Kubernetes' swaps of a symlink above the file, not when their queue
//! overflows. A SIGHUP makes the next look immediate.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    Snapshot, TlsError, TlsFiles,
    material::{Fingerprint, Material, valid_now},
    spelled,
};
use crate::{regular_file, telemetry};

/// Looks after the files, and hands on what they say while that is good.
pub struct Reloader {
    files: TlsFiles,
    fingerprint: Fingerprint,
    current: watch::Sender<Arc<Snapshot>>,
    /// What is wrong with the files since they were last good.
    failure: Option<String>,
    /// Reading that takes longer than [`PATIENCE`]. It ends: each file is bounded in time.
    stuck: Option<JoinHandle<Result<Option<Loaded>, TlsError>>>,
}

/// How long reading may take before connections are measured again without it. Longer
/// than one file may take, so that the message names the file.
const PATIENCE: Duration = regular_file::PATIENCE.saturating_add(Duration::from_secs(1));

/// A snapshot, and the fingerprint of what it was made of.
type Loaded = (Fingerprint, Snapshot);

impl Reloader {
    /// Loads the files for the first time.
    ///
    /// # Errors
    ///
    /// [`TlsError`] names the file that is of no use.
    pub fn start(files: TlsFiles) -> Result<Self, TlsError> {
        let material = Material::read(&files)?;
        valid_now(&material.certificate)?;
        let snapshot = Snapshot::new(&material, files.crl_policy)?;
        let fingerprint = material.fingerprint();
        snapshot.warn(&files);
        telemetry::tls_loaded(snapshot.expiry());
        Ok(Self {
            files,
            fingerprint,
            current: watch::Sender::new(Arc::new(snapshot)),
            failure: None,
            stuck: None,
        })
    }

    /// What the files say. It is sent anew at every look, changed or not, so that
    /// connections are measured again: certificates and revocation lists end while
    /// nobody touches a file.
    #[must_use]
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.current.subscribe()
    }

    /// Looks every `period`, and whenever `hangups` changes. Never ends.
    pub async fn run(mut self, period: Duration, mut hangups: watch::Receiver<u64>) {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let asked = tokio::select! {
                _ = ticks.tick() => false,
                Ok(()) = hangups.changed() => true,
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
            Ok(Some((fingerprint, snapshot))) => {
                snapshot.warn(&self.files);
                telemetry::tls_loaded(snapshot.expiry());
                telemetry::tls_reloaded(true);
                telemetry::tls_reload_failing(false);
                tracing::info!(
                    certificate_expires = spelled(snapshot.expiry().server),
                    next_crl_update = snapshot.expiry().crl.map(spelled),
                    "TLS files reloaded"
                );
                self.fingerprint = fingerprint;
                self.failure = None;
                self.current.send_replace(Arc::new(snapshot));
                return;
            }
        }
        self.current.send_modify(|_| {});
    }

    /// `None` where the files are as they were.
    async fn load(&mut self) -> Result<Option<Loaded>, TlsError> {
        let (files, known) = (self.files.clone(), self.fingerprint);
        let mut loading = self
            .stuck
            .take()
            .unwrap_or_else(|| tokio::task::spawn_blocking(move || load(&files, known)));
        match timeout(PATIENCE, &mut loading).await {
            Ok(loaded) => loaded.unwrap_or(Err(TlsError::Panicked)),
            Err(_) => {
                self.stuck = Some(loading);
                Err(TlsError::Stuck)
            }
        }
    }

    /// A bundle that vanishes must not free those that were bound to it: half of a
    /// replacement looks the same.
    fn kept(&self, loaded: Option<Loaded>) -> Result<Option<Loaded>, TlsError> {
        if let Some((_, snapshot)) = &loaded
            && self.current.borrow().has_admin_bundle()
            && !snapshot.has_admin_bundle()
        {
            let path = self.files.admin_root_ca.clone();
            return Err(TlsError::AdminBundleGone(path.unwrap_or_default()));
        }
        Ok(loaded)
    }

    /// Told once for each thing that goes wrong, not at every look.
    fn failed(&mut self, error: &TlsError, asked: bool) {
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

/// `None` where the files are as they were.
fn load(files: &TlsFiles, known: Fingerprint) -> Result<Option<Loaded>, TlsError> {
    let material = Material::read(files)?;
    let fingerprint = material.fingerprint();
    if fingerprint == known {
        return Ok(None);
    }
    // One that has expired in use must not keep a new revocation list out.
    if fingerprint.certificate != known.certificate {
        valid_now(&material.certificate)?;
    }
    let snapshot = Snapshot::new(&material, files.crl_policy)?;
    Ok(Some((fingerprint, snapshot)))
}
