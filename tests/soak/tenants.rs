//! Tenants that write all the time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, RwLock};

use crate::database::Database;
use crate::live_writers::{Rival, Secrets};
use crate::seal::{keys, open};
use crate::seed;

/// The organizations of each tenant at the beginning, and the pause after each of its writes.
const ORGANIZATIONS: usize = 50;
const PAUSE: Duration = Duration::from_millis(50);

/// Tenants, which write until this value is dropped.
pub(super) struct Tenants {
    rivals: Vec<Arc<Mutex<Rival>>>,
    /// Tenants write while they hold this lock for reading.
    gate: Arc<RwLock<()>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Tenants {
    pub(super) async fn new(database: &Database, tenants: usize) -> Self {
        let gate = Arc::new(RwLock::new(()));
        let (mut rivals, mut tasks) = (Vec::new(), Vec::new());
        for name in 0..tenants {
            let mut rival = Rival::new(name, database).await;
            while rival.expected.len() < ORGANIZATIONS {
                rival.insert().await;
            }
            let rival = Arc::new(Mutex::new(rival));
            tasks.push(tokio::spawn(write(rival.clone(), gate.clone())));
            rivals.push(rival);
        }
        Self {
            rivals,
            gate,
            tasks,
        }
    }

    /// Does something while no tenant has a write under way. A tenant does not know what has
    /// become of a write that a restart of the database has interrupted.
    pub(super) async fn pause<T>(&self, meanwhile: impl AsyncFnOnce() -> T) -> T {
        let _closed = self.gate.write().await;
        meanwhile().await
    }

    /// Connects again. For use in [`Tenants::pause`].
    pub(super) async fn reconnect(&self, database: &Database) {
        for rival in &self.rivals {
            rival.lock().await.reconnect(database).await;
        }
    }

    /// How often tenants have written.
    pub(super) async fn writes(&self) -> u32 {
        let mut writes = 0;
        for rival in &self.rivals {
            writes += rival.lock().await.changes;
        }
        writes
    }

    /// Checks that every secret opens to its last value. Returns the number of organizations.
    pub(super) async fn check(&self, database: &Database) -> usize {
        assert!(
            self.tasks.iter().all(|task| !task.is_finished()),
            "a tenant could not write"
        );
        let check = async || {
            let mut expected = BTreeMap::new();
            for rival in &self.rivals {
                expected.extend(rival.lock().await.expected.clone());
            }
            let rows = seed::snapshot(&database.admin().await).await;
            let opened = rows.iter().map(|(id, row)| (id.clone(), plaintexts(row)));
            let opened: BTreeMap<_, _> = opened.collect();
            assert_eq!(opened, expected);
            opened.len()
        };
        self.pause(check).await
    }
}

impl Drop for Tenants {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

fn plaintexts(row: &seed::Row) -> Secrets {
    let plaintext = |text: &String| {
        let (_, plaintext) = open(text, &keys(&["kv1", "kv2"])).unwrap();
        String::from_utf8(plaintext).unwrap()
    };
    row.texts
        .each_ref()
        .map(|text| text.as_ref().map(plaintext))
}

async fn write(rival: Arc<Mutex<Rival>>, gate: Arc<RwLock<()>>) {
    loop {
        let open = gate.read().await;
        rival.lock().await.change().await;
        drop(open);
        tokio::time::sleep(PAUSE).await;
    }
}
