//! The cryptography provider for TLS.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

/// The provider is ring. It supports neither P-521 keys nor ECDSA signatures with SHA-512.
/// aws-lc-rs, which nico-api uses, supports both, but takes 2.5 times as long to build and makes
/// the binary 2 MB larger. The log of a refused handshake therefore names the unsupported
/// algorithm: see [`super::explain`].
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
