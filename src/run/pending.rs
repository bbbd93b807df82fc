//! A row to write, and the state of its writes.

use std::mem;

use tokio::time::Instant;

use super::report::RowOutcome;
use crate::{
    domain::rewrap::Envelopes,
    store::{Row, RowError, Settled, StoreError},
};

/// The progress of a row.
#[derive(Debug)]
pub(super) enum Progress {
    /// No write is in flight.
    Open,
    /// The write of [`Pending::texts`] was sent and has no answer yet.
    Sent,
    /// The row is finished, with this outcome.
    Finished(RowOutcome),
}

/// A row to write.
#[derive(Debug)]
pub(super) struct Pending {
    /// The row as it was read.
    pub(super) row: Row,
    /// The texts to write.
    pub(super) texts: Envelopes,
    /// The outcome of the row after `texts` is written.
    outcome: RowOutcome,
    pub(super) progress: Progress,
    /// When the statement that is in flight was sent.
    pub(super) sent: Option<Instant>,
    /// Writes whose connection broke before the answer arrived. They may be committed. Every
    /// envelope has a fresh nonce, so a row with these texts was written by this program.
    in_doubt: Vec<Doubt>,
    /// The old and the new texts of the committed write, if it was not the write of
    /// [`Pending::texts`].
    written: Option<(Envelopes, Envelopes)>,
}

/// A write with an unknown outcome.
#[derive(Debug)]
struct Doubt {
    old: Envelopes,
    new: Envelopes,
    outcome: RowOutcome,
}

impl Pending {
    pub(super) fn new(row: Row, texts: Envelopes, outcome: RowOutcome) -> Self {
        Self {
            row,
            texts,
            outcome,
            progress: Progress::Open,
            sent: None,
            in_doubt: Vec::new(),
            written: None,
        }
    }

    /// Whether the row has no outcome yet.
    pub(super) fn is_open(&self) -> bool {
        !matches!(self.progress, Progress::Finished(_))
    }

    pub(super) fn into_outcome(self) -> Option<RowOutcome> {
        match self.progress {
            Progress::Finished(outcome) => Some(outcome),
            Progress::Open | Progress::Sent => None,
        }
    }

    /// Whether an earlier write may have been committed.
    pub(super) fn has_doubts(&self) -> bool {
        !self.in_doubt.is_empty()
    }

    pub(super) fn note_doubt(&mut self, old: Envelopes, new: Envelopes, outcome: RowOutcome) {
        self.in_doubt.push(Doubt { old, new, outcome });
    }

    /// Records that the last write in doubt is committed.
    pub(super) fn last_doubt_is_written(&mut self) {
        self.written = self.in_doubt.pop().map(|doubt| (doubt.old, doubt.new));
    }

    /// The old and the new texts, if the row was written.
    pub(super) fn change(&self) -> Option<(&Envelopes, &Envelopes)> {
        match (&self.progress, &self.written) {
            (Progress::Finished(RowOutcome::Updated { .. }), Some((old, new))) => Some((old, new)),
            (Progress::Finished(RowOutcome::Updated { .. }), None) => {
                Some((&self.row.texts, &self.texts))
            }
            _ => None,
        }
    }

    /// Marks a write in flight as in doubt: its connection was given up, so no answer can
    /// come.
    pub(super) fn keep_in_doubt(&mut self) {
        if matches!(self.progress, Progress::Sent) {
            self.progress = Progress::Open;
            let (old, new) = (self.row.texts.clone(), self.texts.clone());
            self.note_doubt(old, new, self.outcome.clone());
        }
    }

    /// Replaces the row and its texts after a new decision.
    pub(super) fn replan(&mut self, row: Row, texts: Envelopes, outcome: RowOutcome) {
        (self.row, self.texts, self.outcome) = (row, texts, outcome);
    }

    /// Records the result of an attempt: an outcome, no outcome yet, or an error. An error of this
    /// row becomes its outcome.
    ///
    /// # Errors
    ///
    /// Returns an error that concerns the connection.
    pub(super) fn conclude(
        &mut self,
        attempt: Result<Option<RowOutcome>, StoreError>,
    ) -> Result<(), StoreError> {
        let outcome = match attempt {
            Err(StoreError::Row(error)) => {
                Some(RowOutcome::row_failed(&self.row.organization_id, &error))
            }
            attempt => attempt?,
        };
        self.sent = None;
        if let Some(outcome) = outcome {
            self.progress = Progress::Finished(outcome);
        }
        Ok(())
    }

    /// Takes the outcome of the row after [`Pending::texts`] is written.
    pub(super) fn take_outcome(&mut self) -> RowOutcome {
        mem::replace(&mut self.outcome, RowOutcome::Gone)
    }

    /// The outcome of the row if `texts` are those of a write whose answer was lost.
    pub(super) fn written_as(&mut self, texts: &Envelopes) -> Option<RowOutcome> {
        let written = self.in_doubt.iter().position(|doubt| doubt.new == *texts)?;
        let doubt = self.in_doubt.swap_remove(written);
        self.written = Some((doubt.old, doubt.new));
        Some(doubt.outcome)
    }

    /// The outcome of the row that was in flight when its session was ended.
    pub(super) fn outcome_of_ended_session(
        &mut self,
        current: Option<Row>,
    ) -> Result<RowOutcome, StoreError> {
        match current {
            None => Ok(RowOutcome::Gone),
            Some(row) => self
                .written_as(&row.texts)
                .ok_or_else(|| RowError::NotEnded.into()),
        }
    }

    /// Concludes the outcome of the row from `settled`. Returns whether the row stays in
    /// doubt.
    pub(super) fn settle(&mut self, settled: &Settled) -> bool {
        let id = &self.row.organization_id;
        let Some(row) = settled.rows.iter().find(|row| row.organization_id == *id) else {
            self.progress = Progress::Finished(RowOutcome::Gone);
            return false;
        };
        if let Some(outcome) = self.written_as(&row.texts) {
            self.progress = Progress::Finished(outcome);
            return false;
        }
        // A row with its old texts was not written. Other texts may have replaced the texts of
        // this run.
        !(settled.is_final && row.texts == self.row.texts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::tenant_version::TenantVersion;

    fn texts(text: &str) -> Envelopes {
        [Some(text.to_owned()), None, None]
    }

    fn row(text: &str) -> Row {
        Row {
            organization_id: "acme".to_owned(),
            texts: texts(text),
            version: TenantVersion::parse(Some("V1-T1".to_owned())),
        }
    }

    const UPDATED: RowOutcome = RowOutcome::Updated {
        reencrypted: 1,
        on_target: 0,
    };

    fn sent() -> Pending {
        let mut pending = Pending::new(row("old"), texts("new"), UPDATED);
        pending.progress = Progress::Sent;
        pending.keep_in_doubt();
        pending
    }

    #[test]
    fn a_write_without_an_answer_is_settled_by_what_the_row_holds() {
        // The current text (`None`: deleted), whether it is final, and whether the row
        // stays in doubt.
        let cases = [
            (Some("new"), true, false, Some(UPDATED)),
            (Some("new"), false, false, Some(UPDATED)),
            (Some("old"), true, false, None),
            (Some("old"), false, true, None),
            (Some("a tenant's"), true, true, None),
            (None, true, false, Some(RowOutcome::Gone)),
        ];
        for (text, is_final, in_doubt, outcome) in cases {
            let mut pending = sent();
            let rows = text.map(row).into_iter().collect();
            let stays = pending.settle(&Settled { rows, is_final });
            assert_eq!(
                (stays, pending.into_outcome()),
                (in_doubt, outcome),
                "{text:?} {is_final}"
            );
        }
    }

    #[test]
    fn a_row_that_was_not_sent_has_no_doubts() {
        let mut pending = Pending::new(row("old"), texts("new"), UPDATED);
        pending.keep_in_doubt();
        assert!(!pending.has_doubts());
    }
}
