//! Sends spans to the collector, and counts them.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use opentelemetry::Context;
use opentelemetry_proto::{
    tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    transform::{
        common::tonic::ResourceAttributesWithSchema,
        trace::tonic::group_spans_by_resource_and_scope,
    },
};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    trace::{BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor},
};
use tokio::{runtime::Handle, time::timeout};
use tonic::{Status, codegen::http::uri::PathAndQuery};

use super::{TraceOptions, connection::Connection};
use crate::telemetry::metrics::{span_ended, spans_exported};

/// The method of the collector.
const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// Time limit for one export, with its connection.
const EXPORT_LIMIT: Duration = Duration::from_secs(10);

/// Minimum time between two log lines about failed exports.
const LOG_INTERVAL: Duration = Duration::from_secs(600);

/// Sends spans to the collector.
#[derive(Debug)]
pub(super) struct Exporter {
    options: TraceOptions,
    resource: ResourceAttributesWithSchema,
    /// The SDK calls the exporter on a thread without a runtime.
    runtime: Handle,
    /// When a failure was logged last.
    logged: Mutex<Option<Instant>>,
}

impl Exporter {
    pub(super) fn new(options: TraceOptions) -> Self {
        Self {
            options,
            resource: ResourceAttributesWithSchema::default(),
            runtime: Handle::current(),
            logged: Mutex::default(),
        }
    }

    fn log(&self, error: &Status) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            *logged = Some(Instant::now());
            let collector = &self.options.endpoint;
            tracing::warn!(
                %collector,
                code = ?error.code(),
                error = error.message(),
                "spans cannot be sent to the collector and are lost"
            );
        }
    }
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let request = ExportTraceServiceRequest { resource_spans };
        let sent = self.runtime.spawn(send(self.options.clone(), request));
        // An error of the task means that the program ends.
        let sent = sent
            .await
            .map_err(|error| OTelSdkError::InternalFailure(error.to_string()))?;
        match sent {
            Ok(rejected) => {
                spans_exported(spans.saturating_sub(rejected));
                Ok(())
            }
            Err(error) => {
                self.log(&error);
                Err(OTelSdkError::InternalFailure(error.to_string()))
            }
        }
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.into();
    }
}

/// Sends spans. Returns how many of them the collector has rejected.
async fn send(options: TraceOptions, request: ExportTraceServiceRequest) -> Result<u64, Status> {
    let export = async {
        let connection = Connection::open(&options).await?;
        let path = PathAndQuery::from_static(EXPORT);
        connection
            .call::<_, ExportTraceServiceResponse>(path, request)
            .await
    };
    let answer = timeout(EXPORT_LIMIT, export).await.unwrap_or_else(|_| {
        let seconds = EXPORT_LIMIT.as_secs();
        Err(Status::deadline_exceeded(format!(
            "no answer within {seconds} seconds"
        )))
    })?;
    let rejected = answer.partial_success.map(|part| part.rejected_spans);
    Ok(rejected
        .and_then(|spans| spans.try_into().ok())
        .unwrap_or(0))
}

/// Counts the spans that have ended, and gives them to the processor of the SDK.
#[derive(Debug)]
pub(super) struct Counted(pub(super) BatchSpanProcessor);

impl SpanProcessor for Counted {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.0.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        // The SDK records no other span, but the processor of the SDK would send it.
        if span.span_context.is_sampled() {
            span_ended();
            self.0.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}
