//! Slots for connections that are not authenticated: TLS handshakes, and probes.
//!
//! A new connection never waits for a slot. When all slots are taken, it evicts the oldest
//! connection of the address with the most slots. A well-behaved client needs its slot for
//! milliseconds. An attacker that holds many slots loses one for each new connection.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// The slots and their holders.
#[derive(Debug)]
pub(crate) struct ConnectionSlots {
    max: usize,
    occupied: Mutex<Occupied>,
}

#[derive(Debug, Default)]
struct Occupied {
    /// The number of the next slot.
    next: u64,
    /// The taken slots, the oldest first.
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    from: IpAddr,
    evicted: CancellationToken,
}

/// A slot. Dropping it frees the slot.
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

    /// Takes a slot. If none is free, evicts the holder of another one.
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
        // A panic can't leave the entries in an inconsistent state.
        self.occupied.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Returns when another connection has taken the slot.
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

/// The address by which slots are counted. For IPv6 this is the /64 network, because one host
/// can usually choose any address in it.
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
            .map(|slot| slot.evicted.is_cancelled())
            .collect()
    }

    #[test]
    fn a_new_connection_evicts_the_oldest_of_the_busiest_address() {
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
        // Every address has one slot now, so the oldest slot of all is evicted.
        slots.push(acquire("10.0.0.5"));
        assert_eq!(evicted(&slots), [true, true, false, false, false, false]);
    }

    #[test]
    fn a_free_slot_is_taken_without_an_eviction() {
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
