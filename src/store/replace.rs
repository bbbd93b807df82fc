//! The statement that writes a row. It is one transaction: a compare-and-set of the three
//! texts and the bump of the version.
//!
//! The update of `tenants` reads from the result of the update of `tenant_identity_config`.
//! So it runs second, and only if the row was written. If the version is unchanged, the
//! statement sets the next version that this program computed. Otherwise Postgres computes
//! the next version from the locked row. If there is no next version, the result is NULL,
//! which the column refuses, and nothing is written.

use std::{sync::atomic::Ordering, time::SystemTime};

use deadpool_postgres::Object;
use tokio_postgres::types::{ToSql, Type};

use super::{Durability, PoolMode, Row, RowError, Store, StoreError, statement::Statement};
use crate::domain::{keyring::KeyId, rewrap::Envelopes};

/// The result of a compare-and-set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CasOutcome {
    /// Committed: the row has the new texts, and its version is bumped.
    Applied,
    /// The texts of the row have changed, or the row is gone. Nothing was written.
    Conflict,
}

// If a trigger, rule or policy changes or skips either row, the statement reads a setting
// that does not exist. It then fails, and nothing is written.
macro_rules! replace_row {
    ($limits:expr, $set_key_id:literal, $condition:expr, $remember:literal) => {
        concat!(
            "-- replace_row\nWITH ",
            $limits,
            "written AS (\
               UPDATE tenant_identity_config \
               SET encrypted_signing_key_1 = $2, encrypted_signing_key_2 = $3, \
                   encrypted_auth_method_config = $4, updated_at = now()",
            $set_key_id,
            $condition,
            " organization_id = $1 \
                 AND encrypted_signing_key_1 IS NOT DISTINCT FROM $5 \
                 AND encrypted_signing_key_2 IS NOT DISTINCT FROM $6 \
                 AND encrypted_auth_method_config IS NOT DISTINCT FROM $7 \
               RETURNING organization_id, \
                 encrypted_signing_key_1 IS NOT DISTINCT FROM $2 \
                 AND encrypted_signing_key_2 IS NOT DISTINCT FROM $3 \
                 AND encrypted_auth_method_config IS NOT DISTINCT FROM $4 AS kept\
             ), bumped AS (\
             UPDATE tenants SET version = CASE \
               WHEN version = $8 THEN $9 \
               WHEN version ~ '^V[0-9]{1,20}-T[0-9]{1,19}$' \
                 AND substring(version from '^V([0-9]+)')::numeric < 18446744073709551615 \
               THEN 'V' || substring(version from '^V([0-9]+)')::numeric + 1 || '-T' \
                 || (extract(epoch FROM clock_timestamp()) * 1000000)::bigint \
               END \
             FROM written WHERE tenants.organization_id = written.organization_id \
             RETURNING version, version IS DISTINCT FROM $8 AS counted\
             ) \
             SELECT CASE \
               WHEN NOT written.kept THEN current_setting('nico_rewrap.text_not_kept') \
               WHEN bumped.counted IS NOT TRUE \
               THEN current_setting('nico_rewrap.version_not_bumped') END",
            $remember,
            " FROM written LEFT JOIN bumped ON true"
        )
    };
}

// Behind a pooler, the statement makes these settings for its own transaction. The update
// reads from this CTE, so it runs after it.
macro_rules! limits {
    () => {
        "limits AS MATERIALIZED (\
           SELECT set_config('lock_timeout', $10, true) AS lock_timeout, \
             set_config('synchronous_commit', \
               coalesce($11, current_setting('synchronous_commit')), true)\
         ), "
    };
}
macro_rules! after_limits {
    () => {
        " FROM limits WHERE limits.lock_timeout IS NOT NULL AND"
    };
}

// The forms of the statement, in the order of `StatementVariant::index`.
macro_rules! forms {
    ($remember:literal) => {
        [
            // For a session whose settings already say how long to wait and how to commit.
            Statement {
                text: replace_row!("", "", " WHERE", $remember),
                types: &[Type::TEXT; 9],
            },
            Statement {
                text: replace_row!("", ", encryption_key_id = $10", " WHERE", $remember),
                types: &[Type::TEXT; 10],
            },
            Statement {
                text: replace_row!(limits!(), "", after_limits!(), $remember),
                types: &[Type::TEXT; 11],
            },
            Statement {
                text: replace_row!(
                    limits!(),
                    ", encryption_key_id = $12",
                    after_limits!(),
                    $remember
                ),
                types: &[Type::TEXT; 12],
            },
        ]
    };
}

static REPLACE_ROW: [Statement; 4] = forms!("");

/// These keep the written version for [`super::verified`].
static REPLACE_AND_KEEP_VERSION: [Statement; 4] =
    forms!(", set_config('nico_rewrap.written_version', bumped.version, true)");

/// Which form of the statement fits the pooler, the schema and the triggers.
#[derive(Clone, Copy)]
pub(super) struct StatementVariant {
    pool_mode: PoolMode,
    with_key_id: bool,
    verify: bool,
}

impl StatementVariant {
    pub(super) fn sql(self) -> &'static Statement {
        let forms = if self.verify {
            &REPLACE_AND_KEEP_VERSION
        } else {
            &REPLACE_ROW
        };
        &forms[self.index()]
    }

    fn index(self) -> usize {
        2 * usize::from(self.pool_mode == PoolMode::Transaction) + usize::from(self.with_key_id)
    }
}

/// The parameters of the statement.
pub(super) struct Replacement<'a> {
    variant: StatementVariant,
    row: &'a Row,
    texts: &'a Envelopes,
    version: &'a str,
    next_version: String,
    lock_timeout: Option<String>,
    synchronous_commit: Option<&'static str>,
    target: &'a str,
}

impl Replacement<'_> {
    pub(super) fn params(&self) -> Vec<&(dyn ToSql + Sync)> {
        let [new_1, new_2, new_3] = self.texts;
        let [old_1, old_2, old_3] = &self.row.texts;
        let row_params: [&(dyn ToSql + Sync); 9] = [
            &self.row.organization_id,
            new_1,
            new_2,
            new_3,
            old_1,
            old_2,
            old_3,
            &self.version,
            &self.next_version,
        ];
        let mut params = Vec::with_capacity(12);
        params.extend(row_params);
        if self.variant.pool_mode == PoolMode::Transaction {
            params.push(&self.lock_timeout);
            params.push(&self.synchronous_commit);
        }
        if self.variant.with_key_id {
            params.push(&self.target);
        }
        params
    }
}

impl CasOutcome {
    /// Converts the number of rows that the statement returned: one if it wrote the row.
    pub(super) fn from_count(written: u64) -> Self {
        match written {
            0 => Self::Conflict,
            _ => Self::Applied,
        }
    }
}

impl Store {
    /// Writes the row if its texts are unchanged, and bumps the version.
    pub(super) async fn replace(
        &self,
        client: &Object,
        row: &Row,
        texts: &Envelopes,
        target: &KeyId,
    ) -> Result<CasOutcome, StoreError> {
        let variant = self.variant(false);
        let replacement = self.replacement(variant, row, texts, target)?;
        let params = replacement.params();
        let written = self.execute(client, variant.sql(), &params).await?;
        Ok(CasOutcome::from_count(written))
    }

    pub(super) fn variant(&self, verify: bool) -> StatementVariant {
        StatementVariant {
            pool_mode: self.options.pool_mode,
            with_key_id: self.has_key_id_column.load(Ordering::Relaxed),
            verify,
        }
    }

    pub(super) fn replacement<'a>(
        &self,
        variant: StatementVariant,
        row: &'a Row,
        texts: &'a Envelopes,
        target: &'a KeyId,
    ) -> Result<Replacement<'a>, RowError> {
        let version = row.version.as_ref().map_err(|error| *error)?;
        Ok(Replacement {
            variant,
            row,
            texts,
            version: version.as_str(),
            next_version: version.next(SystemTime::now()),
            lock_timeout: (variant.pool_mode == PoolMode::Transaction)
                .then(|| self.options.lock_timeout.as_millis().to_string()),
            synchronous_commit: match self.options.durability {
                Durability::PerRun => Some("off"),
                Durability::PerRow => None,
            },
            target: target.as_str(),
        })
    }
}
