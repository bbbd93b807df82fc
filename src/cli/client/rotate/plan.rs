//! What a rotation will do, how long it takes, and how to go back.

use std::time::Duration;

use crate::{
    cli::client::{
        Client,
        check::Preflight,
        output::text::{Style, counted, span, time},
        problem::Problem,
    },
    proto::rewrap as pb,
};

/// How many runs are searched for an earlier apply.
const RUNS: u32 = 100;

/// The plan, which is shown before the question.
pub(super) async fn text(client: &Client, preflight: &Preflight) -> Result<String, Problem> {
    let style = client.output.style;
    let target = &preflight.target;
    let report = preflight
        .dry_run
        .as_ref()
        .and_then(|run| run.report)
        .unwrap_or_default();
    let mut text = format!("\n{}\n", style.bold("What will happen"));
    text += &style.indented(&format!(
        "{} of {} will be re-wrapped to {target}, row by row. Tenants and nico-api continue to work.",
        counted(report.secrets_rewrapped, "secret"),
        counted(report.rows_updated, "organization"),
    ));
    for key in preflight
        .keys
        .keys
        .iter()
        .filter(|key| key.key_id != *target && key.secrets > 0)
    {
        let loaded = if key.in_secrets {
            ""
        } else {
            ", which is not in the secrets"
        };
        text += &style.indented(&format!(
            "{} under {}{loaded}",
            counted(key.secrets, "secret"),
            key.key_id
        ));
    }
    if report.rows_failed > 0 {
        text += &style.indented(&format!(
            "{} will fail and stay unchanged.",
            counted(report.rows_failed, "row")
        ));
    }
    text += &style.indented(&how_long(preflight, report.rows_updated).await?);
    Ok(text + &way_back(style, &preflight.keys, target))
}

/// How to go back to the old key.
pub(super) fn way_back(style: Style, keys: &pb::ListKeysResponse, target: &str) -> String {
    let mut others = keys
        .keys
        .iter()
        .filter(|key| key.key_id != target && key.in_secrets);
    let Some(old) = others.by_ref().max_by_key(|key| key.secrets) else {
        return String::new();
    };
    let id = &old.key_id;
    style.indented(&format!(
        "To go back: set current_encryption_key_id = \"{id}\", restart nico-api and nico-rewrap, and call rotate again."
    )) + &style.indented(&format!(
        "Keep {id} in the secrets until `nico-rewrap can-i-delete {id}` says yes."
    ))
}

/// How long the apply takes. An earlier apply of this site gives the rate.
async fn how_long(preflight: &Preflight, rows: u64) -> Result<String, Problem> {
    let request = pb::ListRunsRequest {
        page_size: RUNS,
        page_token: String::new(),
    };
    let session = &preflight.session;
    let page = session.ask(session.rewrap().list_runs(request)).await?;
    let earlier = page
        .runs
        .iter()
        .filter(|run| run.kind() == pb::RunKind::Apply)
        .find_map(rate);
    let took = preflight.dry_run.as_ref().and_then(|run| {
        let (start, end) = (time(run.start_time)?, time(run.end_time)?);
        end.duration_since(start).ok()
    });
    if let Some(rate) = earlier {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let seconds = rows as f64 / rate;
        let estimate = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        // An apply visits every row, as the dry run did.
        let estimate = span(estimate.max(took.unwrap_or_default()));
        return Ok(format!(
            "It takes about {estimate}, at the rate of the last apply."
        ));
    }
    let took = took.map_or_else(String::new, |took| {
        format!(" The dry run took {}.", span(took))
    });
    Ok(format!(
        "No earlier apply shows how long it takes. An apply takes longer than the dry run, because it writes.{took}"
    ))
}

/// Written rows per second of a run that wrote enough of them.
fn rate(run: &pb::Run) -> Option<f64> {
    let updated = run.report?.rows_updated;
    let took = time(run.end_time)?
        .duration_since(time(run.start_time)?)
        .ok()?;
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let rate = updated as f64 / took.as_secs_f64();
    (updated >= 100 && rate > 0.0).then_some(rate)
}
