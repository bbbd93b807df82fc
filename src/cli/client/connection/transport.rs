//! One HTTP/2 connection to a server: with mutual TLS, or through the admin socket.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::{
    Uri,
    body::Incoming,
    client::conn::http2::{Builder, SendRequest},
    http::{Request, Response, uri},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::{CertificateError, ClientConfig, Error as TlsError, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    sync::watch,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tonic::{Status, body::Body};

use super::{
    super::{
        exit::Exit,
        problem::{Problem, refused_certificate, with_causes},
    },
    CONNECT_TIMEOUT,
    credentials::{Credentials, authorities, exists},
    endpoint::Endpoint,
    settings::{DEFAULT_SOCKET, Network},
};

/// How often to check that a silent server is still there, and how long to wait for its answer.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// A connection over which calls are made.
#[derive(Debug, Clone)]
pub(crate) struct Channel {
    sender: SendRequest<Body>,
    /// Why the connection ended.
    ended: watch::Receiver<Option<String>>,
    scheme: uri::Scheme,
    authority: uri::Authority,
}

impl Channel {
    /// Connects to the admin socket.
    pub(super) async fn unix(path: &Path, is_default: bool) -> Result<Self, Problem> {
        let connected = timeout(CONNECT_TIMEOUT, UnixStream::connect(path)).await;
        let stream = flatten(connected).map_err(|error| no_socket(path, is_default, &error))?;
        Self::handshake(stream, uri::Scheme::HTTP, "localhost").await
    }

    /// Connects to one address of a server on the network.
    pub(super) async fn network(
        address: SocketAddr,
        endpoint: &Endpoint,
        network: &Network,
        tls: &Arc<ClientConfig>,
    ) -> Result<Self, Problem> {
        let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        let stream = flatten(connected)
            .map_err(|error| Problem::broken(format!("cannot connect to {address} ({error})")))?;
        // Calls are small. An error is ignored: without this option, calls only take longer.
        let _ = stream.set_nodelay(true);
        let name = network.server_name.as_deref().unwrap_or(&endpoint.host);
        let server_name = ServerName::try_from(name.to_owned()).map_err(|_| {
            Problem::config(format!(
                "--server-name: {name:?} is not a DNS name or an IP address"
            ))
        })?;
        let connector = TlsConnector::from(tls.clone());
        let secured = timeout(CONNECT_TIMEOUT, connector.connect(server_name, stream)).await;
        let stream =
            flatten(secured).map_err(|error| tls_problem(&error, address, name, network))?;
        let host = if name.contains(':') {
            format!("[{name}]")
        } else {
            name.to_owned()
        };
        Self::handshake(
            stream,
            uri::Scheme::HTTPS,
            &format!("{host}:{}", endpoint.port),
        )
        .await
    }

    async fn handshake<S>(stream: S, scheme: uri::Scheme, authority: &str) -> Result<Self, Problem>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let authority = uri::Authority::try_from(authority)
            .map_err(|_| Problem::config(format!("{authority:?} is not a host name")))?;
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);
        let handshake = builder.handshake(TokioIo::new(stream));
        let (sender, connection) = handshake
            .await
            .map_err(|error| Problem::from(broken(error)))?;
        let (end, ended) = watch::channel(None);
        tokio::spawn(async move {
            let why = match connection.await {
                Ok(()) => "the server closed it".to_owned(),
                Err(error) => with_causes(&error),
            };
            // An error means that the channel and all calls were dropped.
            let _ = end.send(Some(why));
        });
        Ok(Self {
            sender,
            ended,
            scheme,
            authority,
        })
    }
}

/// The TLS settings of a client with this identity.
pub(super) fn tls_config(
    network: &Network,
    credentials: Credentials,
) -> Result<Arc<ClientConfig>, Problem> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Problem::new(Exit::Bug, error.to_string()))?
        .with_root_certificates(authorities(&network.cacert)?)
        .with_client_auth_cert(credentials.chain, credentials.key)
        .map_err(|error| {
            Problem::config(format!(
                "the client certificate and the private key cannot be used ({error})"
            ))
        })?;
    let mut config = config;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn flatten<T>(result: Result<io::Result<T>, tokio::time::error::Elapsed>) -> io::Result<T> {
    result.unwrap_or_else(|_| {
        let text = format!("no answer within {} seconds", CONNECT_TIMEOUT.as_secs());
        Err(io::Error::new(io::ErrorKind::TimedOut, text))
    })
}

fn no_socket(path: &Path, is_default: bool, error: &io::Error) -> Problem {
    if is_default && !exists(path) {
        return Problem::new(
            Exit::Unreachable,
            format!(
                "no server is named, and there is no admin socket {DEFAULT_SOCKET} on this machine: set --endpoint, \
                 --cacert, --cert and --key (or REWRAP_ENDPOINT and so on), or use a context, or set \
                 [rewrap].admin_socket on the server"
            ),
        );
    }
    if error.kind() == io::ErrorKind::PermissionDenied {
        return Problem::new(
            Exit::NotAllowed,
            format!(
                "you may not use the admin socket {}: call as root, with sudo",
                path.display()
            ),
        );
    }
    Problem::broken(format!(
        "cannot connect to the admin socket {} ({error}): check that the server runs and has [rewrap].admin_socket",
        path.display()
    ))
}

fn tls_problem(error: &io::Error, address: SocketAddr, name: &str, network: &Network) -> Problem {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<TlsError>());
    let message = match tls {
        Some(TlsError::InvalidCertificate(CertificateError::UnknownIssuer)) => format!(
            "the certificate of {address} is not signed by a CA in {}: check --cacert",
            network.cacert.display()
        ),
        Some(TlsError::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => format!(
            "the certificate of {address} is not for the name {name:?}: set --server-name to a name in the certificate"
        ),
        Some(TlsError::InvalidCertificate(problem)) => {
            format!("the certificate of {address} is not valid ({problem})")
        }
        Some(TlsError::AlertReceived(alert)) => return refused_certificate(&format!("{alert:?}")),
        _ => return Problem::broken(format!("no TLS connection to {address} ({error})")),
    };
    Problem::new(Exit::Unreachable, message)
}

/// Makes a status from an error of the connection. Its source distinguishes it from an answer of
/// the server.
fn broken(error: hyper::Error) -> Status {
    let mut status = Status::unavailable(with_causes(&error));
    status.set_source(Arc::new(error));
    status
}

/// How long to wait for the reason why a connection ended.
const REASON_TIMEOUT: Duration = Duration::from_secs(1);

/// As [`broken`], with the reason why the connection ended. The error of a waiting call does not
/// contain this reason.
async fn explained(error: hyper::Error, mut ended: watch::Receiver<Option<String>>) -> Status {
    let mut status = broken(error);
    let why = timeout(REASON_TIMEOUT, ended.wait_for(Option::is_some)).await;
    if let Ok(Ok(why)) = why
        && let Some(why) = why.as_deref()
    {
        status.set_source(Arc::new(io::Error::other(why.to_owned())));
    }
    status
}

impl tower::Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    /// Always ready: a call over a closed connection ends with the reason.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let path = request.uri().path_and_query().cloned();
        let mut parts = uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = path;
        // All parts are valid, so this cannot fail.
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
        let response = self.sender.send_request(request);
        let ended = self.ended.clone();
        Box::pin(async move {
            match response.await {
                Ok(response) => Ok(response),
                Err(error) => Err(explained(error, ended).await),
            }
        })
    }
}
