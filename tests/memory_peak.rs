//! The memory of a run has a limit, even if the stored texts are very large.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::faults::orgs;
use crate::grpcurl::run;
use crate::outcome::seeded;
use crate::seal::seal;
use crate::seed::Org;
use crate::server::Server;
use crate::site::Site;

/// Watches the memory of a server. The pages of the program file do not count: a debug build has
/// many of them, and the kernel can drop them at any time, so their peak cannot be subtracted later.
pub(crate) struct MemoryPeak {
    ended: Arc<AtomicBool>,
    watch: JoinHandle<u64>,
}

impl MemoryPeak {
    /// Begins to watch.
    pub(crate) fn of(server: &Server) -> Self {
        let status = format!("/proc/{}/status", server.pid());
        let ended = Arc::new(AtomicBool::new(false));
        let stop = ended.clone();
        let watch = std::thread::spawn(move || {
            let mut peak = 0;
            while !stop.load(Ordering::Relaxed) {
                peak = peak.max(anonymous_kib(&status));
                std::thread::sleep(Duration::from_millis(5));
            }
            peak
        });
        Self { ended, watch }
    }

    /// Ends, and returns the peak in MiB.
    pub(crate) fn end(self) -> u64 {
        self.ended.store(true, Ordering::Relaxed);
        self.watch.join().unwrap() >> 10
    }
}

fn anonymous_kib(status: &str) -> u64 {
    let status = std::fs::read_to_string(status).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let value = line.unwrap().split_whitespace().nth(1).unwrap();
    value.parse().unwrap()
}

#[tokio::test]
async fn a_run_over_very_large_secrets_needs_less_than_64_mib() {
    for bytes in [200_000, 60_000] {
        let text = seal("s".repeat(bytes), "kv1");
        assert!(text.len() < 1 << 20);
        let rows = 30_000_000 / (3 * text.len());
        let large = |i| {
            let texts = [Some(text.clone()), Some(text.clone()), Some(text.clone())];
            Org::new(&format!("large{i:04}")).texts(texts)
        };
        let large: Vec<_> = (0..rows).map(large).collect();
        let (database, client) = seeded(&orgs(300)).await;
        for part in large.chunks(5) {
            crate::seed::insert(&client, part).await;
        }
        let all = u32::try_from(rows + 300).unwrap();
        let server = Site::new(&database)
            .set("rewrap.statement_timeout", "\"60s\"")
            .start()
            .await;
        for dry_run in [true, false] {
            let memory = MemoryPeak::of(&server);
            assert_eq!(run(&server, dry_run).await.rows_updated, all);
            let peak = memory.end();
            assert!(peak < 64, "{peak} MiB, with secrets of {bytes} bytes");
        }
    }
}
