//! The content of audit records, and its encoding as a line of JSON.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use serde::Serialize;
use serde_json::ser::{CharEscape, CompactFormatter, Formatter, Serializer};

use crate::{
    auth::identity::{Caller, Identity},
    auth::peer::Peer,
    auth::refusal::Refusal,
    run::{Report, Scope, record::Kind},
};

/// Length limit, in characters, of texts that the client chooses: the path of the request
/// and the organization id.
const MAX_TEXT: usize = 256;

/// How many failures of a run have a log line of their own, and how many causes.
const MAX_DETAILS: usize = 100;
const MAX_CAUSES: usize = 20;

/// What is known about a call so far.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    run_id: String,
    peer: Option<Arc<Peer>>,
    method: String,
    asked: Option<(String, Option<Kind>)>,
    report: Report,
    durable: bool,
    /// Whether the call may have accessed the database. All clones share this flag.
    begun: Arc<AtomicBool>,
}

impl Record {
    pub(crate) fn new(run_id: &str, peer: Option<Arc<Peer>>, method: &str) -> Self {
        Self {
            run_id: run_id.to_owned(),
            peer,
            method: cut(method),
            asked: None,
            report: Report::default(),
            durable: true,
            begun: Arc::default(),
        }
    }

    pub(super) fn begin(&self) {
        self.begun.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    /// Sets scope and mode of the request. The scope is `None` if the organization id is
    /// invalid.
    pub(crate) fn set_request(&mut self, scope: Option<&Scope>, kind: Option<Kind>) {
        let scope = scope.map_or_else(|| "organization (invalid)".to_owned(), Scope::to_string);
        self.asked = Some((cut(&scope), kind));
    }

    /// Sets the counts of the run, which may have ended with an error. `durable` is false if a
    /// crash of Postgres could undo its writes.
    pub(crate) fn set_report(&mut self, report: &Report, durable: bool) {
        self.report = report.clone();
        self.durable = durable;
    }

    /// The kind of the client's identity, also a metric label.
    pub(super) fn identity_kind(&self) -> &'static str {
        let caller = self.peer.as_ref().map(|peer| &peer.caller);
        caller.map_or("none", Caller::kind)
    }

    /// Logs the first failures of the run, then all of them by cause.
    pub(super) fn log_failures(&self) {
        for failure in self.report.failures().take(MAX_DETAILS) {
            tracing::warn!(
                organization_id = failure.organization_id,
                field = failure.field,
                reason = failure.reason,
                error = failure.error,
                "row failed"
            );
        }
        let causes = self.report.groups();
        let (logged, rest) = causes.split_at(causes.len().min(MAX_CAUSES));
        for cause in logged {
            tracing::warn!(
                reason = cause.reason,
                key_id = cause.key_id,
                secrets = cause.secrets,
                organizations = cause.organizations,
                "failures by cause"
            );
        }
        if !rest.is_empty() {
            tracing::warn!(
                causes = rest.len(),
                secrets = rest.iter().map(|cause| cause.secrets).sum::<u64>(),
                "failures of other causes"
            );
        }
        let failures = causes.iter().map(|cause| cause.secrets).sum::<u64>();
        if failures > MAX_DETAILS as u64 {
            tracing::warn!(
                omitted = failures - MAX_DETAILS as u64,
                "the log has only the first failures of this run: ListFailures has all of them"
            );
        }
        if self.report.failures_omitted > 0 {
            tracing::warn!(
                omitted = self.report.failures_omitted,
                "more failures than a report can carry"
            );
        }
    }

    /// The line before the call accesses the database.
    pub(super) fn started(&self) -> String {
        line(&self.common("call started"))
    }

    /// The line at the end of the call, with its outcome.
    pub(super) fn ended(&self, duration: Duration, outcome: &Outcome) -> String {
        let report = &self.report;
        let refusal = outcome.refusal.as_ref();
        line(&Ended {
            common: self.common("call"),
            outcome: outcome.name,
            error: outcome.error.as_deref(),
            denied_by: refusal.map(|refusal| refusal.rule.setting()),
            seen: refusal.map(|refusal| refusal.seen.as_str()),
            expected: refusal.map(|refusal| refusal.expected.as_str()),
            rows_examined: report.rows_examined(),
            rows_updated: report.counts.rows_updated,
            rows_skipped_all_on_target: report.counts.rows_on_target,
            rows_failed: report.counts.rows_failed,
            rows_in_doubt: report.counts.rows_in_doubt,
            fields_reencrypted: report.counts.secrets_rewrapped,
            fields_skipped_on_target: report.counts.secrets_on_target,
            durable: self.durable,
            duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        })
    }

    fn common(&self, message: &'static str) -> Common<'_> {
        let caller = self.peer.as_ref().map(|peer| &peer.caller);
        let identity = caller.and_then(|caller| caller.identity.as_ref());
        let certificate = caller.and_then(Caller::certificate);
        let kind = self.asked.as_ref().and_then(|(_, kind)| *kind);
        Common {
            timestamp: humantime::format_rfc3339_micros(SystemTime::now()).to_string(),
            level: "INFO",
            target: "audit",
            message,
            run_id: &self.run_id,
            method: &self.method,
            identity_kind: self.identity_kind(),
            identity: identity.map(Identity::name),
            identity_organization: identity.and_then(Identity::organization),
            identity_group: identity.and_then(Identity::group),
            certificate_serial: certificate.map(|(serial, _)| serial),
            certificate_issuer: certificate.map(|(_, issuer)| issuer),
            peer: self.peer.as_ref().map(|peer| peer.address.to_string()),
            scope: self.asked.as_ref().map_or("unknown", |(scope, _)| scope),
            kind: kind.map(Kind::label),
            dry_run: kind.map(|kind| kind == Kind::DryRun),
        }
    }
}

fn cut(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

/// The outcome of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// `OK`, or the reason of the error.
    pub(crate) name: &'static str,
    /// The message of the error.
    pub(crate) error: Option<String>,
    /// The rule that refused the caller.
    pub(crate) refusal: Option<Refusal>,
}

impl Outcome {
    /// A successful call.
    pub(crate) const OK: Self = Self {
        name: "OK",
        error: None,
        refusal: None,
    };
}

#[derive(Serialize)]
struct Common<'a> {
    timestamp: String,
    level: &'static str,
    target: &'static str,
    message: &'static str,
    run_id: &'a str,
    method: &'a str,
    identity_kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity_organization: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity_group: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_serial: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_issuer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    scope: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dry_run: Option<bool>,
}

#[derive(Serialize)]
struct Ended<'a> {
    #[serde(flatten)]
    common: Common<'a>,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    denied_by: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seen: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<&'a str>,
    rows_examined: u64,
    rows_updated: u64,
    rows_skipped_all_on_target: u64,
    rows_failed: u64,
    rows_in_doubt: u64,
    fields_reencrypted: u64,
    fields_skipped_on_target: u64,
    durable: bool,
    duration_ms: u64,
}

fn line(record: &impl Serialize) -> String {
    let mut bytes = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut bytes, Ascii(CompactFormatter));
    // A struct of texts and numbers always has a JSON form.
    let _ = record.serialize(&mut serializer);
    bytes.push(b'\n');
    String::from_utf8(bytes).unwrap_or_default()
}

/// Writes JSON in ASCII only. Text from a certificate can then contain no line separator of
/// any kind and no character that reverses the text direction.
struct Ascii(CompactFormatter);

impl Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        for character in fragment.chars() {
            if (' '..='~').contains(&character) {
                self.0
                    .write_string_fragment(writer, character.encode_utf8(&mut [0; 4]))?;
                continue;
            }
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }

    fn write_char_escape<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        self.0.write_char_escape(writer, escape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::peer::PeerAddress;

    #[test]
    fn no_text_can_forge_a_line() {
        let hostile = [
            "x\n{\"target\":\"audit\",\"outcome\":\"OK\"}",
            "x\r\nx",
            "\",\"outcome\":\"OK\",\"x\":\"",
            "\u{2028}\u{2029}\u{85}\u{b}\u{c}",
            "\u{202e}evil\u{200b}",
            "\0\u{1}\u{7f}\u{9b}",
            "\\",
            "\u{1f600}é",
        ];
        for name in hostile {
            let peer = Peer {
                address: PeerAddress::Tcp("[::1]:1".parse().unwrap()),
                caller: Caller {
                    identity: Some(Identity::Service {
                        name: name.to_owned(),
                    }),
                    rule: "",
                    refusal: None,
                    serial: name.to_owned(),
                    issuer: name.to_owned(),
                },
            };
            let record = Record::new("id", Some(Arc::new(peer)), name);
            let outcome = Outcome {
                name: "INTERNAL",
                error: Some("internal error".to_owned()),
                refusal: None,
            };
            for line in [
                record.started(),
                record.ended(Duration::from_millis(7), &outcome),
            ] {
                let body = line.strip_suffix('\n').unwrap();
                assert!(body.bytes().all(|b| (b' '..=b'~').contains(&b)), "{body}");
                let json: serde_json::Value = serde_json::from_str(body).unwrap();
                for field in [
                    "identity",
                    "certificate_issuer",
                    "certificate_serial",
                    "method",
                ] {
                    assert_eq!(json[field], name);
                }
                assert_eq!(json["target"], "audit");
            }
        }
    }
}
