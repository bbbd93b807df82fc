//! Reads the site's keys: from environment variables, if that is enabled, then from the
//! secrets file. If both have a key id, the environment takes precedence, as in nico-api.

use std::{collections::BTreeSet, path::Path};

use super::{
    Environment,
    key_sources::{self, FILE, FROM_ENVIRONMENT, SecretsFile, Sources},
    settings::Settings,
};
use crate::{
    domain::keyring::{Kek, KeyId, Keyring},
    keys::file as secrets,
    regular_file,
};

const TARGET: &str = "machine_identity.current_encryption_key_id";

const NO_KEYS: &str = "has no keys in machine_identity.encryption_keys";

/// Reads every key, and the id of the target key.
pub(super) fn read(
    settings: &mut Settings,
    environment: &Environment,
    warnings: &mut Vec<String>,
) -> Option<Keyring> {
    let target = target(settings);
    let (ours, theirs) = key_sources::read(settings, environment, warnings);
    let found = Found::read(&ours, settings, environment, warnings)?;
    compare(&found.keks, &ours, &theirs, environment, warnings);
    let known: Vec<_> = found
        .keks
        .iter()
        .map(|kek| format!("{:?}", kek.id().as_str()))
        .collect();
    match Keyring::new(found.keks, target?) {
        Ok(keyring) => Some(keyring),
        Err(error) => {
            let wanted = error.0.as_str();
            let lower = wanted.to_ascii_lowercase();
            let case = if lower != wanted && known.contains(&format!("{lower:?}")) {
                "; key ids from environment variables are in lower case"
            } else {
                ""
            };
            let problem = format!(
                "{error} of {} (it has {}): add the key there, or correct the id{case}",
                found.name,
                known.join(", ")
            );
            settings.missing(TARGET, problem);
            None
        }
    }
}

/// The ids of all keys in our sources and in those of nico-api, and the target key id. The file
/// `absent` need not exist.
pub(super) fn ids(
    settings: &mut Settings,
    environment: &Environment,
    absent: Option<&Path>,
    warnings: &mut Vec<String>,
) -> BTreeSet<String> {
    let (ours, theirs) = key_sources::read(settings, environment, &mut Vec::new());
    let mut ids: BTreeSet<_> = settings.non_empty_string(TARGET).into_iter().collect();
    let mut add = |keks: Vec<Kek>| ids.extend(keks.iter().map(|kek| kek.id().to_string()));
    if !ours.from_environment && ours.file.is_none() {
        settings.required_string(FILE, &key_sources::missing_file(environment));
    }
    for sources in [&ours, &theirs] {
        if sources.from_environment {
            match keks_of_variables(sources, environment) {
                Ok(keks) => add(keks),
                Err(problems) => settings.problems(problems),
            }
        }
    }
    let must_exist = |file: &&SecretsFile| {
        let absolute = |path| std::path::absolute(path).ok();
        absent.is_none_or(|absent| absolute(absent) != absolute(&*file.path))
    };
    let our_file = ours.file.as_ref().filter(must_exist);
    add(our_file
        .and_then(|file| keks_of_file(file, settings))
        .unwrap_or_default());
    let their_file = theirs.file.as_ref().filter(must_exist);
    if let Some(file) = their_file.filter(|file| our_file.is_none_or(|ours| !ours.is(file))) {
        match read_file(&file.path) {
            Ok(keks) => add(keks),
            // It may be out of reach where this program runs.
            Err(problems) => warnings.push(format!(
                "nico-api's secrets file {} {}: the new id was not compared with its ids",
                file.path.display(),
                problems.join(", ")
            )),
        }
    }
    ids
}

fn target(settings: &mut Settings) -> Option<KeyId> {
    let id = settings.required_string(
        TARGET,
        "set it to the id of the key under which to wrap the secrets",
    )?;
    KeyId::new(id)
        .map_err(|error| settings.problem(TARGET, error))
        .ok()
}

/// The keys that were found: at least one, and no id twice.
struct Found {
    keks: Vec<Kek>,
    /// Their sources, for messages.
    name: String,
}

impl Found {
    fn read(
        sources: &Sources,
        settings: &mut Settings,
        environment: &Environment,
        warnings: &mut Vec<String>,
    ) -> Option<Self> {
        let variables = &sources.variables;
        if !sources.from_environment {
            let unread = environment.keys().find(|name| variables.is_one(name));
            warnings.extend(unread.map(|name| {
                format!(
                    "environment variable {name} is not read: keys are read from the environment \
                     only if [rewrap].secrets_from_environment or \
                     CARBIDE_CREDENTIALS_ENV_ENABLED is true"
                )
            }));
            return Self::file(sources, settings, environment);
        }

        let from_variables = keks_of_variables(sources, environment);
        let every_key = variables.name("<id>");
        let file = sources.file.as_ref();
        let file = file.map(|file| (file, keks_of_file(file, settings)));
        let first = match from_variables {
            Ok(keks) => keks,
            Err(problems) => {
                settings.problems(problems);
                return None;
            }
        };
        let Some((file, second)) = file else {
            if first.is_empty() {
                settings.missing(
                    FROM_ENVIRONMENT,
                    format!(
                        "there is no key in the environment, and [rewrap].secrets_file is not set: \
                         set {every_key} to the base64 text of each key"
                    ),
                );
                return None;
            }
            let name = format!("the environment variables {every_key}");
            return Some(Self { keks: first, name });
        };
        let keks = merged(first, second?, warnings);
        if keks.is_empty() {
            file.problem(
                settings,
                &format!("{NO_KEYS}, and no variable {every_key} is set"),
            );
            return None;
        }
        Some(Self {
            keks,
            name: format!("{} and the environment", file.path.display()),
        })
    }

    fn file(sources: &Sources, settings: &mut Settings, environment: &Environment) -> Option<Self> {
        let Some(file) = &sources.file else {
            settings.required_string(FILE, &key_sources::missing_file(environment));
            return None;
        };
        let keks = keks_of_file(file, settings)?;
        if keks.is_empty() {
            file.problem(settings, NO_KEYS);
            return None;
        }
        let name = file.path.display().to_string();
        Some(Self { keks, name })
    }
}

fn keks_of_variables(
    sources: &Sources,
    environment: &Environment,
) -> Result<Vec<Kek>, Vec<String>> {
    let pairs = environment
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_ref().map(|text| text.as_str())));
    sources.variables.read(pairs)
}

fn read_file(path: &Path) -> Result<Vec<Kek>, Vec<String>> {
    secrets::of_file(path, regular_file::read(path, secrets::MAX_BYTES))
}

fn keks_of_file(file: &SecretsFile, settings: &mut Settings) -> Option<Vec<Kek>> {
    match read_file(&file.path) {
        Ok(keks) => Some(keks),
        Err(problems) => {
            for problem in problems {
                file.problem(settings, &problem);
            }
            None
        }
    }
}

/// All keys of `first`, and the keys of `second` with other ids.
fn merged(first: Vec<Kek>, second: Vec<Kek>, warnings: &mut Vec<String>) -> Vec<Kek> {
    let mut keks = first;
    for kek in second {
        match keks.iter().find(|other| other.id() == kek.id()) {
            None => keks.push(kek),
            Some(other) if other.check_value() == kek.check_value() => {}
            Some(other) => warnings.push(format!(
                "key {:?} has different bytes in the environment (key check value {}) and in the \
                 secrets file (key check value {}): {} takes precedence over {}, as in nico-api",
                kek.id().as_str(),
                other.check_value(),
                kek.check_value(),
                other.source(),
                kek.source()
            )),
        }
    }
    keks
}

/// Warns about differences from nico-api's keys, as far as this program can read
/// nico-api's sources.
fn compare(
    keks: &[Kek],
    ours: &Sources,
    theirs: &Sources,
    environment: &Environment,
    warnings: &mut Vec<String>,
) {
    let same_file = match (&ours.file, &theirs.file) {
        (Some(ours), Some(theirs)) => ours.is(theirs),
        (_, None) => true,
        (None, Some(_)) => false,
    };
    let mut nico_api = Vec::new();
    if theirs.from_environment {
        nico_api.extend(keks_of_variables(theirs, environment).unwrap_or_default());
    }
    if let Some(file) = &theirs.file
        && !same_file
    {
        let read = read_file(&file.path);
        if let Some(our_file) = &ours.file {
            let compared = match &read {
                Ok(_) => String::new(),
                Err(problems) => format!(
                    "; that file {}, so the keys were not compared",
                    problems.join(", ")
                ),
            };
            warnings.push(format!(
                "the secrets file is {} ({}), and nico-api is configured to read {} ({}){compared}",
                our_file.path.display(),
                our_file.named_by(),
                file.path.display(),
                file.named_by()
            ));
        }
        nico_api.extend(read.unwrap_or_default());
    }
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
