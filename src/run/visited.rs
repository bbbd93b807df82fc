//! Which organizations a run came to, in eight bytes each.

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
};

/// A set of ids, kept as keyed hashes: two ids have the same one once in 2^64, and nobody can
/// choose such ids.
#[derive(Default)]
pub(super) struct Visited {
    keys: RandomState,
    /// Sorted after [`Visited::settle`].
    hashes: Vec<u64>,
    /// Those that were deleted when it was their turn, and that may be there again.
    gone: HashSet<u64>,
}

impl Visited {
    /// Adds an organization.
    pub(super) fn add(&mut self, id: &[u8]) {
        let hash = self.keys.hash_one(id);
        self.gone.remove(&hash);
        self.hashes.push(hash);
    }

    /// Takes an organization out that was deleted meanwhile.
    pub(super) fn gone(&mut self, id: &str) {
        self.gone.insert(self.keys.hash_one(id.as_bytes()));
    }

    /// Makes ready for [`Visited::contains`], and says how many were added more than once.
    pub(super) fn settle(&mut self) -> u64 {
        self.hashes.sort_unstable();
        let before = self.hashes.len();
        self.hashes.dedup();
        (before - self.hashes.len()) as u64
    }

    /// Whether the organization was visited and is not gone.
    pub(super) fn contains(&self, id: &[u8]) -> bool {
        let hash = self.keys.hash_one(id);
        self.hashes.binary_search(&hash).is_ok() && !self.gone.contains(&hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_organization_is_in_unless_it_is_gone() {
        let mut visited = Visited::default();
        for id in ["b", "a", "c", "a"] {
            visited.add(id.as_bytes());
        }
        assert_eq!(visited.settle(), 1, "a, twice");
        for (id, is_in) in [("a", true), ("b", true), ("c", true), ("d", false)] {
            assert_eq!(visited.contains(id.as_bytes()), is_in, "{id}");
        }
        visited.gone("b");
        assert!(!visited.contains(b"b"));
        visited.add(b"b");
        visited.settle();
        assert!(visited.contains(b"b"), "evaluated after it was there again");
    }
}
