//! Leases: locks with an expiry time, for work that only one instance may do at a time. They
//! replace session locks behind a pooler that gives each transaction another session.

use tokio_postgres::types::Type;

use super::super::{Store, StoreError, statement::Statement};

/// A lease that somebody holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The run that holds it.
    pub holder: String,
    /// The data about the holder, as JSON.
    pub document: String,
}

// Takes a free or expired lease, or renews a lease of the same holder. The database's clock
// decides.
const TAKE_LEASE: Statement = Statement {
    text: "-- take_lease\n\
           INSERT INTO nico_rewrap.leases AS l (name, holder, document, expires) \
           VALUES ($1, $2, $3, clock_timestamp() + $4::float8 * interval '1 s') \
           ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, \
             document = excluded.document, expires = excluded.expires \
             WHERE l.holder = excluded.holder OR l.expires < clock_timestamp() \
           RETURNING holder",
    types: &[Type::TEXT, Type::TEXT, Type::TEXT, Type::FLOAT8],
};

const READ_LEASE: Statement = Statement {
    text: "-- read_lease\n\
           SELECT holder, document FROM nico_rewrap.leases \
           WHERE name = $1 AND expires >= clock_timestamp()",
    types: &[Type::TEXT],
};

const END_LEASE: Statement = Statement {
    text: "-- end_lease\nDELETE FROM nico_rewrap.leases WHERE name = $1 AND holder = $2",
    types: &[Type::TEXT, Type::TEXT],
};

impl Store {
    /// Takes or renews a lease for `seconds`. Returns whether `holder` holds it now.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the state can't be written.
    pub async fn take_lease(
        &self,
        name: &str,
        holder: &str,
        document: &str,
        seconds: f64,
    ) -> Result<bool, StoreError> {
        let rows = self
            .state_query(&TAKE_LEASE, &[&name, &holder, &document, &seconds])
            .await?;
        Ok(!rows.is_empty())
    }

    /// The current lease with this name.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the state can't be read.
    pub async fn lease(&self, name: &str) -> Result<Option<Lease>, StoreError> {
        let rows = self.state_query(&READ_LEASE, &[&name]).await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        Ok(Some(Lease {
            holder: row.try_get(0)?,
            document: row.try_get(1)?,
        }))
    }

    /// Ends a lease before it expires.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the state can't be written.
    pub async fn end_lease(&self, name: &str, holder: &str) -> Result<(), StoreError> {
        self.state_query(&END_LEASE, &[&name, &holder]).await?;
        Ok(())
    }
}
