//! Where traces are sent: `[rewrap].otlp_endpoint`, or the variables of OpenTelemetry.
//!
//! A wrong setting prevents the start. A wrong `OTEL_*` variable does not: a cluster may set such
//! variables for all programs. The SDK reads the variables that are not read here.

use std::{path::Path, sync::Arc};

use rustls::ClientConfig;

use super::{environment::Environment, settings::Settings};
use crate::{
    telemetry::{Endpoint, TraceOptions},
    tls,
};

const ENDPOINT: &str = "rewrap.otlp_endpoint";
const DISABLED: &str = "OTEL_SDK_DISABLED";
const EXPORTER: &str = "OTEL_TRACES_EXPORTER";
const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const RATIO: &str = "OTEL_TRACES_SAMPLER_ARG";

/// Variables with a more specific and a general name. The first one that is set applies.
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];
const PROTOCOLS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
];
const CA_FILES: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
];
const HEADERS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "OTEL_EXPORTER_OTLP_HEADERS",
];

/// The samplers of the SDK.
const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

/// The first of these variables that has a value, and the value.
fn first<'a>(
    environment: &'a Environment,
    names: &[&'static str],
) -> Option<(&'static str, &'a str)> {
    let value = |name: &&'static str| {
        let value = environment.get(*name)?.as_ref()?.trim();
        (!value.is_empty()).then_some((*name, value))
    };
    names.iter().find_map(value)
}

/// Reads where traces are sent.
pub(super) fn read(
    settings: &mut Settings,
    environment: &Environment,
    warnings: &mut Vec<String>,
) -> Option<TraceOptions> {
    let mut warn = |name: &str, what: &str| {
        warnings.push(format!("environment variable {name}: {what}"));
    };
    let is_off = first(environment, &[DISABLED])
        .is_some_and(|(_, value)| value.eq_ignore_ascii_case("true"))
        || first(environment, &[EXPORTER]).is_some_and(|(_, value)| value == "none");
    let options = if let Some(text) = settings.non_empty_string(ENDPOINT) {
        match options(&text, environment) {
            Ok(options) => Some(options),
            Err(problem) => {
                settings.problem(ENDPOINT, problem);
                None
            }
        }
    } else if let Some((name, text)) = first(environment, &ENDPOINTS).filter(|_| !is_off) {
        match (first(environment, &PROTOCOLS), options(text, environment)) {
            (Some((protocol, value)), _) if value != "grpc" => {
                warn(
                    protocol,
                    "is not grpc, the only protocol for traces here: no traces are sent",
                );
                None
            }
            (_, Ok(options)) => Some(options),
            (_, Err(problem)) => {
                warn(name, &format!("{problem}: no traces are sent"));
                None
            }
        }
    } else {
        None
    };
    let options = options.filter(|_| !is_off)?;
    if let Some((name, _)) = first(environment, &HEADERS) {
        warn(name, "is not supported: traces are sent without headers");
    }
    if let Some((name, sampler)) = first(environment, &[SAMPLER]) {
        let ratio = first(environment, &[RATIO]).map(|(_, value)| value.parse::<f64>());
        let is_ratio = matches!(ratio, Some(Ok(ratio)) if (0.0..=1.0).contains(&ratio));
        if !SAMPLERS.contains(&sampler) {
            let samplers = SAMPLERS.join(", ");
            warn(
                name,
                &format!("is not one of {samplers}: parentbased_always_on applies"),
            );
        } else if sampler.ends_with("traceidratio") && !is_ratio {
            warn(RATIO, "is not a number from 0 to 1: all traces are sent");
        }
    }
    Some(options)
}

fn options(text: &str, environment: &Environment) -> Result<TraceOptions, String> {
    let endpoint = Endpoint::parse(text).map_err(|error| error.to_string())?;
    let tls = if endpoint.is_https() {
        Some(Arc::new(tls(environment)?))
    } else {
        None
    };
    Ok(TraceOptions { endpoint, tls })
}

/// The CA of the collector. There is no way to skip the verification.
fn tls(environment: &Environment) -> Result<ClientConfig, String> {
    let Some((name, file)) = first(environment, &CA_FILES) else {
        return Err(format!(
            "is an https address: set the environment variable {} to the file with the CA of the \
             collector, or use http",
            CA_FILES[1]
        ));
    };
    let mut config = tls::trusting(Path::new(file)).map_err(|error| format!("{name}: {error}"))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}
