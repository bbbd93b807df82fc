//! The order in which this process writes receipts.

use tokio::sync::Mutex;

/// Lets receipts into the file and into the database one after the other. The locks are fair. The
/// file does not wait for the database.
#[derive(Default)]
pub(super) struct ReceiptOrder {
    pub(super) file: Mutex<()>,
    pub(super) database: Mutex<()>,
}
