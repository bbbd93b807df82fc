//! The known results of the censuses.

use crate::{
    domain::verdict::Ledger,
    run::{Census, Site},
};

/// The ledger, and its sequence: the number of its changes.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    pub(super) sequence: i64,
    pub(super) ledger: Ledger,
    /// The last census that was not late.
    pub(super) last: Option<Census>,
}

impl Known {
    /// Adds a census. Returns the key ids that have stragglers.
    pub(super) fn add(&mut self, site: &Site, census: &Census, is_late: bool) -> Vec<String> {
        let last = self.ledger.last.as_ref();
        if !is_late && Ledger::is_other_history(last, census.moment) {
            tracing::warn!(
                "the database is older than the last census: it was restored, or replaced by \
                 another one. The verdicts start again"
            );
            self.ledger = Ledger::default();
        }
        let loaded = site.keyring.iter().map(|kek| kek.id().as_str());
        let target = site.keyring.target().id().as_str();
        let facts = census.facts();
        let stragglers = self.ledger.record(&facts, is_late, loaded, target);
        self.sequence += 1;
        if !is_late {
            self.last = Some(census.clone());
        }
        stragglers
    }
}
