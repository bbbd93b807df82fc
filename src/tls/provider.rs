//! The one provider of cryptography for TLS.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

/// ring. It verifies no ECDSA signature with SHA-512, and no P-521 key; nico-api's provider
/// does. See [`super::explain`].
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
