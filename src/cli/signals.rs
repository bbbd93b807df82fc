//! Handlers for signals whose default action would end the process.

use rustix::process::Signal;
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};

/// Disables the default action of two signals for the rest of the process. SIGHUP asks for a
/// reload and may arrive before the server is ready to reload. The kernel sends SIGXFSZ for a
/// write beyond the file size limit; with this handler, the write fails with an error instead.
///
/// The handlers stay installed after the runtime that installs them ends. That runtime has no
/// threads.
pub(super) fn survive() {
    let Ok(runtime) = Builder::new_current_thread().enable_io().build() else {
        // The server's own runtime will fail for the same reason and report it.
        return;
    };
    let _context = runtime.enter();
    for kind in [
        SignalKind::hangup(),
        SignalKind::from_raw(Signal::XFSZ.as_raw()),
    ] {
        let _ = signal(kind);
    }
}
