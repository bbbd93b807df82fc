//! Traces: spans of calls and runs, sent to an OpenTelemetry collector (OTLP over gRPC).
//!
//! A part of the program that has a [`Trace`] starts its spans below it. Without a collector, a
//! trace is empty, and starting a span does nothing. The SDK queues spans that have ended and
//! exports them on a thread of its own. A full queue drops spans, so a collector never delays a run.
//!
//! A span has no name of an organization and nothing of a secret. `docs/reference/traces.md` lists
//! all spans and their attributes.

mod connection;
mod endpoint;
mod exporter;
mod parent;

use std::{borrow::Cow, fmt, sync::Arc, sync::OnceLock, time::Duration};

use opentelemetry::{
    Context, KeyValue, Value,
    trace::{SpanBuilder, SpanKind, Status, TraceContextExt, Tracer, TracerProvider},
};
use opentelemetry_sdk::{
    Resource,
    trace::{BatchSpanProcessor, SdkTracer, SdkTracerProvider},
};
use rustls::ClientConfig;
use tonic::metadata::MetadataMap;

pub use self::endpoint::{Endpoint, InvalidEndpoint};
use self::exporter::{Counted, Exporter};

/// The value of `service.name` if the environment sets none, and the scope of all spans.
const SERVICE: &str = "nico-rewrap";

/// The beginning of the name that the SDK gives a service without a name.
const UNNAMED_SERVICE: &str = "unknown_service";

static STARTED: OnceLock<Started> = OnceLock::new();

struct Started {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// Where traces are sent.
#[derive(Clone)]
pub struct TraceOptions {
    /// The collector.
    pub endpoint: Endpoint,
    /// Verifies the certificate of the collector. `None` only for an `http` address.
    pub tls: Option<Arc<ClientConfig>>,
}

/// Shows only the address.
impl fmt::Debug for TraceOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.endpoint.to_string())
    }
}

/// Starts to send traces. The SDK reads its `OTEL_*` variables. Must be called in a runtime, at
/// most once.
pub(crate) fn start_traces(options: TraceOptions) {
    let mut resource = Resource::builder().build();
    let name = resource.get(&"service.name".into());
    if name.is_none_or(|name| name.as_str().starts_with(UNNAMED_SERVICE)) {
        let named = Resource::builder().with_service_name(SERVICE);
        resource = named.build();
    }
    let processor = BatchSpanProcessor::builder(Exporter::new(options)).build();
    let provider = SdkTracerProvider::builder()
        .with_resource(resource)
        .with_span_processor(Counted(processor))
        .build();
    let tracer = provider.tracer(SERVICE);
    let _ = STARTED.set(Started { provider, tracer });
}

/// Sends the spans that have ended, and waits at most `limit` for the collector.
pub(crate) async fn stop_traces(limit: Duration) {
    let Some(started) = STARTED.get() else {
        return;
    };
    // Blocking: it waits for the thread of the SDK. An error means that spans are lost.
    let stop = move || started.provider.shutdown_with_timeout(limit);
    let stop = tokio::task::spawn_blocking(stop);
    let _ = tokio::time::timeout(limit, stop).await;
}

/// Where new spans belong in a trace. Empty without a collector.
#[derive(Debug, Clone, Default)]
pub struct Trace(Option<Context>);

impl Trace {
    /// A new trace.
    pub(crate) fn new() -> Self {
        Self(STARTED.get().map(|_| Context::new()))
    }

    /// The trace of the caller, if the metadata of the request has a valid one; otherwise a new
    /// trace.
    pub(crate) fn of_caller(metadata: &MetadataMap) -> Self {
        Self(STARTED.get().map(|_| parent::of_caller(metadata)))
    }

    /// Starts a span.
    pub(crate) fn span(&self, name: &'static str) -> Span {
        self.start(name, SpanKind::Internal)
    }

    /// Starts the span of a call. `path` is the path of the method.
    pub(crate) fn call(&self, path: &'static str) -> Span {
        let method = path.trim_start_matches('/');
        let span = self.start(method, SpanKind::Server);
        if let Some((service, method)) = method.split_once('/') {
            span.set("rpc.system", "grpc");
            span.set("rpc.service", service);
            span.set("rpc.method", method);
        }
        span
    }

    fn start(&self, name: &'static str, kind: SpanKind) -> Span {
        let (Some(parent), Some(started)) = (&self.0, STARTED.get()) else {
            return Span::default();
        };
        let builder = SpanBuilder::from_name(name).with_kind(kind);
        let span = started.tracer.build_with_context(builder, parent);
        Span(Trace(Some(parent.with_span(span))))
    }
}

/// A part of a trace. It ends when this value is dropped. Nothing without a collector.
#[derive(Debug, Default)]
pub(crate) struct Span(Trace);

impl Span {
    /// Where spans below this one belong.
    pub(crate) fn trace(&self) -> Trace {
        self.0.clone()
    }

    /// Whether attributes of this span are kept. If not, they need not be computed.
    pub(crate) fn is_recording(&self) -> bool {
        let context = self.0.0.as_ref();
        context.is_some_and(|context| context.span().is_recording())
    }

    /// Sets an attribute.
    pub(crate) fn set(&self, key: &'static str, value: impl Into<Value>) {
        if let Some(context) = &self.0.0 {
            context.span().set_attribute(KeyValue::new(key, value));
        }
    }

    /// Sets an attribute to a count.
    pub(crate) fn count(&self, key: &'static str, count: impl TryInto<i64>) {
        self.set(key, count.try_into().unwrap_or(i64::MAX));
    }

    /// Marks the span as failed. `reason` is a stable word, not a message.
    pub(crate) fn fail(&self, reason: impl Into<Cow<'static, str>>) {
        if let Some(context) = &self.0.0 {
            context.span().set_status(Status::error(reason));
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(context) = &self.0.0 {
            context.span().end();
        }
    }
}
