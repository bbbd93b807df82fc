//! The memory of a run has a limit, even if the stored texts are very large.

use crate::faults::orgs;
use crate::grpcurl::run;
use crate::outcome::seeded;
use crate::seal::seal;
use crate::seed::Org;
use crate::server::Server;
use crate::site::Site;

/// The largest resident memory that the server had so far, in MiB, without the pages of the
/// program itself: a debug build has many more of these.
pub(crate) fn peak(server: &Server) -> u64 {
    let status = format!("/proc/{}/status", server.pid());
    let status = std::fs::read_to_string(status).unwrap();
    let kib = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        let value = line.split_whitespace().nth(1).unwrap();
        value.parse::<u64>().unwrap()
    };
    (kib("VmHWM:") - kib("RssFile:")) >> 10
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
            assert_eq!(run(&server, dry_run).await.rows_updated, all);
            let peak = peak(&server);
            assert!(peak < 64, "{peak} MiB, with secrets of {bytes} bytes");
        }
    }
}
