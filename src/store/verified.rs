//! Writes a row in a transaction that reads the row again before it commits.
//!
//! The statement that writes a row sees what its `BEFORE` triggers did. It cannot see what an
//! `AFTER` trigger, a deferred trigger or a rule does later in the transaction. If there is
//! such a trigger, the transaction runs all deferred triggers and then compares the row with
//! what was sent. All statements are sent at once, so this needs no further round trip. If a
//! comparison fails, Postgres treats the COMMIT as a ROLLBACK.

use deadpool_postgres::Object;
use futures_util::future::join5;
use tokio_postgres::types::{ToSql, Type};

use super::{
    CasOutcome, PoolMode, Row, Store, StoreError,
    statement::{Runnable, Statement},
};
use crate::domain::{keyring::KeyId, rewrap::Envelopes};

/// Runs the deferred triggers that would otherwise run in the COMMIT.
const RUN_DEFERRED_TRIGGERS: &str = "SET CONSTRAINTS ALL IMMEDIATE";

/// Statements of one row that can take as long as `statement_timeout`.
pub(super) const STATEMENTS_PER_ROW: usize = 4;

// Without a written version, the compare-and-set has missed and there is nothing to check.
// A trigger may bump the version further.
const VERIFY_ROW: Statement = Statement {
    text: "-- verify_row\n\
           SELECT CASE \
             WHEN NOT EXISTS (SELECT FROM tenant_identity_config WHERE organization_id = $1 \
               AND encrypted_signing_key_1 IS NOT DISTINCT FROM $2 \
               AND encrypted_signing_key_2 IS NOT DISTINCT FROM $3 \
               AND encrypted_auth_method_config IS NOT DISTINCT FROM $4) \
             THEN current_setting('nico_rewrap.text_not_kept') \
             WHEN NOT EXISTS (SELECT FROM tenants t WHERE t.organization_id = $1 \
               AND substring(t.version from '^V([0-9]{1,20})-T[0-9]{1,19}$')::numeric \
                 >= substring(written.version from '^V([0-9]+)')::numeric) \
             THEN current_setting('nico_rewrap.version_not_bumped') END \
           FROM (SELECT nullif(current_setting('nico_rewrap.written_version', true), '') \
             AS version) AS written \
           WHERE written.version IS NOT NULL",
    types: &[Type::TEXT; 4],
};

/// The statements of a verified write, prepared on one connection.
pub(super) struct Verified {
    replace_row: Runnable,
    verify_row: Runnable,
}

impl Verified {
    pub(super) async fn prepare(
        store: &Store,
        client: &Object,
        replace_row: &'static Statement,
    ) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            replace_row: store.ready(client, replace_row).await?,
            verify_row: store.ready(client, &VERIFY_ROW).await?,
        })
    }

    /// Sends the write, the check and the COMMIT. `begin` is sent first. `params` are those
    /// of [`super::replace::Replacement`].
    pub(super) async fn execute(
        &self,
        client: &Object,
        begin: impl Future<Output = Result<(), tokio_postgres::Error>>,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, tokio_postgres::Error> {
        let (begun, written, checked, verified, committed) = join5(
            begin,
            self.replace_row.execute(client, params),
            client.batch_execute(RUN_DEFERRED_TRIGGERS),
            self.verify_row.execute(client, &params[..4]),
            client.batch_execute("COMMIT"),
        )
        .await;
        // The first error is the cause of those that follow.
        begun?;
        let written = written?;
        checked?;
        verified?;
        committed?;
        Ok(written)
    }
}

impl Store {
    /// Writes the row as [`Store::replace`] does, and checks it again before the commit.
    pub(super) async fn replace_verified(
        &self,
        client: &Object,
        row: &Row,
        texts: &Envelopes,
        target: &KeyId,
    ) -> Result<CasOutcome, StoreError> {
        let variant = self.variant(true);
        let replacement = self.replacement(variant, row, texts, target)?;
        let begin = self.begin_writing();
        let written = async {
            let verified = Verified::prepare(self, client, variant.sql()).await?;
            verified
                .execute(client, client.batch_execute(&begin), &replacement.params())
                .await
        };
        let queued = self
            .options
            .pipeline_depth
            .saturating_mul(STATEMENTS_PER_ROW);
        let written = self.with_queue_timeout(queued, written).await?;
        Ok(CasOutcome::from_count(written))
    }

    /// The statement that begins a transaction for one row.
    pub(super) fn begin_writing(&self) -> String {
        let statement_timeout = match self.options.pool_mode {
            // The session has this setting already.
            PoolMode::Session => String::new(),
            PoolMode::Transaction => format!(
                "; SET LOCAL statement_timeout = {}",
                self.options.statement_timeout.as_millis()
            ),
        };
        format!(
            "START TRANSACTION ISOLATION LEVEL READ COMMITTED; \
             SET LOCAL lock_timeout = {}{statement_timeout}",
            self.options.lock_timeout.as_millis()
        )
    }
}
