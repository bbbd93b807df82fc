//! One HTTP/2 connection to a collector.

use std::{
    error::Error,
    io,
    task::{Context, Poll},
};

use hyper::{
    Uri,
    body::Incoming,
    client::conn::http2::{Builder, SendRequest},
    http::{Request, Response},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status, body::Body, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

use super::TraceOptions;

/// A connection for one request.
pub(super) struct Connection {
    sender: SendRequest<Body>,
    origin: Uri,
    _driver: AbortOnDropHandle<()>,
}

impl Connection {
    pub(super) async fn open(options: &TraceOptions) -> Result<Self, Status> {
        let endpoint = &options.endpoint;
        let origin: Uri = endpoint
            .to_string()
            .parse()
            .map_err(|_| Status::internal("the address is not a URI"))?;
        let stream = TcpStream::connect((endpoint.host(), endpoint.port())).await;
        let stream = stream.map_err(|error| unavailable(&error))?;
        let Some(tls) = &options.tls else {
            return Self::start(origin, stream).await;
        };
        let name = ServerName::try_from(endpoint.host().to_owned())
            .map_err(|error| unavailable(&error))?;
        let stream = TlsConnector::from(tls.clone()).connect(name, stream).await;
        Self::start(origin, stream.map_err(|error| unavailable(&error))?).await
    }

    async fn start(
        origin: Uri,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<Self, Status> {
        let connection = Builder::new(TokioExecutor::new())
            .handshake(TokioIo::new(stream))
            .await;
        let (sender, connection) = connection.map_err(|error| unavailable(&error))?;
        let driver = tokio::spawn(async {
            // The request that needs the connection reports the error.
            let _ = connection.await;
        });
        Ok(Self {
            sender,
            origin,
            _driver: AbortOnDropHandle::new(driver),
        })
    }

    /// Makes a unary call.
    pub(super) async fn call<M, R>(self, path: PathAndQuery, message: M) -> Result<R, Status>
    where
        M: prost::Message + Send + Sync + 'static,
        R: prost::Message + Default + Send + Sync + 'static,
    {
        let mut client = Grpc::with_origin(Sender(self.sender), self.origin);
        client.ready().await.map_err(|error| unavailable(&error))?;
        let codec = ProstCodec::<M, R>::default();
        let answer = client.unary(tonic::Request::new(message), path, codec);
        Ok(answer.await?.into_inner())
    }
}

/// The error with its causes. Most errors of hyper say what happened only in their cause.
fn unavailable(error: &(dyn Error + 'static)) -> Status {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    Status::new(Code::Unavailable, text)
}

struct Sender(SendRequest<Body>);

impl tower::Service<Request<Body>> for Sender {
    type Response = Response<Incoming>;
    type Error = io::Error;
    type Future = futures_util::future::BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_ready(context).map_err(io::Error::other)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let response = self.0.send_request(request);
        Box::pin(async { response.await.map_err(io::Error::other) })
    }
}
