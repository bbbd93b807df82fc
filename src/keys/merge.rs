//! Merges the keys of several sources. As in nico-api, the first source that has an id wins.

use crate::domain::keyring::Kek;

/// All keys of `first`, and the keys of `second` with other ids. A key that has other bytes in
/// `second` is a warning.
#[must_use]
pub fn merged(first: Vec<Kek>, second: Vec<Kek>, warnings: &mut Vec<String>) -> Vec<Kek> {
    let mut keks = first;
    for kek in second {
        match keks.iter().find(|other| other.id() == kek.id()) {
            None => keks.push(kek),
            Some(other) if other.check_value() == kek.check_value() => {}
            Some(other) => warnings.push(format!(
                "key {:?} has key check value {} in {}, and {} in {}: the first takes precedence, as \
                 in nico-api; remove the wrong one",
                kek.id().as_str(),
                other.check_value(),
                other.source(),
                kek.check_value(),
                kek.source()
            )),
        }
    }
    keks
}
