//! Checks whether the database is still usable, at times when no run uses it.

use std::time::Duration;

use deadpool_postgres::{Object, PoolError, TimeoutType, Timeouts};
use tokio::time::timeout;
use tokio_postgres::error::SqlState;

use super::{SchemaError, SetupError, Store, StoreError, schema, statement::Statement};

/// The result of a ping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ping {
    /// The database answered.
    Answered {
        /// Privileges that the role lacks, as `UPDATE on table.column`.
        missing: Vec<String>,
        /// Why no run could begin.
        unfit: Option<SetupError>,
        /// Why no row could be written.
        unwritable: Option<SetupError>,
        /// The server is a standby, which cannot write.
        is_standby: bool,
    },
    /// Every connection is in use, so the ping could not be sent.
    Busy,
}

// A missing column is not reported here: the schema check reports it.
const MISSING_PRIVILEGES: Statement = Statement {
    text: "-- missing_privileges\n\
           SELECT privilege || ' on ' || tab || '.' || col \
           FROM (VALUES ('tenants', 'organization_id', false), ('tenants', 'version', true), \
                   ('tenant_identity_config', 'organization_id', false), \
                   ('tenant_identity_config', 'encrypted_signing_key_1', true), \
                   ('tenant_identity_config', 'encrypted_signing_key_2', true), \
                   ('tenant_identity_config', 'encrypted_auth_method_config', true)) \
               AS needed (tab, col, is_written), \
               unnest(CASE WHEN is_written THEN ARRAY['SELECT', 'UPDATE'] \
                   ELSE ARRAY['SELECT'] END) AS privilege \
           WHERE EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass(tab) \
                   AND attname = col AND attnum > 0 AND NOT attisdropped) \
               AND NOT has_column_privilege(to_regclass(tab)::oid, col, privilege) \
           ORDER BY 1",
    types: &[],
};

impl Store {
    /// Checks whether the tables still exist, which privileges are missing, and whether a run could
    /// do its work. Uses a connection only if one is free, and waits at most `pool_acquire_timeout`
    /// for an answer. With `reconnect`, it opens a new connection and closes it afterwards.
    ///
    /// # Errors
    ///
    /// [`SchemaError`] when the database does not answer or refuses the role, or when a
    /// table is missing.
    pub async fn ping(&self, reconnect: bool) -> Result<Ping, SchemaError> {
        if !reconnect && let Some(client) = self.free(&self.pool).await? {
            return self.ask(client, true).await;
        }
        // If all are in use, the connection of the load probe may be free.
        if reconnect {
            self.probe_pool.retain(|_, _| false);
        }
        match self.free(&self.probe_pool).await? {
            None => Ok(Ping::Busy),
            Some(client) => {
                let was_there = Object::metrics(&client).recycled.is_some();
                self.ask(client, was_there).await
            }
        }
    }

    /// A connection that is free now or can be opened now.
    async fn free(&self, pool: &deadpool_postgres::Pool) -> Result<Option<Object>, StoreError> {
        let timeouts = Timeouts {
            wait: Some(Duration::ZERO),
            ..pool.timeouts()
        };
        match pool.timeout_get(&timeouts).await {
            Ok(client) => Ok(Some(client)),
            Err(PoolError::Timeout(TimeoutType::Wait)) => Ok(None),
            // All slots of the server are taken, perhaps by this program: the server is up.
            Err(PoolError::Backend(error))
                if error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS)
                    && self.pool.status().size > 0 =>
            {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn ask(&self, client: Object, keep: bool) -> Result<Ping, SchemaError> {
        let limit = self
            .options
            .pool_acquire_timeout
            .max(Duration::from_secs(1));
        let answer = match timeout(limit, self.answer(&client)).await {
            Ok(answer) => answer,
            Err(_) => Err(StoreError::NoAnswer(limit).into()),
        };
        if !keep || answer.is_err() {
            drop(Object::take(client));
        }
        answer
    }

    async fn answer(&self, client: &Object) -> Result<Ping, SchemaError> {
        schema::check(self, client).await?;
        let rows = self.query(client, &MISSING_PRIVILEGES, &[]).await?;
        let names: Result<_, _> = rows.iter().map(|row| row.try_get(0)).collect();
        let missing = names.map_err(StoreError::from)?;
        let preflight = self.preflight_on(client).await?;
        Ok(Ping::Answered {
            missing,
            unfit: preflight.unfit,
            unwritable: preflight.unwritable,
            is_standby: preflight.is_standby,
        })
    }
}
