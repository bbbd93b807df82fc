//! Detects processor instructions for AES-GCM, for the log. Without them, AES-GCM is many
//! times slower, with the same results.

/// Whether `aes-gcm` uses processor instructions. Its parts detect these features
/// themselves, once, and use software if one is missing. The cipher needs `aes`. The tag
/// needs `polyval`, and on x86-64 AVX too.
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
