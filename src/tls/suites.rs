//! Which ciphers, in which order.
//!
//! Why it exists: without instructions for AES in the processor, ChaCha20-Poly1305 is several times as fast,
//! and takes the same time whatever the data. Always true: one provider, ring, on every machine.

use rustls::CipherSuite;
use rustls::crypto::{CryptoProvider, ring};

/// The ciphers of ring; without AES in the processor, ChaCha20 stands first.
pub(super) fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    if !has_aes() {
        let suites = provider.cipher_suites.into_iter();
        let (mut first, others): (Vec<_>, Vec<_>) = suites.partition(|suite| is_chacha20(suite.suite()));
        first.extend(others);
        provider.cipher_suites = first;
    }
    provider
}

const fn is_chacha20(suite: CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
    )
}

/// Whether the processor has instructions for AES.
#[cfg(target_arch = "x86_64")]
pub(super) fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}

/// Whether the processor has instructions for AES.
#[cfg(target_arch = "aarch64")]
pub(super) fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull")
}

/// Whether the processor has instructions for AES: what the kernel says in AT_HWCAP2.
#[cfg(target_arch = "arm")]
pub(super) fn has_aes() -> bool {
    const AES_AND_PMULL: usize = 0b11;
    let (_, features) = rustix::param::linux_hwcap();
    features & AES_AND_PMULL == AES_AND_PMULL
}

/// Whether the processor has instructions for AES: nobody knows, so what is good without comes first.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "arm")))]
pub(super) fn has_aes() -> bool {
    false
}
