//! Updates readiness from the validity period of the server's certificate.

use std::{sync::Arc, time::Duration};

use rustls::pki_types::UnixTime;
use tokio::{sync::watch::Receiver, time::sleep};

use crate::{
    telemetry::readiness::{Readiness, latches::CERTIFICATE},
    tls::TlsState,
};

/// How often to check a certificate that is outside its validity period.
const RETRY: Duration = Duration::from_secs(1);

/// Keeps the server unready until its certificate is valid: the clock may not be set yet, or a
/// renewed certificate may arrive later. A certificate that expires after that does not end
/// readiness.
///
/// The server accepts handshakes in the meantime: clients refuse the certificate themselves.
pub(super) async fn wait_for_certificate(states: Receiver<Arc<TlsState>>, readiness: Readiness) {
    while hold_for_certificate(&states.borrow(), &readiness) {
        sleep(RETRY).await;
    }
    readiness.release(CERTIFICATE);
}

/// Holds readiness and returns true if the server's certificate is outside its validity
/// period.
pub(super) fn hold_for_certificate(state: &TlsState, readiness: &Readiness) -> bool {
    let validity = state.validity();
    if validity.contains(UnixTime::now()) {
        return false;
    }
    readiness.hold(
        CERTIFICATE,
        format!(
            "the server's certificate of [tls].identity_pemfile_path is {validity}: renew the \
             certificate or correct the clock"
        ),
    );
    true
}
