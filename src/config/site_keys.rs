//! The keys of the site, of which some may still be in Vault.

use std::{collections::BTreeSet, fmt};

use crate::{
    domain::keyring::{Kek, KeyId, Keyring},
    keys::merge::merged,
    vault::{self, VaultOptions},
};

/// The keys of the site.
#[derive(Debug)]
pub enum SiteKeys {
    /// All keys.
    Complete(Keyring),
    /// Vault may have more keys.
    InVault(Box<InVault>),
}

/// The keys of the environment and of the file, and how to read the keys that are in Vault.
pub struct InVault {
    /// How to read keys from Vault.
    pub vault: VaultOptions,
    /// The id of the target key.
    pub target: KeyId,
    /// The keys of the environment and of the file. They take precedence.
    pub(super) keks: Vec<Kek>,
    /// The keys of nico-api's environment and file, to compare with.
    pub(super) nico_api: Vec<Kek>,
    /// The setting of the target key, with its file.
    pub(super) setting: String,
    pub(super) missing: MissingTarget,
}

/// Shows no texts for messages.
impl fmt::Debug for InVault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InVault")
            .field("vault", &self.vault)
            .field("keks", &self.keks)
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

impl InVault {
    /// The ids of the keys of the environment and of the file.
    #[must_use]
    pub fn known(&self) -> BTreeSet<String> {
        self.keks.iter().map(|kek| kek.id().to_string()).collect()
    }

    /// Adds the keys of Vault. Also returns warnings.
    ///
    /// # Errors
    ///
    /// The message about a target key that no source has.
    pub fn complete(self, found: vault::Found) -> Result<(Keyring, Vec<String>), String> {
        let mut warnings = found.warnings;
        let known = self.known();
        let keks = merged(self.keks, found.keks, &mut warnings);
        let of_vault: Vec<_> = keks
            .iter()
            .filter(|kek| !known.contains(kek.id().as_str()))
            .collect();
        compare(&of_vault, &self.nico_api, &mut warnings);
        for id in found.deleted.iter().filter(|id| !known.contains(*id)) {
            warnings.push(format!(
                "key {id:?} was deleted from Vault ({}/{id}), so neither this program nor nico-api \
                 has it: if rows still use it, restore it with vault kv undelete",
                self.vault.folder()
            ));
        }
        let target = self.target.as_str();
        let advice = if found.deleted.contains(target) {
            "; it was deleted from Vault: restore it with vault kv undelete"
        } else {
            ""
        };
        let keyring = self.missing.keyring(keks, self.target);
        let setting = self.setting;
        let keyring = keyring.map_err(|problem| format!("{setting}: {problem}{advice}"))?;
        Ok((keyring, warnings))
    }
}

/// What the message about a missing target key needs.
pub(super) struct MissingTarget {
    /// The sources.
    pub(super) name: String,
    /// The end of the message.
    pub(super) advice: String,
}

impl MissingTarget {
    /// A keyring of `keks`, or the message.
    pub(super) fn keyring(self, keks: Vec<Kek>, target: KeyId) -> Result<Keyring, String> {
        let known: Vec<_> = keks
            .iter()
            .map(|kek| format!("{:?}", kek.id().as_str()))
            .collect();
        Keyring::new(keks, target).map_err(|error| {
            let wanted = error.0.as_str();
            let lower = wanted.to_ascii_lowercase();
            let case = if lower != wanted && known.contains(&format!("{lower:?}")) {
                "; key ids from environment variables are in lower case"
            } else {
                ""
            };
            let known = if known.is_empty() {
                "it has no keys".to_owned()
            } else {
                format!("it has {}", known.join(", "))
            };
            format!(
                "{error} of {} ({known}): add the key there, or correct the id{case}{}",
                self.name, self.advice
            )
        })
    }
}

/// Warns about keys that have other bytes in nico-api.
pub(super) fn compare(keks: &[&Kek], nico_api: &[Kek], warnings: &mut Vec<String>) {
    for kek in keks {
        // nico-api, too, uses the first source that has the id.
        let other = nico_api.iter().find(|other| other.id() == kek.id());
        if let Some(other) = other.filter(|other| other.check_value() != kek.check_value()) {
            warnings.push(format!(
                "key {:?} has key check value {} in {}, which is used here, and {} in {}, which \
                 nico-api reads: nico-api cannot open secrets that are re-wrapped with the first; \
                 give both programs the same key",
                kek.id().as_str(),
                kek.check_value(),
                kek.source(),
                other.check_value(),
                other.source()
            ));
        }
    }
}
