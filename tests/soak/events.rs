//! What happens at the site again and again.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use tokio::time::sleep;

use super::faults::Fault;
use super::world::World;
use crate::certs::{self, root_ca, server_cert};
use crate::grpcurl::{Call, GrpcError, Report, reencrypt};
use crate::handshake::{Connection, handshake};
use crate::reload::{H2, until};
use crate::rewrap_client::{ask, ended};
use crate::seal::key;

#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// Every secret is re-wrapped to the new key, and back.
    Rotation,
    BothApply,
    DryRun,
    Census,
    Questions,
    AuditLogRotated,
    SecretsChanged,
    CertificateRenewed,
    Strangers,
    ClientLeaves,
    Fault(Fault),
}

/// Those of one round.
pub(super) const EVENTS: [Event; 16] = [
    Event::Rotation,
    Event::Rotation,
    Event::BothApply,
    Event::DryRun,
    Event::Census,
    Event::Questions,
    Event::AuditLogRotated,
    Event::SecretsChanged,
    Event::CertificateRenewed,
    Event::Strangers,
    Event::ClientLeaves,
    Event::Fault(Fault::Cut),
    Event::Fault(Fault::Silence),
    Event::Fault(Fault::Restart),
    Event::Fault(Fault::Crash),
    Event::Fault(Fault::InstanceKilled),
];

impl World {
    pub(super) async fn happens(&mut self, event: Event) {
        match event {
            Event::Rotation => self.rotation().await,
            Event::BothApply => self.both_apply().await,
            Event::DryRun => {
                let report = self.complete(0, true).await;
                assert_eq!(report.rows_failed, 0, "{report:?}");
            }
            Event::Census => self.census().await,
            Event::Questions => self.questions().await,
            Event::AuditLogRotated => self.audit_log_rotated().await,
            Event::SecretsChanged => self.secrets_changed().await,
            Event::CertificateRenewed => self.certificate_renewed().await,
            Event::Strangers => self.strangers().await,
            Event::ClientLeaves => self.client_leaves().await,
            Event::Fault(fault) => self.fault(fault).await,
        }
    }

    /// A run that nothing disturbs. An apply of an instance that was killed may still hold the
    /// lock of the site for a moment.
    async fn complete(&mut self, number: usize, dry_run: bool) -> Report {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let call = Call::new(self.server(number), certs::admin());
            match call.reencrypt(&json!({"dryRun": dry_run})).await {
                Ok(report) => {
                    self.counted(dry_run, &report);
                    return report;
                }
                Err(error) => {
                    let reason = error.reason();
                    let is_held = reason.as_deref() == Some("APPLY_UNDER_WAY");
                    assert!(is_held && Instant::now() < deadline, "{error:?}");
                    sleep(Duration::from_millis(500)).await;
                }
            }
        }
    }

    pub(super) fn counted(&mut self, dry_run: bool, report: &Report) {
        self.count(if dry_run { "dry runs" } else { "applies" }, 1);
        if !dry_run {
            self.count("rows re-wrapped", report.rows_updated.into());
        }
        let sum = report.rows_updated + report.rows_skipped_all_on_target + report.rows_failed;
        assert_eq!(report.rows_examined, sum, "{report:?}");
    }

    async fn rotation(&mut self) {
        for number in 0..2 {
            let report = self.complete(number, false).await;
            assert_eq!(report.failures, [], "{report:?}");
            assert!(report.rows_updated > 0, "{report:?}");
        }
        self.count("rotations", 1);
    }

    async fn both_apply(&mut self) {
        let applies = tokio::join!(
            reencrypt(self.server(0), certs::admin(), json!({})),
            reencrypt(self.server(1), certs::admin(), json!({}))
        );
        let both: [Result<Report, GrpcError>; 2] = applies.into();
        for answer in both {
            match answer {
                Ok(report) => {
                    assert_eq!(report.failures, [], "{report:?}");
                    self.counted(false, &report);
                }
                Err(error) => {
                    let reason = error.reason();
                    assert_eq!(reason.as_deref(), Some("APPLY_UNDER_WAY"), "{error:?}");
                }
            }
        }
    }

    async fn census(&mut self) {
        let server = self.server(0);
        let request = json!({"kind": "RUN_KIND_CENSUS", "site": {}});
        let run = ask(server, "StartRun", request).await;
        let run = ended(server, &run).await;
        assert_eq!(run["state"], "RUN_STATE_FINISHED", "{run}");
        self.count("censuses", 1);
    }

    async fn questions(&mut self) {
        let server = self.server(0);
        for method in ["GetStatus", "ListKeys", "ListRuns", "WhoAmI"] {
            ask(server, method, json!({})).await;
        }
        assert_eq!(server.get("/livez").await.0, 200);
        server.metrics().await;
        self.count("questions", 6);
    }

    /// As logrotate does it.
    async fn audit_log_rotated(&mut self) {
        for number in 0..2 {
            let log = self.audit_log(number);
            std::fs::rename(&log, log.with_extension("old")).unwrap();
            self.server(number).signal("HUP");
            let deadline = Instant::now() + Duration::from_secs(60);
            while !log.exists() {
                assert!(
                    Instant::now() < deadline,
                    "{} does not exist",
                    log.display()
                );
                sleep(Duration::from_millis(10)).await;
            }
        }
        self.count("rotations of the audit log", 2);
    }

    /// A key is added to the file, and removed again.
    async fn secrets_changed(&mut self) {
        let before = std::fs::read_to_string(&self.secrets).unwrap();
        let key = BASE64_STANDARD.encode(key("kv3"));
        let added = before.replace(r#""kv1":"#, &format!(r#""kv3":"{key}","kv1":"#));
        assert_ne!(before, added);
        for (text, is_changed) in [(added, 1.0), (before, 0.0)] {
            let new = self.secrets.with_extension("new");
            std::fs::write(&new, text).unwrap();
            std::fs::rename(&new, &self.secrets).unwrap();
            let server = self.server(0);
            server.signal("HUP");
            let metric = "nico_rewrap_configuration_changed_on_disk";
            until(server, metric, &[("source", "secrets_file")], is_changed).await;
        }
        self.count("changes of the secrets file", 2);
    }

    async fn certificate_renewed(&mut self) {
        let name = "nico_rewrap_tls_reloads_total";
        let labels = [("outcome", "success")];
        let before = self.server(0).metric(name, &labels).await;
        self.files.pair(&server_cert().signed_by(root_ca()));
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.server(0).metric(name, &labels).await <= before {
            assert!(Instant::now() < deadline, "{}", self.server(0).log_text());
            sleep(Duration::from_millis(10)).await;
        }
        self.count("renewed certificates", 1);
    }

    /// Clients that may not call, that have no certificate, or that are silent.
    async fn strangers(&mut self) {
        let server = self.server(0);
        let denied = reencrypt(server, certs::machine(), json!({})).await;
        assert_eq!(denied.unwrap_err().code, "PERMISSION_DENIED");
        assert!(handshake(server, None, &[]).await.is_err());
        drop(Connection::open(server, Some(certs::machine()), &H2));
        self.count("strangers", 3);
    }

    async fn client_leaves(&mut self) {
        let call = reencrypt(self.server(0), certs::admin(), json!({}));
        let _ = tokio::time::timeout(Duration::from_millis(400), call).await;
        self.count("clients that left", 1);
    }
}
