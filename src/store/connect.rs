//! The connections of the pool. Their notices are taken by us and not by the driver, which
//! would log their texts.

use std::{pin::Pin, sync::Arc};

use deadpool_postgres::Connect;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, Error};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::Store;
use crate::database::Notices;

/// Connects, and hands the connection's notices to `notices`.
pub(super) struct Connector {
    pub(super) tls: MakeRustlsConnect,
    pub(super) notices: Arc<Notices>,
}

type Connected = Result<(Client, JoinHandle<()>), Error>;

impl Connect for Connector {
    fn connect(&self, config: &Config) -> Pin<Box<dyn Future<Output = Connected> + Send + '_>> {
        let config = config.clone();
        Box::pin(async move {
            let (client, connection) = config.connect(self.tls.clone()).await?;
            let notices = self.notices.clone();
            let task = tokio::spawn(async move { notices.drive(connection).await });
            Ok((client, task))
        })
    }
}

impl Store {
    /// Commits on the connections that read and write rows which Postgres reported as done
    /// although their synchronous standby had not confirmed them: somebody cancelled the
    /// wait. If the number differs before and after a statement, that statement's commit may
    /// be one of them.
    #[must_use]
    pub fn unreplicated_commits(&self) -> u64 {
        self.notices.unreplicated_commits()
    }
}
