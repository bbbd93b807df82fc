//! Remembers the texts that this process has written. They prove nothing about its keys.

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::domain::rewrap::Envelopes;

/// How many texts are remembered. Each takes about 16 bytes.
const TEXTS: usize = 100_000;

/// Hashes of texts that this process has written: the first ones since its start. Each envelope
/// has a random nonce, so no other program writes the same text.
#[derive(Debug, Default)]
pub(super) struct OwnTexts(Mutex<HashSet<u64>>);

impl OwnTexts {
    /// Adds the texts of a row that differ from its old texts.
    pub(super) fn add(&self, old: &Envelopes, new: &Envelopes) {
        let mut hashes = self.lock();
        for (old, new) in old.iter().zip(new) {
            if let Some(new) = new
                && old.as_ref() != Some(new)
                && hashes.len() < TEXTS
            {
                hashes.insert(hash(new));
            }
        }
    }

    /// Whether this process has written the text.
    pub(super) fn contains(&self, text: &str) -> bool {
        self.lock().contains(&hash(text))
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<u64>> {
        // A panic cannot leave the set in an inconsistent state.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Envelopes {
        [Some(text.to_owned()), Some("kept".to_owned()), None]
    }

    #[test]
    fn only_new_texts_are_own_texts() {
        let own = OwnTexts::default();
        own.add(&texts("old"), &texts("new"));
        let is_own = ["old", "new", "kept"].map(|text| own.contains(text));
        assert_eq!(is_own, [false, true, false]);
    }

    #[test]
    fn the_number_of_texts_is_limited() {
        let own = OwnTexts::default();
        for i in 0..=TEXTS {
            own.add(&texts("old"), &texts(&format!("new{i}")));
        }
        assert_eq!(own.lock().len(), TEXTS);
    }
}
