//! A census: counts the secrets of the site by the key id that they name.

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Census, RunError, RunIo,
    pacer::Pacer,
    progress::Meter,
    readable::check_preflight,
    spans::{length, read_page, set_error},
    until_stopped,
};
use crate::{
    domain::{census::Tally, envelope::prefix_length, keyring::Keyring},
    run::{Mode, Site},
    store::{CensusScan, RowError, ScanMode, StoreError},
    telemetry::Span,
};

/// The minimum and the maximum number of characters of a text that a census reads first. Postgres
/// needs time for every character: a third less of them makes the scan faster by a quarter. The
/// minimum is enough for a key id of 6 characters. The maximum is enough for every key id without
/// escapes. The whole text is read where these characters do not contain the key id.
const PREFIX_CHARACTERS: std::ops::RangeInclusive<usize> = 48..=384;

/// Counts all secrets. With `exclusively`, this fails if another instance takes an exclusive
/// census now. A run that may have missed rows ends with an error.
pub(super) async fn census(
    site: &Site,
    run_id: &str,
    exclusively: bool,
    pacer: &Pacer,
    io: &RunIo,
    stop: &CancellationToken,
) -> Result<Census, RunError> {
    let store = &site.store;
    check_preflight(&until_stopped(stop, store.preflight()).await?, Mode::DryRun)?;
    let mut mode = ScanMode::Prefix {
        characters: prefix_characters(&site.keyring),
    };
    let mut attempt = 0;
    let census = loop {
        attempt += 1;
        io.meter.restart();
        let span = io.trace.span("census");
        let scan = Scan {
            mode,
            exclusively,
            span: &span,
        };
        let counted = count(site, &scan, run_id, pacer, &io.meter, stop).await;
        if let Err(error) = &counted {
            set_error(&span, error);
        }
        drop(span);
        match counted {
            Ok(census) => break census,
            Err(RunError::Store(error)) if error.is_of_some_row() => {
                if mode == ScanMode::Careful {
                    return Err(error.into_unavailable().into());
                }
                mode = ScanMode::Careful;
            }
            Err(RunError::Store(error))
                if can_pass(&error) && attempt < store.options().max_attempts =>
            {
                tracing::warn!(%error, "the census begins again");
                if let StoreError::StalePlan(_) = error {
                    store.clear_statement_caches();
                }
                store.retry_backoff().await;
            }
            Err(RunError::Store(error)) => return Err(error.into_unavailable().into()),
            Err(error) => return Err(error),
        }
    };
    // A row-level security policy may have been created during the census.
    check_preflight(&until_stopped(stop, store.preflight()).await?, Mode::DryRun)?;
    Ok(census)
}

/// Whether a new snapshot can solve the problem.
fn can_pass(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::ConnectionLost(_)
            | StoreError::Conflict(_)
            | StoreError::StalePlan(_)
            | StoreError::Row(RowError::TableLocked)
    )
}

/// How an attempt reads the table.
struct Scan<'a> {
    mode: ScanMode,
    exclusively: bool,
    span: &'a Span,
}

async fn count(
    site: &Site,
    Scan {
        mode,
        exclusively,
        span,
    }: &Scan<'_>,
    run_id: &str,
    pacer: &Pacer,
    meter: &Meter,
    stop: &CancellationToken,
) -> Result<Census, RunError> {
    let began = Instant::now();
    let scan = until_stopped(stop, site.store.census(*mode, *exclusively)).await?;
    let mut scan: CensusScan<'_> = scan.ok_or(RunError::CensusElsewhere)?;
    let snapshot = scan.snapshot();
    meter.set_total(snapshot.rows);
    let mut tally = Tally::default();
    let trace = span.trace();
    while let Some(rows) = read_page(&trace, stop, scan.next(), length).await? {
        for row in &rows {
            tally.add(row);
        }
        meter.add(rows.len() as u64);
        let paced = stop
            .run_until_cancelled(pacer.acquire_all(rows.len()))
            .await;
        paced.ok_or(RunError::Stopped)?;
    }
    scan.finish().await?;
    span.count("nico_rewrap.rows", tally.rows);
    Ok(Census {
        run_id: run_id.to_owned(),
        moment: snapshot.moment.number(),
        time: snapshot.start,
        duration: began.elapsed(),
        tally,
    })
}

/// The number of characters that name every key id of the keyring.
fn prefix_characters(keyring: &Keyring) -> usize {
    let longest = keyring
        .iter()
        .map(|kek| prefix_length(kek.id().as_str()))
        .max();
    longest
        .unwrap_or(0)
        .clamp(*PREFIX_CHARACTERS.start(), *PREFIX_CHARACTERS.end())
}
