//! The site's keys: out of environment variables if that is switched on, and out of
//! the secrets file; nico-api asks them in this order, too.

use std::path::PathBuf;

use super::{Environment, settings::Settings};
use crate::{
    keyring::{Kek, KeyId, Keyring},
    secrets::{self, environment::Variables},
};

const TARGET: &str = "machine_identity.current_encryption_key_id";
const FILE: &str = "rewrap.secrets_file";
const FROM_ENVIRONMENT: &str = "rewrap.secrets_from_environment";
const PREFIX: &str = "rewrap.secrets_environment_prefix";

/// nico-api's own.
const DEFAULT_PREFIX: &str = "CARBIDE_STATIC_CREDENTIAL_";

const NO_KEYS: &str = "has no keys in machine_identity.encryption_keys";

/// Reads every key and the id of the target.
pub(super) fn read(
    settings: &mut Settings,
    environment: &Environment,
    warnings: &mut Vec<String>,
) -> Option<Keyring> {
    let target = target(settings);
    let sources = Sources::read(settings, environment, warnings)?;
    let known: Vec<_> = sources
        .keks
        .iter()
        .map(|kek| format!("{:?}", kek.id().as_str()))
        .collect();
    match Keyring::new(sources.keks, target?) {
        Ok(keyring) => Some(keyring),
        Err(error) => {
            let wanted = error.0.as_str();
            let lower = wanted.to_ascii_lowercase();
            let case = if lower != wanted && known.contains(&format!("{lower:?}")) {
                "; ids from environment variables come out in lower case"
            } else {
                ""
            };
            let fault = format!(
                "{error} of {} (it has {}): add the key there, or correct the id{case}",
                sources.name,
                known.join(", ")
            );
            settings.fault(TARGET, fault);
            None
        }
    }
}

fn target(settings: &mut Settings) -> Option<KeyId> {
    let id = settings.required_string(
        TARGET,
        "set it to the id of the key that secrets are to be wrapped to",
    )?;
    KeyId::new(id)
        .map_err(|error| settings.fault(TARGET, error))
        .ok()
}

/// All keys that were found, each id once, and at least one.
struct Sources {
    keks: Vec<Kek>,
    /// Where they came from, for messages.
    name: String,
}

impl Sources {
    fn read(
        settings: &mut Settings,
        environment: &Environment,
        warnings: &mut Vec<String>,
    ) -> Option<Self> {
        let prefix = settings.filled_string(PREFIX);
        let variables = Variables::with_prefix(prefix.as_deref().unwrap_or(DEFAULT_PREFIX));
        if !settings.bool(FROM_ENVIRONMENT, false) {
            let unread = environment.keys().find(|name| variables.is_one(name));
            warnings.extend(unread.map(|name| {
                format!(
                    "environment variable {name} is not read: keys are taken from the environment \
                     only where [rewrap].secrets_from_environment or \
                     CARBIDE_CREDENTIALS_ENV_ENABLED is true"
                )
            }));
            return Self::file(settings);
        }

        let pairs = environment
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_ref().map(|text| text.as_str())));
        let from_variables = variables.read(pairs);
        let every_key = variables.name("<id>");
        let file = if settings.filled_string(FILE).is_some() {
            Some(file_keks(settings))
        } else {
            None
        };
        let first = match from_variables {
            Ok(keks) => keks,
            Err(faults) => {
                settings.faults(faults);
                return None;
            }
        };
        let Some(file) = file else {
            if first.is_empty() {
                settings.fault(
                    FROM_ENVIRONMENT,
                    format!(
                        "there is no key in the environment, and no [rewrap].secrets_file: \
                         set {every_key} to the base64 text of each key"
                    ),
                );
                return None;
            }
            let name = format!("the environment variables {every_key}");
            return Some(Self { keks: first, name });
        };
        let (path, second) = file?;
        let keks = merged(first, second, warnings);
        if keks.is_empty() {
            let shown = path.display();
            let fault = format!("{shown} {NO_KEYS}, and no variable {every_key} is set");
            settings.fault(FILE, fault);
            return None;
        }
        Some(Self {
            keks,
            name: format!("{} and the environment", path.display()),
        })
    }

    fn file(settings: &mut Settings) -> Option<Self> {
        settings.required_string(
            FILE,
            "set it, or the environment variable CARBIDE_CREDENTIALS_FILE_PATH, to the secrets \
             file that nico-api reads (JSON or YAML with machine_identity.encryption_keys)",
        )?;
        let (path, keks) = file_keks(settings)?;
        if keks.is_empty() {
            let source = settings.source(FILE);
            let fault = format!("{} ({source}) {NO_KEYS}", path.display());
            settings.fault(FILE, fault);
            return None;
        }
        let name = path.display().to_string();
        Some(Self { keks, name })
    }
}

fn file_keks(settings: &mut Settings) -> Option<(PathBuf, Vec<Kek>)> {
    let path = PathBuf::from(settings.filled_string(FILE)?);
    match secrets::read(&path) {
        Ok(keks) => Some((path, keks)),
        Err(faults) => {
            let source = settings.source(FILE);
            for fault in faults {
                settings.fault(FILE, format!("{} ({source}) {fault}", path.display()));
            }
            None
        }
    }
}

/// `first`, and of `second` what has another id.
fn merged(first: Vec<Kek>, second: Vec<Kek>, warnings: &mut Vec<String>) -> Vec<Kek> {
    let mut keks = first;
    for kek in second {
        match keks.iter().find(|other| other.id() == kek.id()) {
            None => keks.push(kek),
            Some(other) if other.check_value() == kek.check_value() => {}
            Some(other) => warnings.push(format!(
                "key {:?} is in the environment (key check value {}) and in the secrets file ({}) \
                 with other bytes: the environment wins, as in nico-api",
                kek.id().as_str(),
                other.check_value(),
                kek.check_value()
            )),
        }
    }
    keks
}
