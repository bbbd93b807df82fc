//! Reads the site's keys: from environment variables, if that is enabled, then from the
//! secrets file. If both have a key id, the environment takes precedence, as in nico-api. Keys
//! in Vault are read later, because Vault may not answer yet.

use std::{collections::BTreeSet, path::Path};

use super::{
    Environment,
    key_sources::{self, FILE, FROM_ENVIRONMENT, SecretsFile, Sources},
    key_stores::{self, Stores},
    on_disk::SecretsOnDisk,
    settings::Settings,
    site_keys::{InVault, MissingTarget, SiteKeys, compare},
};
use crate::{
    domain::keyring::{Kek, KeyId},
    keys::{file as secrets, merge::merged},
    regular_file,
};

const TARGET: &str = "machine_identity.current_encryption_key_id";

const NO_KEYS: &str = "has no keys in machine_identity.encryption_keys";

/// Reads every key of the environment and of the file, and the id of the target key. Does not
/// use the network. Sets `secrets` to the content of the secrets file.
pub(super) fn read(
    settings: &mut Settings,
    environment: &Environment,
    warnings: &mut Vec<String>,
    secrets: &mut Option<SecretsOnDisk>,
) -> Option<SiteKeys> {
    let target = target(settings);
    let (ours, theirs) = key_sources::read(settings, environment, warnings);
    let stores = key_stores::read(settings, environment, warnings);
    let found = Found::read(&ours, &stores, settings, environment, warnings)?;
    *secrets = found.on_disk;
    let nico_api = nico_api_keks(&ours, &theirs, environment, warnings);
    compare(&found.keks.iter().collect::<Vec<_>>(), &nico_api, warnings);
    let advice = stores.advice();
    let target = target?;
    let vault = stores
        .vault
        .filter(|vault| vault.has_more_keys(found.keks.iter().any(|kek| *kek.id() == target)));
    let mut name = found.name;
    let keks = found.keks;
    let Some(vault) = vault else {
        let missing = MissingTarget { name, advice };
        return match missing.keyring(keks, target) {
            Ok(keyring) => Some(SiteKeys::Complete(keyring)),
            Err(problem) => {
                settings.missing(TARGET, problem);
                None
            }
        };
    };
    if !name.is_empty() {
        name += " and of ";
    }
    name += &vault.to_string();
    let source = settings.source(TARGET);
    Some(SiteKeys::InVault(Box::new(InVault {
        vault,
        target,
        keks,
        nico_api,
        setting: format!("{source}: [machine_identity].current_encryption_key_id"),
        missing: MissingTarget { name, advice },
    })))
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
    let stores = key_stores::backends(settings, environment);
    for store in &stores {
        warnings.push(format!(
            "the new id was not compared with the ids in nico-api's store {store:?}: make sure that \
             it does not exist there"
        ));
    }
    if stores.is_empty() && !ours.from_environment && ours.file.is_none() {
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

/// The keys of the environment and of the file, and no id twice. At least one, unless keys may
/// be in Vault.
struct Found {
    keks: Vec<Kek>,
    /// Their sources, for messages.
    name: String,
    on_disk: Option<SecretsOnDisk>,
}

impl Found {
    fn read(
        sources: &Sources,
        stores: &Stores,
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
            return Self::file(sources, stores, settings, environment);
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
            if first.is_empty() && stores.vault.is_none() {
                settings.missing(
                    FROM_ENVIRONMENT,
                    format!(
                        "there is no key in the environment, and [rewrap].secrets_file is not set: \
                         set {every_key} to the base64 text of each key{}",
                        stores.advice()
                    ),
                );
                return None;
            }
            let name = format!("the environment variables {every_key}");
            return Some(Self {
                keks: first,
                name,
                on_disk: None,
            });
        };
        let second = second?;
        let on_disk = Some(SecretsOnDisk::new(file.path.clone(), &second));
        let keks = merged(first, second, warnings);
        if keks.is_empty() && stores.vault.is_none() {
            file.problem(
                settings,
                &format!(
                    "{NO_KEYS}, and no variable {every_key} is set{}",
                    stores.advice()
                ),
            );
            return None;
        }
        Some(Self {
            keks,
            name: format!("{} and the environment", file.path.display()),
            on_disk,
        })
    }

    fn file(
        sources: &Sources,
        stores: &Stores,
        settings: &mut Settings,
        environment: &Environment,
    ) -> Option<Self> {
        let Some(file) = &sources.file else {
            if stores.vault.is_some() {
                return Some(Self {
                    keks: Vec::new(),
                    name: String::new(),
                    on_disk: None,
                });
            }
            let advice = key_sources::missing_file(environment) + &stores.advice();
            settings.required_string(FILE, &advice);
            return None;
        };
        let keks = keks_of_file(file, settings)?;
        if keks.is_empty() && stores.vault.is_none() {
            file.problem(settings, &format!("{NO_KEYS}{}", stores.advice()));
            return None;
        }
        Some(Self {
            name: file.path.display().to_string(),
            on_disk: Some(SecretsOnDisk::new(file.path.clone(), &keks)),
            keks,
        })
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

/// The keys of nico-api's environment and file, as far as this program can read them. Warns if
/// the file is another one.
fn nico_api_keks(
    ours: &Sources,
    theirs: &Sources,
    environment: &Environment,
    warnings: &mut Vec<String>,
) -> Vec<Kek> {
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
    nico_api
}
