//! One row as it was read.

use tokio_postgres::Row as PgRow;

use super::StoreError;
use crate::domain::{
    rewrap::{COLUMNS, Envelopes, OVERSIZED},
    tenant_version::{TenantVersion, VersionError},
};

/// The secrets and the version of one organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The primary key of both tables.
    pub organization_id: String,
    /// The three secrets.
    pub texts: Envelopes,
    /// `tenants.version`, or why it cannot be bumped.
    pub version: Result<TenantVersion, VersionError>,
}

impl Row {
    pub(super) fn from_pg(row: &PgRow) -> Result<Self, StoreError> {
        let not_a_text = |column: &str| StoreError::not_a_text(column);
        let text = |index: usize, column: &str| {
            let text: Result<Option<String>, _> = row.try_get(index);
            text.map_err(|_| not_a_text(column))
        };
        let [first, second, third] = COLUMNS;
        Ok(Self {
            organization_id: text(0, "organization_id")?.unwrap_or_default(),
            texts: [text(1, first)?, text(2, second)?, text(3, third)?],
            version: TenantVersion::parse(text(4, "tenants.version")?),
        })
    }

    /// How much memory the texts use, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.texts.iter().flatten().map(String::len).sum()
    }

    /// Whether SQL replaced a text because it is too long.
    pub(super) fn is_cut(&self) -> bool {
        let mut texts = self.texts.iter().flatten();
        texts.any(|text| text == OVERSIZED)
    }
}
