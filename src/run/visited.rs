//! The set of organizations that a run has visited, in eight bytes each.

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
};

/// A set of ids, stored as keyed hashes. Two ids collide with a probability of 2^-64, and
/// an attacker cannot choose colliding ids.
#[derive(Default)]
pub(super) struct Visited {
    keys: RandomState,
    /// Sorted after [`Visited::settle`].
    hashes: Vec<u64>,
    /// Organizations that were deleted before they were processed. They may exist again.
    gone: HashSet<u64>,
}

impl Visited {
    /// Adds an organization.
    pub(super) fn add(&mut self, id: &[u8]) {
        let hash = self.keys.hash_one(id);
        self.gone.remove(&hash);
        self.hashes.push(hash);
    }

    /// Removes an organization that was deleted during the run.
    pub(super) fn gone(&mut self, id: &str) {
        self.gone.insert(self.keys.hash_one(id.as_bytes()));
    }

    /// Prepares for [`Visited::position`]. Returns how many ids were added more than once.
    pub(super) fn settle(&mut self) -> u64 {
        self.hashes.sort_unstable();
        let before = self.hashes.len();
        self.hashes.dedup();
        (before - self.hashes.len()) as u64
    }

    /// The number of the organization among those that were visited and not deleted.
    pub(super) fn position(&self, id: &[u8]) -> Option<usize> {
        let hash = self.keys.hash_one(id);
        let position = self.hashes.binary_search(&hash).ok()?;
        (!self.gone.contains(&hash)).then_some(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_organization_is_contained_unless_it_is_gone() {
        let mut visited = Visited::default();
        for id in ["b", "a", "c", "a"] {
            visited.add(id.as_bytes());
        }
        assert_eq!(visited.settle(), 1, "a, twice");
        for (id, is_in) in [("a", true), ("b", true), ("c", true), ("d", false)] {
            assert_eq!(visited.position(id.as_bytes()).is_some(), is_in, "{id}");
        }
        visited.gone("b");
        assert_eq!(visited.position(b"b"), None);
        visited.add(b"b");
        visited.settle();
        assert!(
            visited.position(b"b").is_some(),
            "visited again after it was created again"
        );
    }
}
