//! The sources of keys: those of this program, and those of nico-api.
//!
//! nico-api looks in its environment first and then in one file. For each of the two, a
//! setting in `[rewrap]` takes precedence over nico-api's setting. As for every setting of
//! `[rewrap]`, an environment variable takes precedence over the file.
//!
//! A difference from nico-api's sources is a warning: if a key has other bytes here than
//! in nico-api, nico-api cannot open the re-wrapped secrets.

use std::path::{Path, PathBuf};

use super::{Environment, settings::Settings};
use crate::{keys::environment::Variables, regular_file};

pub(super) const FILE: &str = "rewrap.secrets_file";
pub(super) const FROM_ENVIRONMENT: &str = "rewrap.secrets_from_environment";
const PREFIX: &str = "rewrap.secrets_environment_prefix";

/// nico-api's setting in the site config.
const NICO_API_FILE: &str = "credentials.file.path";
/// nico-api's older settings, in the environment.
const LEGACY_FILE: &str = "CARBIDE_CREDENTIALS_FILE_PATH";
const LEGACY_FILE_ENABLED: &str = "CARBIDE_CREDENTIALS_FILE_ENABLED";
const LEGACY_DEFAULT_FILE: &str = "secrets.yaml";
const NICO_API_ENVIRONMENT: &str = "CARBIDE_CREDENTIALS_ENV_ENABLED";
const NICO_API_PREFIX: &str = "CARBIDE_CREDENTIALS_ENV_PREFIX";
const DEFAULT_PREFIX: &str = "CARBIDE_STATIC_CREDENTIAL_";

/// The sources of one program, in the order in which it reads them.
pub(super) struct Sources {
    /// Whether the program reads keys from the environment.
    pub(super) from_environment: bool,
    /// The names of the variables, even if `from_environment` is false.
    pub(super) variables: Variables,
    pub(super) file: Option<SecretsFile>,
}

/// A secrets file, and the setting that names it.
#[derive(Clone)]
pub(super) struct SecretsFile {
    pub(super) path: PathBuf,
    /// The setting; `None` for nico-api's environment variable.
    setting: Option<&'static str>,
}

impl SecretsFile {
    fn of(settings: &mut Settings, setting: &'static str) -> Option<Self> {
        let path = settings.non_empty_string(setting)?;
        Some(Self {
            path: PathBuf::from(path),
            setting: Some(setting),
        })
    }

    /// The setting or variable that names the file, for messages.
    pub(super) fn named_by(&self) -> &'static str {
        match self.setting {
            Some(FILE) => "[rewrap].secrets_file",
            Some(_) => "[credentials.file].path",
            None => LEGACY_FILE,
        }
    }

    /// Records a problem with the file.
    pub(super) fn problem(&self, settings: &mut Settings, what: &str) {
        let what = format!("{} {what}", self.path.display());
        match self.setting {
            Some(setting) => settings.problem(setting, what),
            None => settings.problems(vec![format!("environment variable {LEGACY_FILE}: {what}")]),
        }
    }

    /// Whether both are the same file, possibly under different paths.
    pub(super) fn is(&self, other: &Self) -> bool {
        let canonical = |path: &Path| {
            let file = path.to_owned();
            regular_file::bounded(path, regular_file::READ_TIMEOUT, move || {
                file.canonicalize()
            })
            .ok()
        };
        self.path == other.path
            || canonical(&self.path).is_some_and(|path| canonical(&other.path) == Some(path))
    }
}

/// Reads our sources and those of nico-api.
pub(super) fn read(
    settings: &mut Settings,
    environment: &Environment,
    warnings: &mut Vec<String>,
) -> (Sources, Sources) {
    let [legacy_enabled, their_environment] =
        [LEGACY_FILE_ENABLED, NICO_API_ENVIRONMENT].map(|name| flag(settings, environment, name));
    let from_environment = settings.bool_or(FROM_ENVIRONMENT, their_environment);
    let legacy_file = variable(settings, environment, LEGACY_FILE, legacy_enabled);
    let their_prefix = variable(settings, environment, NICO_API_PREFIX, from_environment);

    let legacy = legacy_enabled.then(|| SecretsFile {
        path: PathBuf::from(legacy_file.as_deref().unwrap_or(LEGACY_DEFAULT_FILE)),
        setting: None,
    });
    let theirs = Sources {
        from_environment: their_environment,
        variables: Variables::with_prefix(their_prefix.as_deref().unwrap_or(DEFAULT_PREFIX)),
        file: SecretsFile::of(settings, NICO_API_FILE).or(legacy),
    };
    let our_prefix = settings.non_empty_string(PREFIX);
    let ours = Sources {
        from_environment,
        variables: match &our_prefix {
            Some(prefix) => Variables::with_prefix(prefix),
            None => theirs.variables.clone(),
        },
        file: SecretsFile::of(settings, FILE).or_else(|| theirs.file.clone()),
    };

    if ours.from_environment != theirs.from_environment
        && environment.contains_key(NICO_API_ENVIRONMENT)
    {
        warnings.push(format!(
            "{}: [rewrap].secrets_from_environment is {}, and nico-api's {NICO_API_ENVIRONMENT} is \
             {}: this program uses the former",
            settings.source(FROM_ENVIRONMENT),
            ours.from_environment,
            theirs.from_environment
        ));
    }
    if their_prefix.is_some() && ours.variables != theirs.variables {
        warnings.push(format!(
            "{}: [rewrap].secrets_environment_prefix differs from nico-api's {NICO_API_PREFIX}: \
             this program uses the former",
            settings.source(PREFIX)
        ));
    }
    if let (Some(legacy), Some(file)) = (legacy_file, &ours.file)
        && file.path != Path::new(&legacy)
    {
        let why = if legacy_enabled {
            "is overridden by"
        } else {
            "is not read without CARBIDE_CREDENTIALS_FILE_ENABLED=true, neither here nor by \
             nico-api; the secrets file is the one of"
        };
        warnings.push(format!(
            "environment variable {LEGACY_FILE} {why} {}: {}",
            file.named_by(),
            file.path.display()
        ));
    }
    (ours, theirs)
}

/// What to do if no source is configured.
pub(super) fn missing_file(environment: &Environment) -> String {
    let hint = if environment.contains_key(LEGACY_FILE) {
        "; CARBIDE_CREDENTIALS_FILE_PATH is set, but not read without \
         CARBIDE_CREDENTIALS_FILE_ENABLED=true, neither here nor by nico-api"
    } else {
        ""
    };
    format!(
        "set it, or [credentials.file].path, to the secrets file that nico-api reads (JSON or YAML \
         with machine_identity.encryption_keys){hint}"
    )
}

/// The value of a variable of nico-api, if it is not blank. A value that is not UTF-8 is a
/// problem only if the variable is read.
pub(super) fn variable(
    settings: &mut Settings,
    environment: &Environment,
    name: &str,
    is_read: bool,
) -> Option<String> {
    match environment.get(name)? {
        Some(value) => Some(value.to_string()).filter(|value| !value.trim().is_empty()),
        None => {
            if is_read {
                settings.problems(vec![format!("environment variable {name}: is not UTF-8")]);
            }
            None
        }
    }
}

/// A boolean variable of nico-api; false if it is not set.
fn flag(settings: &mut Settings, environment: &Environment, name: &str) -> bool {
    let value = environment.get(name);
    match value.map(|value| value.as_ref().map(|text| text.trim())) {
        None | Some(Some("" | "false")) => false,
        Some(Some("true")) => true,
        Some(Some(_)) => {
            settings.problems(vec![format!(
                "environment variable {name}: must be true or false"
            )]);
            false
        }
        Some(None) => {
            settings.problems(vec![format!("environment variable {name}: is not UTF-8")]);
            false
        }
    }
}
