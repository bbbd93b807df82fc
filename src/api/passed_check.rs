//! The last check of the keys that found no wrong key.

use tokio::{sync::Mutex, time::Instant};

/// A check without a wrong key.
pub(super) struct Passed {
    pub(super) at: Instant,
    /// How many censuses this process had recorded.
    pub(super) censuses: u64,
}

/// The last one. Its lock is held during a check, so that calls at the same time share the result.
#[derive(Default)]
pub(super) struct PassedCheck(pub(super) Mutex<Option<Passed>>);
