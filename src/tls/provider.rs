//! The one provider of cryptography for TLS.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

/// ring. It does not verify ECDSA signatures with SHA-512, nor P-521 keys. aws-lc-rs, which
/// nico-api uses, does, but takes 2.5 times as long to build and makes the binary 2 MB larger.
/// A refused handshake names the algorithm instead: [`super::explain`].
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
