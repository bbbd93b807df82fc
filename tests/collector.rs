//! An OpenTelemetry collector: a gRPC server with the method Export of OTLP.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::http::Request;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tonic::server::{Grpc, UnaryService};
use tonic_prost::ProstCodec;

use crate::pki::Leaf;

const METHOD: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// What the collector has received.
#[derive(Clone, Debug, Default)]
struct Received(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

impl UnaryService<ExportTraceServiceRequest> for Received {
    type Response = ExportTraceServiceResponse;
    type Future = Ready<Result<tonic::Response<Self::Response>, tonic::Status>>;

    fn call(&mut self, request: tonic::Request<ExportTraceServiceRequest>) -> Self::Future {
        self.0.lock().unwrap().push(request.into_inner());
        ready(Ok(tonic::Response::new(
            ExportTraceServiceResponse::default(),
        )))
    }
}

/// A collector on a port of this machine. It ends when this value is dropped.
pub(crate) struct Collector {
    /// `127.0.0.1:port`.
    pub(crate) address: String,
    received: Received,
    server: AbortHandle,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Collector {
    /// Starts a collector without TLS.
    pub(crate) async fn start() -> Self {
        Self::listen(None).await
    }

    /// Starts a collector with this certificate.
    pub(crate) async fn start_tls(leaf: &Leaf) -> Self {
        let chain = CertificateDer::pem_file_iter(&leaf.cert_chain).unwrap();
        let chain = chain.collect::<Result<_, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_file(&leaf.key).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self::listen(Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn listen(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let received = Received::default();
        let sink = received.clone();
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (sink, tls) = (sink.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, sink).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, sink).await;
                            }
                        }
                    }
                });
            }
        });
        Self {
            address,
            received,
            server: server.abort_handle(),
        }
    }

    /// All requests so far.
    pub(crate) fn requests(&self) -> Vec<ExportTraceServiceRequest> {
        self.received.0.lock().unwrap().clone()
    }

    /// All spans so far.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let requests = self.requests().into_iter();
        let resources = requests.flat_map(|request| request.resource_spans);
        let scopes = resources.flat_map(|resource| resource.scope_spans);
        scopes.flat_map(|scope| scope.spans).collect()
    }

    /// Waits for this many spans with this name.
    pub(crate) async fn wait_for(&self, name: &str, count: usize) {
        let deadline = Instant::now() + TIME_LIMIT;
        while self.spans().iter().filter(|span| span.name == name).count() < count {
            assert!(Instant::now() < deadline, "no span {name}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, received: Received) {
    let service = service_fn(move |request: Request<Incoming>| {
        let received = received.clone();
        async move {
            assert_eq!(request.uri().path(), METHOD);
            let mut grpc = Grpc::new(ProstCodec::default());
            Ok::<_, Infallible>(grpc.unary(received, request).await)
        }
    });
    let connection =
        Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
    // The client closes the connection after its request.
    let _ = connection.await;
}

/// Attributes as texts.
pub(crate) fn attributes(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |attribute: &KeyValue| {
        let value = attribute.value.as_ref().unwrap().value.as_ref().unwrap();
        match value {
            any_value::Value::StringValue(text) => text.clone(),
            any_value::Value::BoolValue(value) => value.to_string(),
            any_value::Value::IntValue(number) => number.to_string(),
            other => panic!("{other:?}"),
        }
    };
    let pairs = attributes.iter();
    pairs
        .map(|attribute| (attribute.key.clone(), text(attribute)))
        .collect()
}
