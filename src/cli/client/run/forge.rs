//! `reencrypt` at a server without `nico.rewrap.v1`, by `forge.Forge`.

use std::fmt::Write as _;

use super::{Request, interrupt::EndSignal};
use crate::{
    cli::client::{
        Client,
        connection::Session,
        exit::Exit,
        output::{
            document::{ForgeFailure, ForgeReport, document},
            text::{count, plain},
        },
        problem::Problem,
    },
    proto::{forge as pb, rewrap::RunKind},
};

/// The header with the target key id that the caller expects. Not every server reads it.
const EXPECT_TARGET_HEADER: &str = "x-expect-target-key-id";
const RUN_ID_HEADER: &str = "x-rewrap-run-id";

/// One run. It ends with this client.
pub(super) async fn reencrypt(
    client: &Client,
    session: &Session,
    request: &Request,
) -> Result<Exit, Problem> {
    if request.max_rows_per_second > 0 || request.stop_after_failures > 0 {
        return Err(Problem::new(
            Exit::Refused,
            "this server does not have the service nico.rewrap.v1, which --max-rows-per-second and \
             --stop-after-failures need: leave them out, or upgrade the server",
        ));
    }
    client.output.note(
        "this server does not have the service nico.rewrap.v1: calling forge.Forge. There is no progress, and the run \
         stops if this command ends",
    );
    let is_dry_run = request.kind == RunKind::DryRun;
    if !is_dry_run {
        // An old server may ignore the header. So a dry run comes first, and its report has the
        // target key.
        client
            .output
            .note("making a dry run first, to compare the target key");
        expect_target(&call(client, session, request, true).await?, request)?;
    }
    let report = call(client, session, request, is_dry_run).await?;
    expect_target(&report, request)?;
    let exit = if report.rows_failed > 0 {
        Exit::Failures
    } else {
        Exit::Done
    };
    client
        .output
        .result(exit, &document("Report", &report), || text(&report));
    Ok(exit)
}

fn expect_target(report: &ForgeReport, request: &Request) -> Result<(), Problem> {
    let expected = &request.expect_target;
    if expected.is_empty() || *expected == report.target_key_id {
        return Ok(());
    }
    Err(Problem::new(
        if report.dry_run {
            Exit::Refused
        } else {
            Exit::Failures
        },
        format!(
            "this server re-wraps to key id {:?}, but --expect-target is {expected:?}: check which configuration this \
             server has",
            report.target_key_id
        ),
    ))
}

async fn call(
    client: &Client,
    session: &Session,
    request: &Request,
    dry_run: bool,
) -> Result<ForgeReport, Problem> {
    let mut message = tonic::Request::new(pb::ReencryptTenantIdentitySecretsRequest {
        organization_id: request.organization.clone(),
        dry_run,
    });
    if !request.expect_target.is_empty() {
        let expected = request.expect_target.parse().map_err(|_| {
            Problem::usage(
                "--expect-target: this server accepts only ASCII characters in the key id",
            )
        })?;
        message
            .metadata_mut()
            .insert(EXPECT_TARGET_HEADER, expected);
    }
    let mut signals = client.signals().await?;
    let mut forge = session.forge();
    let answer = tokio::select! {
        answer = session.call(forge.reencrypt_tenant_identity_secrets(message)) => answer?,
        asked = signals.next() => {
            let signal = if asked == EndSignal::Interrupt { "Ctrl-C" } else { "SIGTERM" };
            return Err(Problem::new(
                Exit::Incomplete,
                format!("{signal}: the server stops the run at its next row. Committed rows stay committed; run again"),
            ));
        }
    };
    let run_id = answer
        .metadata()
        .get(RUN_ID_HEADER)
        .and_then(|id| id.to_str().ok());
    let run_id = run_id.unwrap_or_default().to_owned();
    let report = answer.into_inner();
    Ok(ForgeReport {
        run_id,
        dry_run,
        target_key_id: report.current_encryption_key_id,
        rows_examined: report.rows_examined,
        rows_updated: report.rows_updated,
        rows_on_target: report.rows_skipped_all_on_target,
        rows_failed: report.rows_failed,
        secrets_rewrapped: report.fields_reencrypted,
        secrets_on_target: report.fields_skipped_on_target,
        failures: report
            .failures
            .into_iter()
            .map(|failure| ForgeFailure {
                organization_id: failure.organization_id,
                field: failure.field,
                message: failure.error,
            })
            .collect(),
    })
}

fn text(report: &ForgeReport) -> String {
    let (name, done) = if report.dry_run {
        ("Dry run", "would be re-wrapped")
    } else {
        ("Apply", "re-wrapped")
    };
    let number = |value: u32| count(value.into());
    let mut text = format!("{name} to target key {}\n", plain(&report.target_key_id));
    let _ = writeln!(
        text,
        "  rows        {} examined: {} {done}, {} on target, {} failed",
        number(report.rows_examined),
        number(report.rows_updated),
        number(report.rows_on_target),
        number(report.rows_failed)
    );
    let _ = writeln!(
        text,
        "  secrets     {} {done}, {} on target",
        number(report.secrets_rewrapped),
        number(report.secrets_on_target)
    );
    for failure in &report.failures {
        let _ = writeln!(
            text,
            "  failed      {} {}: {}",
            plain(&failure.organization_id),
            plain(&failure.field),
            plain(&failure.message)
        );
    }
    text
}
