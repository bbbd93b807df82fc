//! Whether the database can still be used, asked while nobody else asks.

use std::time::Duration;

use deadpool_postgres::{Object, PoolError, TimeoutType, Timeouts};
use tokio::time::timeout;
use tokio_postgres::error::SqlState;

use super::{SchemaError, Store, StoreError, schema, statement::Statement};

/// What became of a ping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ping {
    /// The database answered. These privileges are missing, as `UPDATE on table.column`.
    Answered {
        /// Privileges that the role does not have.
        missing: Vec<String>,
    },
    /// Every connection is in use, so there is nothing to ask with.
    Busy,
}

// A column that is not there has no privileges to miss.
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
    /// Asks whether the tables are still there, and which privileges are missing. Takes a
    /// connection only if one is free, and waits at most `pool_acquire_timeout` for an answer. With
    /// `reconnect` over a new connection, which is closed afterwards.
    ///
    /// # Errors
    ///
    /// [`SchemaError`] when the database does not answer, refuses the role, or has lost a table.
    pub async fn ping(&self, reconnect: bool) -> Result<Ping, SchemaError> {
        if !reconnect && let Some(client) = self.free(&self.pool).await? {
            return self.ask(client, true).await;
        }
        // Where all are in use, the connection that looks at the load may be free.
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

    /// A connection that is free now, or that can be made now.
    async fn free(&self, pool: &deadpool_postgres::Pool) -> Result<Option<Object>, StoreError> {
        let timeouts = Timeouts {
            wait: Some(Duration::ZERO),
            ..pool.timeouts()
        };
        match pool.timeout_get(&timeouts).await {
            Ok(client) => Ok(Some(client)),
            Err(PoolError::Timeout(TimeoutType::Wait)) => Ok(None),
            // The server's last slots are taken, perhaps by us: it is there, at least.
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
        let missing = match timeout(limit, self.missing(&client)).await {
            Ok(missing) => missing,
            Err(_) => Err(StoreError::NoAnswer(limit).into()),
        };
        if !keep || missing.is_err() {
            drop(Object::take(client));
        }
        Ok(Ping::Answered { missing: missing? })
    }

    async fn missing(&self, client: &Object) -> Result<Vec<String>, SchemaError> {
        schema::check(self, client).await?;
        let rows = self.query(client, &MISSING_PRIVILEGES, &[]).await?;
        let names: Result<_, _> = rows.iter().map(|row| row.try_get(0)).collect();
        Ok(names.map_err(StoreError::from)?)
    }
}
