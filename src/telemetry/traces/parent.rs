//! The trace context of the caller (W3C Trace Context).

use opentelemetry::{
    Context,
    propagation::{Extractor, TextMapPropagator},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::metadata::{KeyRef, MetadataMap};

/// The context in `traceparent` and `tracestate`. Malformed values are ignored.
pub(super) fn of_caller(metadata: &MetadataMap) -> Context {
    let context = Context::new();
    // Two different parents: none of them can be trusted (Trace Context, section 2.2.1).
    if metadata.get_all("traceparent").iter().count() > 1 {
        return context;
    }
    TraceContextPropagator::new().extract_with_context(&context, &Metadata(metadata))
}

struct Metadata<'a>(&'a MetadataMap);

impl Extractor for Metadata<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        let ascii = |key| match key {
            KeyRef::Ascii(key) => Some(key.as_str()),
            KeyRef::Binary(_) => None,
        };
        self.0.keys().filter_map(ascii).collect()
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TraceContextExt;

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn trace_id(parents: &[&str]) -> Option<String> {
        let mut metadata = MetadataMap::new();
        for parent in parents {
            metadata.append("traceparent", parent.parse().unwrap());
        }
        let context = of_caller(&metadata);
        let span = context.span();
        let parent = span.span_context();
        parent.is_valid().then(|| parent.trace_id().to_string())
    }

    #[test]
    fn only_a_well_formed_parent_counts() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(trace_id(&[PARENT]).as_deref(), Some(id));
        let malformed = [
            "",
            "00",
            "x",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-zbf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ];
        for parent in malformed {
            assert_eq!(trace_id(&[parent]), None, "{parent}");
        }
        assert_eq!(trace_id(&[]), None);
        assert_eq!(trace_id(&[PARENT, PARENT]), None);
    }
}
