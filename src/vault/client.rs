//! An HTTPS connection to Vault, for a few requests one after the other.

use std::{io, time::Duration};

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1::{SendRequest, handshake},
    header::{HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use rustls::{CertificateError, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;
use zeroize::Zeroizing;

use super::{VaultError, VaultOptions};
use crate::tls::explain_io;

/// Time limit of a connection, and of each request with its answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum size of an answer in bytes: a list of 10,000 ids is smaller.
const MAX_BYTES: usize = 4 << 20;

/// The answer to a request.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Zeroizing<Vec<u8>>,
}

/// A connection.
pub(super) struct Client<'a> {
    options: &'a VaultOptions,
    sender: SendRequest<Full<Bytes>>,
    token: Option<HeaderValue>,
    _driver: AbortOnDropHandle<()>,
}

impl<'a> Client<'a> {
    pub(super) async fn connect(options: &'a VaultOptions) -> Result<Self, VaultError> {
        let connecting = timeout(TIMEOUT, Self::try_connect(options));
        connecting.await.unwrap_or_else(|_| {
            Err(VaultError::Unavailable(format!(
                "{} does not answer: the connection takes longer than {TIMEOUT:?}",
                options.place()
            )))
        })
    }

    async fn try_connect(options: &'a VaultOptions) -> Result<Self, VaultError> {
        let address = &options.address;
        let stream = TcpStream::connect((address.host.as_str(), address.port))
            .await
            .map_err(|error| {
                VaultError::Unavailable(format!("{} is not reachable ({error})", options.place()))
            })?;
        let Some(tls) = &options.tls else {
            return Self::start(options, stream).await;
        };
        let name = ServerName::try_from(address.host.clone()).map_err(|_| {
            VaultError::Configuration(format!(
                "{}: the host of VAULT_ADDR is not a name that a certificate can have",
                options.place()
            ))
        })?;
        let connector = TlsConnector::from(tls.clone());
        match connector.connect(name, stream).await {
            Ok(stream) => Self::start(options, stream).await,
            Err(error) => Err(refused(options, &error)),
        }
    }

    async fn start(
        options: &'a VaultOptions,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<Self, VaultError> {
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(options, &error))?;
        let driver = tokio::spawn(async {
            // The request that needs the connection reports the error.
            let _ = connection.await;
        });
        Ok(Self {
            options,
            sender,
            token: None,
            _driver: AbortOnDropHandle::new(driver),
        })
    }

    /// Sends this token with all further requests.
    pub(super) fn set_token(&mut self, token: &str) -> Result<(), VaultError> {
        // Wiped with the last copy of the header.
        let bytes = Bytes::from_owner(Zeroizing::new(token.as_bytes().to_vec()));
        let mut value = HeaderValue::from_maybe_shared(bytes).map_err(|_| {
            VaultError::Configuration(format!(
                "{}: the token contains characters that a token cannot have",
                self.options.place()
            ))
        })?;
        value.set_sensitive(true);
        self.token = Some(value);
        Ok(())
    }

    /// Sends a GET request.
    pub(super) async fn get(&mut self, path: &str) -> Result<Answer, VaultError> {
        self.send(Method::GET, path, Bytes::new()).await
    }

    /// Sends a POST request. The body is wiped.
    pub(super) async fn post(
        &mut self,
        path: &str,
        body: Zeroizing<Vec<u8>>,
    ) -> Result<Answer, VaultError> {
        self.send(Method::POST, path, Bytes::from_owner(body)).await
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Answer, VaultError> {
        let options = self.options;
        let address = &options.address;
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}/v1/{path}", address.path))
            .header(HOST, &address.authority)
            // An agent or proxy in front of Vault may require it.
            .header("x-vault-request", "true");
        if let Some(namespace) = &options.namespace {
            request = request.header("x-vault-namespace", namespace);
        }
        if let Some(token) = &self.token {
            request = request.header("x-vault-token", token);
        }
        let request = request.body(Full::new(body)).map_err(|_| {
            VaultError::Configuration(format!(
                "{}: VAULT_NAMESPACE contains characters that a namespace cannot have",
                options.place()
            ))
        })?;
        let exchange = async {
            self.sender.ready().await?;
            let answer = self.sender.send_request(request).await?;
            let status = answer.status();
            Ok(body_of(answer.into_body())
                .await?
                .map(|body| Answer { status, body }))
        };
        match timeout(TIMEOUT, exchange).await {
            Ok(Ok(Some(answer))) if is_to_https(options, &answer) => {
                Err(VaultError::Configuration(format!(
                    "{}: the server expects TLS: set VAULT_ADDR to an address that begins with https",
                    options.place()
                )))
            }
            Ok(Ok(Some(answer))) => Ok(answer),
            Ok(Ok(None)) => Err(VaultError::Unavailable(format!(
                "{} sent an answer of more than {} MiB",
                options.place(),
                MAX_BYTES >> 20
            ))),
            Ok(Err(error)) => Err(broken(options, &error)),
            Err(_) => Err(VaultError::Unavailable(format!(
                "{} does not answer: a request takes longer than {TIMEOUT:?}",
                options.place()
            ))),
        }
    }
}

/// Reads the body into a buffer that is wiped. `None` if it is too large.
async fn body_of(mut incoming: Incoming) -> Result<Option<Zeroizing<Vec<u8>>>, hyper::Error> {
    let mut body = Zeroizing::new(Vec::with_capacity(16 << 10));
    while let Some(frame) = incoming.frame().await {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        let len = body.len() + data.len();
        if len > MAX_BYTES {
            return Ok(None);
        }
        if len > body.capacity() {
            // A vector that grows would not wipe its old buffer.
            let mut larger = Zeroizing::new(Vec::with_capacity(2 * len));
            larger.extend_from_slice(&body);
            body = larger;
        }
        body.extend_from_slice(&data);
    }
    Ok(Some(body))
}

/// Whether the answer is that of a TLS server to a request without TLS.
fn is_to_https(options: &VaultOptions, answer: &Answer) -> bool {
    let words = b"HTTPS server";
    options.address.is_http()
        && answer.status == StatusCode::BAD_REQUEST
        && answer.body.windows(words.len()).any(|part| part == words)
}

fn broken(options: &VaultOptions, error: &hyper::Error) -> VaultError {
    VaultError::Unavailable(format!(
        "{} does not answer with HTTP ({error})",
        options.place()
    ))
}

/// The error of a TLS handshake. A wrong CA or name is a configuration error. An expired
/// certificate is not: it can be renewed, or the clock can be set.
fn refused(options: &VaultOptions, error: &io::Error) -> VaultError {
    use CertificateError as E;
    let place = options.place();
    let why = explain_io(error);
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    match inner {
        Some(rustls::Error::InvalidCertificate(
            E::Expired | E::ExpiredContext { .. } | E::NotValidYet | E::NotValidYetContext { .. },
        )) => VaultError::Unavailable(format!(
            "{place}: its certificate is not valid now ({why}): renew it, or set the clock"
        )),
        Some(rustls::Error::InvalidCertificate(_)) => VaultError::Configuration(format!(
            "{place}: its certificate was refused ({why}): set VAULT_CACERT to the CA of Vault, and \
             VAULT_ADDR to a name of its certificate"
        )),
        Some(rustls::Error::InvalidMessage(_)) => VaultError::Configuration(format!(
            "{place}: the server does not answer with TLS: correct the port in VAULT_ADDR"
        )),
        _ => VaultError::Unavailable(format!("{place}: the TLS handshake failed ({why})")),
    }
}
