//! The settings of a connection, from one place.

use std::path::PathBuf;

/// One source of settings: the options, the environment or a context.
#[derive(Debug, Clone, Default)]
pub(super) struct Source {
    pub(super) endpoint: Option<String>,
    pub(super) cacert: Option<PathBuf>,
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) server_name: Option<String>,
    pub(super) socket: Option<PathBuf>,
    pub(super) credential_command: Vec<String>,
}
