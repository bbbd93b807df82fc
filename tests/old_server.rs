//! A server without `nico.rewrap.v1`: a relay on a Unix socket that forwards only `forge.Forge` to a
//! real server.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::http::uri::{Authority, Parts, Scheme};
use hyper::{Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tempfile::TempDir;
use tokio::net::{TcpStream, UnixListener};
use tokio_rustls::TlsConnector;
use tonic::body::Body;

use crate::certs;
use crate::process::temp_dir;
use crate::server::Server;

/// The relay. It ends with its test.
pub(crate) struct OldServer {
    pub(crate) socket: PathBuf,
    _dir: TempDir,
}

impl OldServer {
    /// Starts the relay to this server.
    pub(crate) async fn before(server: &Server) -> Self {
        let dir = temp_dir("socket");
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let sender = connect(&server.grpc).await;
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let sender = sender.clone();
                let service =
                    hyper::service::service_fn(move |request| answer(sender.clone(), request));
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { socket, _dir: dir }
    }
}

async fn answer(
    mut sender: SendRequest<Incoming>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    if !request.uri().path().starts_with("/forge.Forge/") {
        // As every gRPC server answers for a service that it does not have.
        return Ok(tonic::Status::unimplemented("").into_http());
    }
    let mut parts = Parts::default();
    parts.scheme = Some(Scheme::HTTPS);
    parts.authority = Some(Authority::from_static("localhost"));
    parts.path_and_query = request.uri().path_and_query().cloned();
    *request.uri_mut() = Uri::from_parts(parts).unwrap();
    Ok(sender.send_request(request).await.unwrap().map(Body::new))
}

fn pem(path: &Path) -> Vec<CertificateDer<'static>> {
    let certificates = CertificateDer::pem_file_iter(path).unwrap();
    certificates.map(Result::unwrap).collect()
}

async fn connect(address: &str) -> SendRequest<Incoming> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(pem(&certs::root_ca().cert));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let admin = certs::admin();
    let key = PrivateKeyDer::from_pem_file(&admin.key).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(pem(&admin.cert_chain), key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .unwrap();
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    sender
}
