//! Tests the target key before the server uses it.

use super::error::AppError;
use crate::domain::{
    envelope::{Buffers, Envelope, Plaintext, seal},
    keyring::{Kek, Keyring, wipe_stack},
};

/// Checks that the target key opens what it seals: otherwise a run would make every row
/// unreadable.
pub(super) fn self_test(keyring: &Keyring) -> Result<(), AppError> {
    let target = keyring.target();
    let opens = seals_and_opens(target);
    wipe_stack();
    if opens {
        Ok(())
    } else {
        Err(AppError::TargetKey(target.id().to_string()))
    }
}

/// Not inlined, so that the caller can wipe the whole stack frame afterwards.
#[inline(never)]
fn seals_and_opens(kek: &Kek) -> bool {
    let mut bytes = *b"nico-rewrap seal-and-open test";
    let probe = Plaintext::new(&mut bytes);
    let mut buffers = Buffers::default();
    seal(kek, &probe, &mut buffers).is_ok_and(|text| {
        let sealed = Envelope::parse(&text, &mut buffers).ok();
        let opened = sealed.and_then(|sealed| sealed.open(kek).ok());
        opened.is_some_and(|opened| opened == probe)
    })
}
