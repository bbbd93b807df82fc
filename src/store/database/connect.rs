//! Connects to the servers of the URL in turn, with a time limit for each address.
//!
//! The driver's own limit covers only the TCP connection. A server that accepts the
//! connection and then says nothing would block the attempt forever, and the next server
//! would never be tried. The limit here covers everything up to the session.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::lookup_host,
    task::JoinHandle,
    time::timeout,
};
use tokio_postgres::{
    Client, Config, Connection, NoTls, Socket,
    config::{Host, LoadBalanceHosts, SslMode},
    tls::MakeTlsConnect,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    notice::Notices,
    problem::{offers_no_tls, tls_problem},
    server::Server,
    ssl_mode::ChosenSslMode,
};

/// The driver's two parts of a connection.
type Halves = (
    Client,
    Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>,
);

/// Why no connection could be opened. The text never quotes the URL.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The driver reported an error.
    #[error("{}", describe_driver(.0))]
    Driver(tokio_postgres::Error),
    /// TLS with the server failed.
    #[error("{0}")]
    Tls(String),
    /// The server does not offer TLS, and `sslmode` requires it.
    #[error(
        "the server does not offer TLS, but {0} requires it: turn on TLS in the server (ssl = on in \
         postgresql.conf), or allow plain text with [rewrap].database_sslmode = \"prefer\""
    )]
    NoTls(ChosenSslMode),
    /// A host name can't be resolved.
    #[error("the host of database_url can't be resolved ({0})")]
    Name(io::Error),
    /// The server does not answer, or accepts the connection and then says nothing.
    #[error("no answer within {0}")]
    Timeout(Limit),
    /// Another error, with advice for the operator.
    #[error("{0}; {1}")]
    Advised(Box<ConnectError>, String),
}

/// The time limit for one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    pub(super) duration: Duration,
    /// The setting that the limit comes from.
    pub(super) setting: &'static str,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let duration = humantime::format_duration(self.duration);
        write!(f, "{}, {duration}", self.setting)
    }
}

/// Connects to the first server that accepts.
#[derive(Clone)]
pub(crate) struct Connector {
    pub(super) servers: Vec<Server>,
    pub(super) tls: MakeRustlsConnect,
    pub(super) ssl_mode: ChosenSslMode,
    pub(super) limit: Limit,
    /// Added to the error if no server accepts the connection.
    pub(super) advice: Option<String>,
    /// Receives the notices of every connection. The driver would log their texts.
    pub(super) notices: Arc<Notices>,
}

impl Connector {
    /// Opens a connection with the settings of `config`, which names no server. A task
    /// drives the connection until the client is dropped.
    pub(super) async fn open(
        &self,
        config: &Config,
    ) -> Result<(Client, JoinHandle<()>), ConnectError> {
        let shuffled = config.get_load_balance_hosts() == LoadBalanceHosts::Random;
        let mut servers: Vec<_> = self.servers.iter().collect();
        if shuffled {
            fastrand::shuffle(&mut servers);
        }
        let mut last = None;
        for server in servers {
            let addresses = match self.addresses(server).await {
                Ok(addresses) => addresses,
                Err(error) => {
                    self.failed(server, &error);
                    last = Some(error);
                    continue;
                }
            };
            let mut configs: Vec<_> = addresses
                .into_iter()
                .map(|address| server.config(config, address))
                .collect();
            if shuffled {
                fastrand::shuffle(&mut configs);
            }
            for config in configs {
                match self.within(config.connect(self.tls.clone())).await {
                    Ok(halves) => return Ok(self.spawn_driver(halves)),
                    Err(error) => {
                        self.failed(server, &error);
                        last = Some(error);
                    }
                }
            }
        }
        let none = || ConnectError::Name(io::ErrorKind::NotFound.into());
        Err(last.unwrap_or_else(none))
    }

    /// Starts the task that drives the connection.
    fn spawn_driver(&self, (client, connection): Halves) -> (Client, JoinHandle<()>) {
        let notices = self.notices.clone();
        let task = tokio::spawn(async move { notices.drive(connection).await });
        (client, task)
    }

    /// The addresses of a server. `None` stands for a Unix socket.
    async fn addresses(&self, server: &Server) -> Result<Vec<Option<IpAddr>>, ConnectError> {
        let name = match (&server.host, server.address) {
            (_, Some(address)) => return Ok(vec![Some(address)]),
            (Some(Host::Tcp(name)), None) => name,
            (Some(Host::Unix(_)) | None, None) => return Ok(vec![None]),
        };
        let found = timeout(
            self.limit.duration,
            lookup_host((name.as_str(), server.port)),
        );
        let found = found.await.map_err(|_| ConnectError::Timeout(self.limit))?;
        let mut addresses: Vec<_> = found
            .map_err(ConnectError::Name)?
            .map(|address: SocketAddr| Some(address.ip()))
            .collect();
        addresses.dedup();
        Ok(addresses)
    }

    async fn within(
        &self,
        connecting: impl Future<Output = Result<Halves, tokio_postgres::Error>>,
    ) -> Result<Halves, ConnectError> {
        match timeout(self.limit.duration, connecting).await {
            Ok(Err(error)) if offers_no_tls(&error) => Err(ConnectError::NoTls(self.ssl_mode)),
            Ok(connected) => Ok(connected?),
            Err(_) => Err(ConnectError::Timeout(self.limit)),
        }
    }

    /// With a single server, the caller reports the error.
    fn failed(&self, server: &Server, error: &ConnectError) {
        if self.servers.len() > 1 {
            tracing::warn!(
                host = ?server.host,
                port = server.port,
                %error,
                "cannot use a server of database_url; trying the next one"
            );
        }
    }

    /// Adds the advice to `error`, if there is any.
    pub(super) fn advised(&self, error: ConnectError) -> ConnectError {
        match &self.advice {
            Some(advice) => ConnectError::Advised(Box::new(error), advice.clone()),
            None => error,
        }
    }

    /// Converts `error` for the pool, which accepts only errors of the driver.
    async fn driver_error(&self, error: ConnectError) -> tokio_postgres::Error {
        let error = match error {
            // The caller needs the SQLSTATE of this error, so return it unchanged.
            ConnectError::Driver(driver) if driver.as_db_error().is_some() => {
                if let Some(advice) = &self.advice {
                    tracing::warn!("no connection to the database: {advice}");
                }
                return driver;
            }
            ConnectError::Driver(driver) if self.advice.is_none() => return driver,
            other => self.advised(other),
        };
        failure(io::Error::new(error.kind(), error.to_string())).await
    }
}

impl From<tokio_postgres::Error> for ConnectError {
    fn from(error: tokio_postgres::Error) -> Self {
        tls_problem(&error).map_or(Self::Driver(error), Self::Tls)
    }
}

impl ConnectError {
    fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Driver(_) | Self::Tls(_) | Self::NoTls(_) => io::ErrorKind::Other,
            Self::Name(error) => error.kind(),
            Self::Timeout(_) => io::ErrorKind::TimedOut,
            Self::Advised(error, _) => error.kind(),
        }
    }
}

impl deadpool_postgres::Connect for Connector {
    fn connect(
        &self,
        config: &Config,
    ) -> Pin<
        Box<
            dyn Future<Output = Result<(Client, JoinHandle<()>), tokio_postgres::Error>>
                + Send
                + '_,
        >,
    > {
        let config = config.clone();
        Box::pin(async move {
            match self.open(&config).await {
                Ok(connected) => Ok(connected),
                Err(error) => Err(self.driver_error(error).await),
            }
        })
    }
}

/// Only the SQLSTATE is reported: the message of the server can quote anything.
fn describe_driver(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        return format!("the server answered with SQLSTATE {}", db.code().code());
    }
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Makes a driver error out of an I/O error. The driver has no constructor for that, so
/// this function lets the driver read from a stream that fails.
async fn failure(error: io::Error) -> tokio_postgres::Error {
    let mut config = Config::new();
    config.user("nobody").ssl_mode(SslMode::Disable);
    match config.connect_raw(Failing(Some(error)), NoTls).await {
        Err(error) => error,
        // A stream that fails never connects.
        Ok(_) => match std::future::pending::<Infallible>().await {},
    }
}

/// A stream on which every read fails.
struct Failing(Option<io::Error>);

impl AsyncRead for Failing {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let error = self.0.take();
        Poll::Ready(Err(
            error.unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())
        ))
    }
}

impl AsyncWrite for Failing {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_driver_error_keeps_the_text_of_the_io_error() {
        let error = failure(io::Error::new(io::ErrorKind::TimedOut, "our words")).await;
        assert!(describe_driver(&error).ends_with("our words"), "{error:?}");
    }
}
