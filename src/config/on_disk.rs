//! The content of the files at the start, to detect later changes. The program does not reload
//! the files: the operator restarts it.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use config::{Map, Value, ValueKind};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::settings::{Settings, read_files, value_at};
use crate::{
    domain::keyring::Kek,
    keys::file::{MAX_BYTES, of_file},
    regular_file,
};

/// A hash of texts.
type Fingerprint = [u8; 32];

/// The files that are compared with the start.
pub struct OnDisk {
    pub(super) site: SiteFiles,
    pub(super) secrets: Option<SecretsOnDisk>,
}

/// A source that has changed since the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The label of the metric, one of [`OnDisk::SOURCES`].
    pub source: &'static str,
    /// What is different.
    pub text: String,
}

impl OnDisk {
    /// The labels of all sources.
    pub const SOURCES: [&'static str; 2] = [SITE_CONFIG, SECRETS_FILE];

    /// Reads the files again. Returns the sources that have changed since the start.
    pub fn changes(&mut self) -> Vec<Change> {
        let secrets = self.secrets.as_mut().and_then(SecretsOnDisk::change);
        self.site.change().into_iter().chain(secrets).collect()
    }
}

/// Shows the files only.
impl fmt::Debug for OnDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnDisk")
            .field("site", &self.site.files)
            .field("secrets", &self.secrets.as_ref().map(|file| &file.path))
            .finish()
    }
}

const SITE_CONFIG: &str = "site_config";
const SECRETS_FILE: &str = "secrets_file";

/// The settings of the site config files that this program has read.
pub(super) struct SiteFiles {
    files: Vec<PathBuf>,
    keys: Vec<String>,
    fingerprint: Fingerprint,
}

impl SiteFiles {
    /// The settings that were asked for so far. Others in the files may change.
    pub(super) fn new(files: &[PathBuf], settings: &Settings) -> Self {
        let keys = settings.asked();
        Self {
            files: files.to_vec(),
            fingerprint: fingerprint(&keys, settings.file_values()),
            keys,
        }
    }

    fn change(&self) -> Option<Change> {
        let text = match read_files(&self.files) {
            Ok(values) if fingerprint(&self.keys, &values) == self.fingerprint => return None,
            Ok(_) => {
                let files: Vec<_> = self
                    .files
                    .iter()
                    .map(|file| file.display().to_string())
                    .collect();
                format!("settings in {} have changed", files.join(", "))
            }
            Err(problem) => problem,
        };
        let source = SITE_CONFIG;
        Some(Change { source, text })
    }
}

fn fingerprint(keys: &[String], values: &Map<String, Value>) -> Fingerprint {
    let mut hash = Sha256::new();
    for key in keys {
        add(&mut hash, value_at(values, key).map(|value| &value.kind));
    }
    hash.finalize().into()
}

/// Adds a value in a form that no other value has.
fn add(hash: &mut Sha256, value: Option<&ValueKind>) {
    let mut text = |kind: u8, text: &[u8]| {
        hash.update([kind]);
        hash.update(text.len().to_be_bytes());
        hash.update(text);
    };
    match value {
        None | Some(ValueKind::Nil) => text(0, b""),
        Some(ValueKind::String(value)) => text(1, value.as_bytes()),
        Some(ValueKind::Array(values)) => {
            text(2, &values.len().to_be_bytes());
            for value in values {
                add(hash, Some(&value.kind));
            }
        }
        // The values in a section have keys of their own.
        Some(ValueKind::Table(section)) => {
            let mut names: Vec<_> = section.keys().map(String::as_str).collect();
            names.sort_unstable();
            text(3, names.join("\n").as_bytes());
        }
        // A number or a boolean.
        Some(value) => text(4, value.to_string().as_bytes()),
    }
}

/// The keys of the secrets file.
pub(super) struct SecretsOnDisk {
    path: PathBuf,
    keys: Keys,
    /// The bytes of the last comparison, and its result: the file is parsed only if it changed,
    /// because it may hold the credentials of many machines.
    last: Option<(Fingerprint, Option<String>)>,
}

/// The check value of each key.
type Keys = BTreeMap<String, String>;

impl SecretsOnDisk {
    /// The file has these keys at the start.
    pub(super) fn new(path: PathBuf, keks: &[Kek]) -> Self {
        Self {
            path,
            keys: keys(keks),
            last: None,
        }
    }

    fn change(&mut self) -> Option<Change> {
        let text = match regular_file::read(&self.path, MAX_BYTES) {
            Err(error) => Some(format!("{} can't be read ({error})", self.path.display())),
            Ok(bytes) => {
                let fingerprint = Sha256::digest(&bytes).into();
                match &self.last {
                    Some((last, text)) if *last == fingerprint => text.clone(),
                    _ => {
                        let text = self.difference(bytes);
                        self.last = Some((fingerprint, text.clone()));
                        text
                    }
                }
            }
        };
        let source = SECRETS_FILE;
        text.map(|text| Change { source, text })
    }

    fn difference(&self, bytes: Zeroizing<Vec<u8>>) -> Option<String> {
        let path = self.path.display();
        match of_file(&self.path, Ok(bytes)) {
            Err(problems) => Some(format!("{path} {}", problems.join(", "))),
            Ok(keks) => {
                let now = keys(&keks);
                let ids: Vec<_> = self
                    .keys
                    .keys()
                    .chain(now.keys().filter(|id| !self.keys.contains_key(*id)))
                    .filter(|id| self.keys.get(*id) != now.get(*id))
                    .map(|id| format!("{id:?}"))
                    .collect();
                (!ids.is_empty()).then(|| {
                    format!(
                        "keys in {path} were added, removed or changed: {}",
                        ids.join(", ")
                    )
                })
            }
        }
    }
}

fn keys(keks: &[Kek]) -> Keys {
    keks.iter()
        .map(|kek| (kek.id().to_string(), kek.check_value().to_string()))
        .collect()
}
