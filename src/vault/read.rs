//! Lists and reads the keys.

use std::collections::BTreeSet;

use hyper::StatusCode;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::{
    VaultError, VaultOptions,
    client::{Answer, Client},
    login::{self, unavailable},
};
use crate::{
    domain::keyring::{Kek, KeySource},
    keys::vault::{self, Content, FOLDER},
};

/// Every other character of a path is percent-encoded.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'/');

/// The setting that replaces the list.
const KEY_IDS: &str = "[rewrap].vault_key_ids";

/// The keys that are in Vault.
#[derive(Debug, Default)]
pub struct Found {
    /// The keys.
    pub keks: Vec<Kek>,
    /// The ids whose current version was deleted. nico-api does not have them either.
    pub deleted: BTreeSet<String>,
    /// What does not prevent the start.
    pub warnings: Vec<String>,
}

impl VaultOptions {
    /// Reads all keys, and the key `target` too if it is not listed. A problem with a key whose
    /// id is in `known` is a warning: an earlier source has this key.
    ///
    /// # Errors
    ///
    /// [`VaultError`].
    pub async fn read(&self, known: &BTreeSet<String>, target: &str) -> Result<Found, VaultError> {
        let mut client = Client::connect(self).await?;
        login::log_in(self, &mut client).await?;
        let mut found = Found::default();
        let mut ids = match &self.key_ids {
            Some(ids) => ids.iter().cloned().collect(),
            None => self.list(&mut client, &mut found.warnings).await?,
        };
        if self.key_ids.is_some() && !known.contains(target) {
            ids.insert(target.to_owned());
        }
        let mut problems = Vec::new();
        for id in ids {
            let problem = match self.key(&mut client, &id).await? {
                Ok(Content::Key(kek)) => {
                    let path = format!("{}/{id}", self.folder());
                    found.keks.push(kek.found_in(KeySource::Vault(path)));
                    continue;
                }
                Ok(Content::Deleted) => {
                    found.deleted.insert(id);
                    continue;
                }
                // The message about the missing target names all sources.
                Ok(Content::Absent) if id == target => continue,
                Ok(Content::Absent) => {
                    format!("does not exist: remove the id from {KEY_IDS}, or write the key")
                }
                Err(problem) => problem,
            };
            let text = format!("{}: {}/{id} {problem}", self.place(), self.folder());
            if known.contains(&id) {
                found
                    .warnings
                    .push(format!("{text}. The key of an earlier source is used"));
            } else {
                problems.push(text);
            }
        }
        if problems.is_empty() {
            Ok(found)
        } else {
            Err(VaultError::Configuration(problems.join("\n")))
        }
    }

    async fn list(
        &self,
        client: &mut Client<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<BTreeSet<String>, VaultError> {
        let folder = format!("{}/metadata/{FOLDER}", self.mount);
        let answer = client
            .get(&format!("{}?list=true", encoded(&folder)))
            .await?;
        match answer.status {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND if has_no_errors(&answer) => return Ok(BTreeSet::new()),
            StatusCode::FORBIDDEN => {
                let advice = format!(
                    "add {} to the policy of {}, or name the ids in {KEY_IDS}",
                    policy(&folder, "list"),
                    self.login
                );
                return Err(self.forbidden(client, &folder, &advice).await);
            }
            _ => return Err(self.unexpected(&answer, &folder)),
        }
        let Some(names) = vault::names(&answer.body) else {
            return Err(self.unexpected(&answer, &folder));
        };
        let (folders, ids): (Vec<_>, Vec<_>) =
            names.into_iter().partition(|name| name.ends_with('/'));
        for name in folders {
            warnings.push(format!(
                "{}: the folder {}/{name} was not read: if it has keys, name the ids in {KEY_IDS}",
                self.place(),
                self.folder()
            ));
        }
        Ok(ids.into_iter().collect())
    }

    async fn key(
        &self,
        client: &mut Client<'_>,
        id: &str,
    ) -> Result<Result<Content, String>, VaultError> {
        // The server would resolve such a segment.
        if id.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Ok(Err("cannot be a path in Vault: use another id".to_owned()));
        }
        let path = format!("{}/data/{FOLDER}/{id}", self.mount);
        let answer = client.get(&encoded(&path)).await?;
        match answer.status {
            StatusCode::OK | StatusCode::NOT_FOUND => Ok(vault::content(id, &answer.body)),
            StatusCode::FORBIDDEN => {
                let all = format!("{}/data/{FOLDER}/*", self.mount);
                let advice = format!(
                    "add {} to the policy of {}",
                    policy(&all, "read"),
                    self.login
                );
                Err(self.forbidden(client, &path, &advice).await)
            }
            _ => Err(self.unexpected(&answer, &path)),
        }
    }

    /// The error of status 403: the policy forbids the path, or the token is not valid.
    async fn forbidden(&self, client: &mut Client<'_>, path: &str, advice: &str) -> VaultError {
        let place = self.place();
        match client.get("auth/token/lookup-self").await {
            Ok(Answer {
                status: StatusCode::FORBIDDEN,
                ..
            }) => VaultError::Configuration(format!(
                "{place} refuses {} (HTTP 403): the token is unknown or has expired, or it belongs \
                 to another namespace; renew it",
                self.login
            )),
            Err(error @ VaultError::Unavailable(_)) => error,
            _ => VaultError::Configuration(format!(
                "{place} forbids access to {path} (HTTP 403): {advice}"
            )),
        }
    }

    /// The error of a status other than 200 and 403.
    fn unexpected(&self, answer: &Answer, path: &str) -> VaultError {
        match answer.status.as_u16() {
            status @ (400 | 401 | 404 | 405) => VaultError::Configuration(format!(
                "{}: {path} does not exist (HTTP {status}): set VAULT_KV_MOUNT_LOCATION to the mount \
                 of the KV engine, version 2, and VAULT_NAMESPACE to its namespace",
                self.place()
            )),
            status => unavailable(self, status),
        }
    }
}

/// Whether the answer of status 404 says that a folder is empty. The answer about a mount that
/// does not exist has errors.
fn has_no_errors(answer: &Answer) -> bool {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<serde::de::IgnoredAny>,
    }
    serde_json::from_slice::<Errors>(&answer.body).is_ok_and(|answer| answer.errors.is_empty())
}

/// The line of a policy that is missing.
fn policy(path: &str, capability: &str) -> String {
    format!("path \"{path}\" {{ capabilities = [\"{capability}\"] }}")
}

fn encoded(path: &str) -> String {
    utf8_percent_encode(path, ENCODED).to_string()
}
