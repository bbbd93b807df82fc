//! The error with which the server did not start, or ended without a shutdown signal.

use std::{io, net::SocketAddr, path::PathBuf};

use thiserror::Error;

use crate::{server::admin_socket::AdminSocketError, store::SchemaError};

/// The error with which the server did not start, or ended without a shutdown signal.
#[derive(Debug, Error)]
pub enum AppError {
    /// The database lacks tables or columns.
    #[error("database_url: {0}")]
    Schema(SchemaError),
    /// The target key failed its self-test.
    #[error(
        "[machine_identity].current_encryption_key_id: key {0:?} failed its seal-and-open test"
    )]
    TargetKey(String),
    /// The keys in Vault cannot be read, or the target key is not among them.
    #[error("{0}")]
    Keys(String),
    /// The audit log cannot be opened.
    #[error("[rewrap].audit_log: can't be opened for appending ({0})")]
    Audit(io::Error),
    /// A listener cannot be bound.
    #[error("[rewrap].{setting}: can't listen on {address} ({source})")]
    Bind {
        /// The setting.
        setting: &'static str,
        /// The value of the setting.
        address: SocketAddr,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The admin socket cannot be created.
    #[error("[rewrap].admin_socket: can't listen on {}: {problem}", path.display())]
    AdminSocket {
        /// The value of the setting.
        path: PathBuf,
        /// What is wrong.
        problem: AdminSocketError,
    },
    /// A bug.
    #[error("{0}")]
    Bug(String),
}

impl AppError {
    /// Whether the cause is the configuration, so that a restart alone does not help.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        matches!(
            self,
            Self::Schema(_)
                | Self::TargetKey(_)
                | Self::Keys(_)
                | Self::Audit(_)
                | Self::AdminSocket { .. }
        )
    }
}
