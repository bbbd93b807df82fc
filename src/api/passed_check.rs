//! The last check of the keys that found no wrong key.

use tokio::{sync::Mutex, time::Instant};

/// A check without a wrong key.
pub(super) struct Passed {
    pub(super) at: Instant,
    /// How many censuses this process had recorded.
    pub(super) censuses: u64,
}

/// The last successful check. A check holds the lock, so that concurrent calls share its result.
#[derive(Default)]
pub(super) struct PassedCheck(pub(super) Mutex<Option<Passed>>);
