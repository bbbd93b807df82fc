//! The span of a run.

use crate::{
    run::{
        Report, RunSpec, Scope,
        record::{Kind, RunProblem, RunState},
    },
    telemetry::{Span, Trace},
};

/// Starts the span of a run.
pub(super) fn start(trace: &Trace, spec: &RunSpec, target: &str) -> Span {
    let span = trace.span("run");
    if span.is_recording() {
        span.set("nico_rewrap.run_id", spec.id.clone());
        span.set("nico_rewrap.kind", spec.kind.label());
        span.set("nico_rewrap.dry_run", spec.kind == Kind::DryRun);
        // Never the organization.
        let scope = match spec.scope {
            Scope::Site => "site",
            Scope::Organization(_) => "organization",
        };
        span.set("nico_rewrap.scope", scope);
        span.set("nico_rewrap.target_key_id", target.to_owned());
    }
    span
}

/// Sets how the run has ended.
pub(super) fn set_end(
    span: &Span,
    state: RunState,
    report: &Report,
    durable: bool,
    problem: Option<&RunProblem>,
) {
    let counts = &report.counts;
    span.set("nico_rewrap.state", state.name());
    span.set("nico_rewrap.durable", durable);
    span.count("nico_rewrap.rows", report.rows_examined());
    span.count("nico_rewrap.rows_updated", counts.rows_updated);
    span.count("nico_rewrap.rows_failed", counts.rows_failed);
    span.count("nico_rewrap.rows_in_doubt", counts.rows_in_doubt);
    if let Some(problem) = problem {
        span.fail(problem.reason.clone());
    }
}
