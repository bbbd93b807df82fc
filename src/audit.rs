//! One record for each call, allowed or refused, written when its outcome is
//! known. Records have the `tracing` target `audit`.

use std::{sync::Arc, time::Duration};

use crate::{
    error::ServiceError,
    identity::{Caller, Identity},
    listener::Peer,
    run::{Mode, Report, Scope},
    telemetry,
};

/// What is known of a call so far.
#[derive(Debug)]
pub(crate) struct Record {
    peer: Option<Arc<Peer>>,
    method: String,
    asked: Option<(String, Mode)>,
    report: Report,
}

impl Record {
    pub(crate) fn new(peer: Option<Arc<Peer>>, method: &str) -> Self {
        Self {
            peer,
            method: method.to_owned(),
            asked: None,
            report: Report::default(),
        }
    }

    /// What the request wants; no scope where the organization id can't be one.
    pub(crate) fn asked(&mut self, scope: Option<&Scope>, mode: Mode) {
        let scope = scope.map_or_else(|| "organization (invalid)".to_owned(), Scope::to_string);
        self.asked = Some((scope, mode));
    }

    /// The run ended, with or without an error.
    pub(crate) fn counted(&mut self, report: &Report) {
        self.report = report.clone();
    }

    /// Writes the record, and the failures of the run to the log.
    pub(crate) fn write(self, duration: Duration, error: Option<&ServiceError>) {
        let report = &self.report;
        for failure in report.failures() {
            tracing::warn!(
                organization_id = failure.organization_id,
                field = failure.field,
                error = failure.error,
                "row failed"
            );
        }
        if report.failures_omitted > 0 {
            tracing::warn!(
                omitted = report.failures_omitted,
                "more failures than a report can carry"
            );
        }

        let outcome = error.map_or("OK", |error| error.code_and_reason().1);
        let caller = self.peer.as_ref().map(|peer| &peer.caller);
        let identity = caller.and_then(|caller| caller.identity.as_ref());
        let (scope, mode) = match &self.asked {
            Some((scope, mode)) => (scope.as_str(), Some(*mode)),
            None => ("unknown", None),
        };
        tracing::info!(
            target: "audit",
            outcome,
            method = self.method,
            error = error.map(tracing::field::display),
            identity_kind = caller.map_or("none", Caller::kind),
            identity = identity.map(Identity::name),
            identity_organization = identity.and_then(Identity::organization),
            identity_group = identity.and_then(Identity::group),
            certificate_serial = caller.map(|caller| caller.serial.as_str()),
            certificate_issuer = caller.map(|caller| caller.issuer.as_str()),
            peer = self.peer.as_ref().map(|peer| tracing::field::display(peer.address)),
            scope,
            dry_run = mode.map(|mode| mode == Mode::DryRun),
            rows_examined = report.rows_examined(),
            rows_updated = report.rows_updated,
            rows_skipped_all_on_target = report.rows_on_target,
            rows_failed = report.rows_failed,
            fields_reencrypted = report.fields_reencrypted,
            fields_skipped_on_target = report.fields_on_target,
            duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
            "call"
        );
        telemetry::call_ended(outcome, caller.map_or("none", Caller::kind), duration);
    }
}
