//! Signals that would end the process before the server is there to handle them.

use rustix::process::Signal;
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};

/// Takes the default action from two signals for the rest of the process: SIGHUP, which asks for
/// a reload and may come before there is anything to reload, and SIGXFSZ, with which the kernel
/// answers a write beyond a limit of file size. Such a write then fails with an error.
///
/// The handlers outlast the small runtime that installs them. It has no threads.
pub(super) fn survive() {
    let Ok(runtime) = Builder::new_current_thread().enable_io().build() else {
        // The server's own runtime fails for the same reason, and says so.
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
