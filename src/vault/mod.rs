//! Reads keys from Vault or OpenBao, where nico-api keeps them: KV version 2, below the folder
//! `machine_identity/encryption_keys` of a mount.
//!
//! Nothing is written to Vault. One read is: log in, list the key ids, read every key. The
//! module [`crate::keys::vault`] parses the answers.
//!
//! Tokens and answers are in buffers that are wiped. The buffers of the HTTP and TLS libraries,
//! through which they pass, are not.

mod address;
mod client;
mod login;
mod read;

use std::{fmt, sync::Arc};

use rustls::ClientConfig;
use thiserror::Error;

pub use self::{
    address::{Address, InvalidAddress},
    login::{Login, Text},
    read::Found,
};
use crate::keys::vault::FOLDER;

/// How to read keys from Vault.
#[derive(Clone)]
pub struct VaultOptions {
    /// The server.
    pub address: Address,
    /// The namespace, if not the root namespace.
    pub namespace: Option<String>,
    /// The mount of the KV engine.
    pub mount: String,
    /// How to log in.
    pub login: Login,
    /// Verifies the server's certificate. `None` only for an `http` address.
    pub tls: Option<Arc<ClientConfig>>,
    /// The ids of the keys. `None`: list the folder.
    pub key_ids: Option<Vec<String>>,
}

impl VaultOptions {
    /// The path of the folder of the keys, as `vault kv` shows it.
    #[must_use]
    pub fn folder(&self) -> String {
        format!("{}/{FOLDER}", self.mount)
    }

    /// Whether Vault may have keys that are needed. `has_target`: another source has the target
    /// key. An empty list of ids says that Vault has no keys.
    #[must_use]
    pub fn has_more_keys(&self, has_target: bool) -> bool {
        !has_target || self.key_ids.as_ref().is_none_or(|ids| !ids.is_empty())
    }

    /// The server and the namespace, for messages.
    fn place(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("Vault at {}, namespace {namespace}", self.address),
            None => format!("Vault at {}", self.address),
        }
    }
}

/// The server and the folder of the keys.
impl fmt::Display for VaultOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.place(), self.folder())
    }
}

/// Shows no token and no secret id.
impl fmt::Debug for VaultOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VaultOptions")
            .field("address", &self.address.to_string())
            .field("namespace", &self.namespace)
            .field("mount", &self.mount)
            .field("login", &self.login)
            .field("key_ids", &self.key_ids)
            .finish()
    }
}

/// Why keys could not be read from Vault. The texts contain nothing that Vault answered.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum VaultError {
    /// The setup of this program or of Vault is wrong. Waiting does not help.
    #[error("{0}")]
    Configuration(String),
    /// Vault cannot answer now.
    #[error("{0}")]
    Unavailable(String),
}
