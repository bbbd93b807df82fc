//! The last census and the verdicts about the keys.

use std::time::{Duration, SystemTime};

use super::Source;
use crate::{
    domain::verdict::{Conditions, Ledger, Verdict},
    run::Census,
};

/// The last census, and the verdicts.
#[derive(Debug, Clone)]
pub struct KeyUse {
    /// The last census that was not late. `None` if no such census exists.
    pub last: Option<Census>,
    pub(super) ledger: Ledger,
    pub(super) target: String,
    pub(super) soak: Duration,
    pub(super) now: Option<SystemTime>,
    pub(super) source: Source,
}

impl KeyUse {
    /// The ids that a census has seen or that an instance holds.
    pub fn key_ids(&self) -> impl Iterator<Item = &str> {
        self.ledger.keys.keys().map(String::as_str)
    }

    /// Whether only the censuses of this process are known.
    #[must_use]
    pub fn is_of_process(&self) -> bool {
        self.source == Source::Process
    }

    /// The verdict about a key.
    #[must_use]
    pub fn verdict(&self, id: &str) -> Verdict {
        let conditions = Conditions {
            target: &self.target,
            soak: self.soak,
            now: self.now,
            is_outdated: self.source == Source::Outdated,
        };
        self.ledger.verdict(id, &conditions)
    }
}
