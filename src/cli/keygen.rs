//! `keys generate`: creates a KEK.

use std::{
    collections::BTreeSet,
    io::{self, IsTerminal, Write, stdout},
    path::{Path, PathBuf},
    process::ExitCode,
    time::SystemTime,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::Args;
use serde_json::Value;
use zeroize::Zeroizing;

use super::{EX_CONFIG, fail, secrets_file::SecretsFile};
use crate::{
    config::{self, Environment},
    domain::keyring::{KEY_BYTES, Kek, KeyId},
    keys::{add_key, file},
};

/// Exit code for a wrong `--id` (EX_USAGE of sysexits.h).
const EX_USAGE: u8 = 64;
/// Exit code if the system fails (EX_OSERR of sysexits.h).
const EX_OSERR: u8 = 71;
/// Exit code if the key was refused and nothing was changed.
const REFUSED: u8 = 4;

/// Options of `keys generate`.
#[derive(Debug, Args)]
pub(super) struct Keygen {
    /// The id of the key. The default is derived from today's date.
    #[arg(long)]
    id: Option<String>,
    /// A site config file (TOML). The command refuses an id that the secrets of this site
    /// already have.
    ///
    /// The command finds the secrets as `serve` does: in the secrets file and, if enabled, in
    /// the environment. If the option is repeated, later files override earlier ones, key by
    /// key.
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// Add the key to this secrets file (JSON or YAML) instead of printing it.
    ///
    /// The command keeps every other byte of the file, its owner and its mode. It replaces the
    /// file atomically: a reader sees either the old or the new content. If the file does not
    /// exist, the command creates it with mode 0600.
    #[arg(long, value_name = "FILE")]
    into: Option<PathBuf>,
}

/// An error message and its exit code.
type Failure = (String, u8);

impl Keygen {
    pub(super) fn run(self, environment: &Environment) -> ExitCode {
        match self.generate(environment) {
            Ok(()) => ExitCode::SUCCESS,
            Err((message, code)) => fail(&message, code),
        }
    }

    fn generate(self, environment: &Environment) -> Result<(), Failure> {
        let id = self.id.as_deref().map(KeyId::new).transpose();
        let id = id.map_err(|error| (format!("--id: {error}"), EX_USAGE))?;
        let file = self.into.as_deref().map(IntoFile::open).transpose()?;
        let taken = self.taken_ids(file.as_ref(), environment)?;
        let key = Key::fresh()?;
        let is_taken = |id: &str| taken.iter().flatten().any(|other| other == id);
        let id = match id {
            Some(id) if is_taken(id.as_str()) => {
                let message = format!(
                    "--id: there is a key {:?} already; nothing was changed. Choose another id",
                    id.as_str()
                );
                return Err((message, REFUSED));
            }
            Some(id) => id,
            None => suggested_id(&key, taken.as_ref())?,
        };
        let is_unchecked = self.id.is_none() && taken.is_none();
        let kek = key.kek(id);
        match file {
            Some(file) => file.add(&kek, &key.text),
            None => {
                let printed = print(&kek, &key.text, is_unchecked);
                printed.map_err(|error| (format!("the key was not printed ({error})"), REFUSED))
            }
        }
    }

    /// The ids that the new key must not have. `None` if there is neither a site config nor a
    /// secrets file.
    fn taken_ids(
        &self,
        file: Option<&IntoFile<'_>>,
        environment: &Environment,
    ) -> Result<Option<BTreeSet<String>>, Failure> {
        if self.config.is_empty() && file.is_none() {
            return Ok(None);
        }
        let mut ids = BTreeSet::new();
        if !self.config.is_empty() {
            // The site config may name the file that this command is about to create.
            let absent = file.filter(|file| !file.content.exists());
            let known = config::load_key_ids(&self.config, environment, absent.map(|f| f.path));
            let (known, warnings) = known.map_err(|error| (error.to_string(), EX_CONFIG))?;
            warn(&warnings);
            ids = known;
        }
        if let Some(file) = file {
            ids.extend(file.ids()?);
        }
        Ok(Some(ids))
    }
}

/// The file of `--into`.
struct IntoFile<'a> {
    path: &'a Path,
    content: SecretsFile,
}

impl<'a> IntoFile<'a> {
    fn open(path: &'a Path) -> Result<Self, Failure> {
        let content = SecretsFile::open(path).map_err(|what| refused(path, &what))?;
        Ok(Self { path, content })
    }

    fn ids(&self) -> Result<Vec<String>, Failure> {
        let text = self.content.text();
        if text.trim().is_empty() {
            return Ok(Vec::new());
        }
        let keks =
            file::parse(text).map_err(|problems| refused(self.path, &problems.join("; ")))?;
        Ok(keks.iter().map(|kek| kek.id().to_string()).collect())
    }

    fn add(&self, kek: &Kek, key: &str) -> Result<(), Failure> {
        let format = self.content.format();
        let text = add_key::add_key(self.content.text(), format, kek, key);
        let text = text.map_err(|error| refused(self.path, &error.to_string()))?;
        let replaced = self.content.replace(&text);
        replaced.map_err(|what| refused(self.path, &what))?;
        report_added(kek, self.path);
        Ok(())
    }
}

fn refused(path: &Path, what: &str) -> Failure {
    (format!("--into: {} {what}", path.display()), REFUSED)
}

/// The bytes of a new key, and their base64 text.
struct Key {
    bytes: Zeroizing<[u8; KEY_BYTES]>,
    text: Zeroizing<String>,
}

impl Key {
    fn fresh() -> Result<Self, Failure> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        if getrandom::fill(bytes.as_mut_slice()).is_err() {
            return Err((
                "the operating system gave no randomness".to_owned(),
                EX_OSERR,
            ));
        }
        let text = Zeroizing::new(STANDARD.encode(*bytes));
        Ok(Self { bytes, text })
    }

    fn kek(&self, id: KeyId) -> Kek {
        Kek::new(id, &self.bytes)
    }
}

/// The default id: `kv` and the date. Such ids sort by age and contain only characters that
/// every source of keys allows (environment variables, Vault paths).
///
/// If this id is taken, a number is added. If the taken ids are unknown, the beginning of the
/// key check value is added, so that two keys of the same day have different ids.
fn suggested_id(key: &Key, taken: Option<&BTreeSet<String>>) -> Result<KeyId, Failure> {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let date = now.split('T').next().unwrap_or_default();
    let base = format!("kv{}", date.replace('-', ""));
    let valid = |id: String| KeyId::new(id).map_err(|error| (error.to_string(), EX_OSERR));
    let Some(taken) = taken else {
        let check_value = key.kek(valid(base.clone())?).check_value().to_string();
        return valid(format!("{base}-{}", &check_value[..4]));
    };
    // Ids from environment variables are in lower case.
    let is_free = |id: &String| !taken.iter().any(|other| other.eq_ignore_ascii_case(id));
    let numbered = (2_u64..).map(|number| format!("{base}-{number}"));
    let mut ids = std::iter::once(base.clone()).chain(numbered);
    valid(ids.find(is_free).unwrap_or(base))
}

#[expect(clippy::print_stderr, reason = "this is what the command is for")]
fn warn(warnings: &[String]) {
    for warning in warnings {
        eprintln!("Warning: {warning}");
    }
}

#[expect(clippy::print_stderr, reason = "this is what the command is for")]
fn print(kek: &Kek, text: &str, is_unchecked: bool) -> io::Result<()> {
    let id = Value::from(kek.id().as_str());
    // One line for a file. Without it, nobody has the key.
    writeln!(stdout(), "{id}: \"{text}\"").and_then(|()| stdout().flush())?;
    eprintln!(
        "Add this line to machine_identity.encryption_keys in the secrets file, beside the keys \
         that are there,\nand keep it as secret as they are. Its key check value is {}.",
        kek.check_value()
    );
    if is_unchecked {
        eprintln!(
            "The id was not compared with the ids in the secrets: give the site config with \
             --config for that."
        );
    }
    if stdout().is_terminal() {
        eprintln!(
            "Warning: the key is now in the scrollback of this terminal. Clear it, or use --into \
             FILE, which prints no key."
        );
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "this is what the command is for")]
fn report_added(kek: &Kek, path: &Path) {
    let id = Value::from(kek.id().as_str());
    // An error is ignored: the key is in the file, and nobody reads.
    let _ = writeln!(stdout(), "{id}: key check value {}", kek.check_value());
    eprintln!(
        "Added to {}. Copy this key to every other secrets file that nico-api and nico-rewrap \
         read: a second\ncall of this command makes another key. Make it the target after every \
         nico-api has read its file again\n(60 seconds, and the time to update a mounted Secret).",
        path.display()
    );
}
