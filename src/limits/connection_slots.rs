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
pub(crate) struct ConnectionSlots {
    max: usize,
    occupied: Mutex<Occupied>,
}

#[derive(Debug, Default)]
struct Occupied {
    next: u64,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    from: IpAddr,
    evicted: CancellationToken,
}

/// A place, for as long as it exists.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Arc<ConnectionSlots>,
    number: u64,
    evicted: CancellationToken,
}

impl ConnectionSlots {
    pub(crate) fn new(max: u32) -> Arc<Self> {
        Arc::new(Self {
            max: max as usize,
            occupied: Mutex::default(),
        })
    }

    /// A place, at the cost of somebody else's if there is none free.
    pub(crate) fn acquire(self: &Arc<Self>, address: IpAddr) -> Slot {
        let mut occupied = self.lock();
        if occupied.entries.len() >= self.max {
            evict_one(&mut occupied.entries);
        }
        let number = occupied.next;
        occupied.next += 1;
        let evicted = CancellationToken::new();
        occupied.entries.push(Entry {
            number,
            from: host(address),
            evicted: evicted.clone(),
        });
        Slot {
            slots: self.clone(),
            number,
            evicted,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Occupied> {
        // Nothing in here is left half done by a panic.
        self.occupied.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Ends when the place is given to somebody else.
    pub(crate) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let number = self.number;
        let mut occupied = self.slots.lock();
        occupied.entries.retain(|entry| entry.number != number);
    }
}

fn evict_one(entries: &mut Vec<Entry>) {
    let mut counts: HashMap<IpAddr, usize> = HashMap::new();
    for entry in entries.iter() {
        *counts.entry(entry.from).or_default() += 1;
    }
    let most = counts.values().copied().max();
    let oldest = entries
        .iter()
        .position(|entry| counts.get(&entry.from).copied() == most);
    if let Some(oldest) = oldest {
        entries.remove(oldest).evicted.cancel();
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

    fn evicted(slots: &[Slot]) -> Vec<bool> {
        slots
            .iter()
            .map(|place| place.evicted.is_cancelled())
            .collect()
    }

    #[test]
    fn the_oldest_of_the_busiest_address_gives_way() {
        let slots = ConnectionSlots::new(4);
        let acquire = |text| slots.acquire(address(text));
        let mut slots = vec![
            acquire("10.0.0.1"),
            acquire("10.0.0.2"),
            acquire("::ffff:10.0.0.2"),
            acquire("10.0.0.3"),
        ];
        assert_eq!(evicted(&slots), [false; 4]);
        slots.push(acquire("10.0.0.4"));
        assert_eq!(evicted(&slots), [false, true, false, false, false]);
        // All have one now: the oldest of all.
        slots.push(acquire("10.0.0.5"));
        assert_eq!(evicted(&slots), [true, true, false, false, false, false]);
    }

    #[test]
    fn a_place_that_is_free_costs_nobody_theirs() {
        let slots = ConnectionSlots::new(2);
        let first = slots.acquire(address("10.0.0.1"));
        drop(slots.acquire(address("10.0.0.1")));
        let third = slots.acquire(address("10.0.0.1"));
        assert_eq!(evicted(&[first, third]), [false, false]);
        assert!(slots.lock().entries.is_empty());
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
