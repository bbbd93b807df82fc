//! A bounded number of places for those whom nobody knows, in which the silent give
//! way: TLS places, and connections for probes.
//!
//! Nobody waits for a place: when all are taken, the oldest of the address that has
//! the most of them is given up for the new one. An honest client needs its place for
//! milliseconds; whoever holds on to many loses them, one for each that comes after.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// The places, and who has them, the oldest first.
#[derive(Debug)]
pub(crate) struct Places {
    max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    from: IpAddr,
    given_up: CancellationToken,
}

/// A place, for as long as it exists.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    number: u64,
    given_up: CancellationToken,
}

impl Places {
    pub(crate) fn new(max: u32) -> Arc<Self> {
        Arc::new(Self {
            max: max as usize,
            taken: Mutex::default(),
        })
    }

    /// A place, at the cost of somebody else's if there is none free.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Place {
        let mut taken = self.lock();
        if taken.entries.len() >= self.max {
            give_one_up(&mut taken.entries);
        }
        let number = taken.next;
        taken.next += 1;
        let given_up = CancellationToken::new();
        taken.entries.push(Entry {
            number,
            from: host(address),
            given_up: given_up.clone(),
        });
        Place {
            places: self.clone(),
            number,
            given_up,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        // Nothing in here is left half done by a panic.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Ends when the place is given to somebody else.
    pub(crate) async fn given_up(&self) {
        self.given_up.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let number = self.number;
        let mut taken = self.places.lock();
        taken.entries.retain(|entry| entry.number != number);
    }
}

fn give_one_up(entries: &mut Vec<Entry>) {
    let mut counts: HashMap<IpAddr, usize> = HashMap::new();
    for entry in entries.iter() {
        *counts.entry(entry.from).or_default() += 1;
    }
    let most = counts.values().copied().max();
    let oldest = entries
        .iter()
        .position(|entry| counts.get(&entry.from).copied() == most);
    if let Some(oldest) = oldest {
        entries.remove(oldest).given_up.cancel();
    }
}

/// Whoever has an IPv6 address has 2^64 of them.
fn host(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn given_up(places: &[Place]) -> Vec<bool> {
        places
            .iter()
            .map(|place| place.given_up.is_cancelled())
            .collect()
    }

    #[test]
    fn the_oldest_of_the_busiest_address_gives_way() {
        let places = Places::new(4);
        let enter = |text| places.enter(address(text));
        let mut places = vec![
            enter("10.0.0.1"),
            enter("10.0.0.2"),
            enter("::ffff:10.0.0.2"),
            enter("10.0.0.3"),
        ];
        assert_eq!(given_up(&places), [false; 4]);
        places.push(enter("10.0.0.4"));
        assert_eq!(given_up(&places), [false, true, false, false, false]);
        // All have one now: the oldest of all.
        places.push(enter("10.0.0.5"));
        assert_eq!(given_up(&places), [true, true, false, false, false, false]);
    }

    #[test]
    fn a_place_that_is_free_costs_nobody_theirs() {
        let places = Places::new(2);
        let first = places.enter(address("10.0.0.1"));
        drop(places.enter(address("10.0.0.1")));
        let third = places.enter(address("10.0.0.1"));
        assert_eq!(given_up(&[first, third]), [false, false]);
        assert!(places.lock().entries.is_empty());
    }

    #[test]
    fn ipv6_addresses_of_one_network_are_one_host() {
        assert_eq!(host(address("2001:db8::1")), host(address("2001:db8::2")));
        assert_ne!(
            host(address("2001:db8::1")),
            host(address("2001:db8:0:1::1"))
        );
        assert_ne!(host(address("10.0.0.1")), host(address("10.0.0.2")));
    }
}
