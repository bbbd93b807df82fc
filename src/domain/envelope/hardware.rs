//! What the processor offers the cryptography, for the log: without its own
//! instructions AES-GCM gives the same results, many times slower.

/// Whether `aes-gcm` runs on the processor's own instructions. Its parts look for
/// these features by themselves, once, and fall back to software where one is missing:
/// `aes` for the cipher; `polyval` for the tag, which on x86-64 wants AVX too.
#[must_use]
pub fn has_aes_gcm_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("aes")
            && is_x86_feature_detected!("pclmulqdq")
            && is_x86_feature_detected!("avx")
    }
    #[cfg(target_arch = "aarch64")]
    {
        std::arch::is_aarch64_feature_detected!("aes")
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        false
    }
}
