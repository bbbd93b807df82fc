//! The answer of a server without `nico.rewrap.v1`.

use serde::Serialize;

/// The report of `forge.Forge`, for servers without `nico.rewrap.v1`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ForgeReport {
    pub(crate) run_id: String,
    pub(crate) dry_run: bool,
    pub(crate) target_key_id: String,
    pub(crate) rows_examined: u32,
    pub(crate) rows_updated: u32,
    pub(crate) rows_on_target: u32,
    pub(crate) rows_failed: u32,
    pub(crate) secrets_rewrapped: u32,
    pub(crate) secrets_on_target: u32,
    pub(crate) failures: Vec<ForgeFailure>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ForgeFailure {
    pub(crate) organization_id: String,
    pub(crate) field: String,
    pub(crate) message: String,
}
