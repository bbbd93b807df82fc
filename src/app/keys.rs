//! The keys and the runner that uses them. Keys that are in Vault are read after the listeners
//! are up, because Vault may not answer yet.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::time::sleep;

use super::{AppError, self_test::self_test};
use crate::{
    api::context::LateRunner,
    config::{InVault, MachineIdentity, SiteKeys},
    domain::keyring::Keyring,
    run::{self, RateOptions, Runner},
    store::Store,
    telemetry::{
        self,
        readiness::{Readiness, latches::KEYS},
    },
    vault::VaultError,
};

/// How long to wait after the first failed attempt to read Vault. The pause doubles with every
/// attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What runs need: the database and the keys.
pub(super) struct Site {
    pub(super) store: Arc<Store>,
    pub(super) runner: LateRunner,
    pub(super) database_tls: &'static str,
    pub(super) census_interval: Duration,
    pub(super) soak: Duration,
    rate: RateOptions,
    /// The keys that are not read yet.
    in_vault: Option<InVault>,
}

impl Site {
    /// Checks the keys that have been read. Does not use the network.
    pub(super) fn prepare(machine_identity: MachineIdentity) -> Result<Self, AppError> {
        let store = Store::new(&machine_identity.database, machine_identity.store)
            .map_err(|error| AppError::Bug(error.to_string()))?;
        let mut site = Self {
            store: Arc::new(store),
            runner: Arc::new(OnceLock::new()),
            database_tls: machine_identity.database_tls,
            census_interval: machine_identity.census_interval,
            soak: machine_identity.soak,
            rate: machine_identity.rate,
            in_vault: None,
        };
        match machine_identity.keys {
            SiteKeys::Complete(keyring) => site.start(keyring)?,
            SiteKeys::InVault(in_vault) => site.in_vault = Some(*in_vault),
        }
        Ok(site)
    }

    /// Holds the latch while keys are not read yet.
    pub(super) fn hold(&self, readiness: &Readiness) {
        if let Some(in_vault) = &self.in_vault {
            readiness.hold(KEYS, format!("reading them from {}", in_vault.vault));
        }
    }

    /// Reads the keys in Vault. Waits while Vault does not answer.
    ///
    /// # Errors
    ///
    /// [`AppError::Keys`] if the problem cannot end without a change by an operator.
    pub(super) async fn complete(mut self, readiness: &Readiness) -> Result<LateRunner, AppError> {
        if let Some(in_vault) = self.in_vault.take() {
            let (keyring, warnings) = read(in_vault, readiness).await?;
            log(&keyring);
            for warning in warnings {
                tracing::warn!("{warning}");
            }
            self.start(keyring)?;
            readiness.release(KEYS);
        }
        Ok(self.runner)
    }

    fn start(&self, keyring: Keyring) -> Result<(), AppError> {
        self_test(&keyring)?;
        for kek in keyring.iter() {
            let is_target = kek.id() == keyring.target().id();
            telemetry::key_info(kek.id().as_str(), &kek.check_value().to_string(), is_target);
        }
        let site = run::Site {
            keyring,
            store: self.store.clone(),
        };
        let runner = Runner::new(Arc::new(site), self.rate);
        self.runner
            .set(runner)
            .map_err(|_| AppError::Bug("the keys were read twice".to_owned()))
    }
}

async fn read(
    in_vault: InVault,
    readiness: &Readiness,
) -> Result<(Keyring, Vec<String>), AppError> {
    let known = in_vault.known();
    let mut pause = FIRST_PAUSE;
    loop {
        match in_vault.vault.read(&known, in_vault.target.as_str()).await {
            Ok(found) => {
                tracing::info!(
                    vault = %in_vault.vault,
                    login = %in_vault.vault.login,
                    keys = found.keks.len(),
                    "Vault read"
                );
                return in_vault.complete(found).map_err(AppError::Keys);
            }
            Err(VaultError::Configuration(problem)) => return Err(AppError::Keys(problem)),
            Err(VaultError::Unavailable(problem)) => {
                tracing::warn!(error = problem, "waiting for Vault");
                readiness.hold(KEYS, problem);
            }
        }
        sleep(pause).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

/// Logs the id and the check value of every key, so that an operator can compare the keys of two
/// programs.
pub(crate) fn log(keyring: &Keyring) {
    let target = keyring.target().id();
    for kek in keyring.iter() {
        tracing::info!(
            key_id = %kek.id(),
            key_check_value = %kek.check_value(),
            is_target = kek.id() == target,
            source = %kek.source(),
            "key"
        );
    }
    for (a, b) in keyring.duplicate_keys() {
        tracing::warn!(
            key_id = %a,
            other_key_id = %b,
            "TWO KEY IDS HAVE THE SAME KEY BYTES: re-wrapping from one to the other does not \
             change the key; generate a new key"
        );
    }
}
