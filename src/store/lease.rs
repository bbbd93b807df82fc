//! A connection that goes back to the pool only if it is in a known state.

use deadpool_postgres::Object;

use super::StoreError;

/// A connection of the pool. Dropped, for example in the middle of a statement, it is closed.
pub(super) struct Lease(Option<Object>);

impl Lease {
    pub(super) fn new(client: Object) -> Self {
        Self(Some(client))
    }

    /// The connection, which is there until the lease is kept.
    pub(super) fn client(&self) -> Result<&Object, StoreError> {
        self.0.as_ref().ok_or_else(StoreError::no_connection)
    }

    /// Gives the connection back to the pool.
    pub(super) fn keep(mut self) {
        self.0.take();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.take().map(Object::take);
    }
}
