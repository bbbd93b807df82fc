//! The order in which this process writes receipts.

use tokio::sync::Mutex;

/// Keeps the receipts of this process in order: one lock for the file and one for the database. The
/// locks are fair, so the first task that waits is the first to write. The file does not wait for
/// the database.
#[derive(Default)]
pub(super) struct ReceiptOrder {
    pub(super) file: Mutex<()>,
    pub(super) database: Mutex<()>,
}
