//! A fault at every point in the way of a run: the process is killed, its connections are cut, it
//! panics, a tenant changes its secrets, rows are deleted. After each, every secret opens to its
//! last value, the counters add up, and the next run completes.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;
use tokio_postgres::Client;

use crate::certs;
use crate::database::Database;
use crate::faults::until_written;
use crate::grpcurl::{GrpcError, Report, reencrypt, run};
use crate::outcome::counters;
use crate::process::temp_dir;
use crate::proxy::Proxy;
use crate::rewrap_client::{ask, migrate_state, number};
use crate::seal::{keys, open, seal};
use crate::seed::{self, COLUMNS, Org};
use crate::server::{Server, field};
use crate::site::Site;

/// What happens at a point.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Killed,
    Cut,
    Panic,
    TenantChange,
    RowsDeleted,
}

const FAULTS: [Fault; 5] = [
    Fault::Killed,
    Fault::Cut,
    Fault::Panic,
    Fault::TenantChange,
    Fault::RowsDeleted,
];

/// The number of organizations. With three rows in a page, a run reads several pages.
const ROWS: usize = 8;

/// The secrets of the organizations, as their tenants wrote them last.
type Expected = BTreeMap<String, [Option<String>; 3]>;

/// A point is reached in the middle of a run, except those that a run reaches once.
fn nth(point: &str) -> u32 {
    match point {
        "before-barrier" | "before-report" => 1,
        // The first row of the second page.
        "after-write" => 4,
        _ => 2,
    }
}

struct Case {
    database: Database,
    client: Client,
    proxy: Proxy,
    expected: Expected,
    /// How often tenants bumped a version.
    bumps: BTreeMap<String, u64>,
    flags: TempDir,
}

impl Case {
    async fn new() -> Self {
        let database = Database::migrated().await;
        let client = database.client().await;
        let mut expected = Expected::new();
        let mut orgs = Vec::new();
        for i in 0..ROWS {
            let id = format!("org{i}");
            let secrets = [
                Some(format!("key of {id}")),
                None,
                Some(format!("delegation of {id}")),
            ];
            let sealed = |secret: &Option<String>| secret.as_ref().map(|text| seal(text, "kv1"));
            orgs.push(Org::new(&id).texts(secrets.each_ref().map(sealed)));
            expected.insert(id, secrets);
        }
        seed::insert(&client, &orgs).await;
        let port = database.url().parse::<tokio_postgres::Config>().unwrap();
        let proxy = Proxy::to(port.get_ports()[0]).await;
        Self {
            database,
            client,
            proxy,
            expected,
            bumps: BTreeMap::new(),
            flags: temp_dir("failpoint"),
        }
    }

    /// The site behind the proxy.
    fn site(&self) -> Site {
        Site::with_url(&self.proxy.url(&self.database))
            .set("rewrap.adaptive_rate", "false")
            .set("rewrap.page_size", "3")
            .set("rewrap.statement_timeout", "\"20s\"")
            .set("rewrap.lock_timeout", "\"20s\"")
    }

    fn armed(&self, point: &str, fault: Fault) -> Site {
        let nth = nth(point);
        let text = match (point, fault) {
            (_, Fault::Panic) => format!("{point} panic {nth}"),
            // Held before it sends the write. The proxy holds the answers after that.
            ("after-write", _) => {
                format!("before-write hold {nth} {}", self.flags.path().display())
            }
            _ => format!("{point} hold {nth} {}", self.flags.path().display()),
        };
        let site = match point {
            // With one connection, the statement is prepared before the second page.
            "after-write" => self.site().set("rewrap.database_pool_size", "1"),
            _ => self.site(),
        };
        site.env("REWRAP_TEST_FAILPOINT", &text)
    }

    /// Lets the process go on.
    fn go(&self) {
        std::fs::write(self.flags.path().join("go"), "").unwrap();
    }

    /// Changes a secret of every organization under the old key, as a nico-api does that still has
    /// the old configuration.
    async fn change_all(&mut self) {
        for (id, secrets) in &mut self.expected {
            let secret = format!("a new key of {id}");
            let sql = format!(
                "BEGIN;
                UPDATE tenant_identity_config SET {} = '{}', updated_at = now()
                    WHERE organization_id = '{id}';
                UPDATE tenants SET version = 'V' || split_part(substr(version, 2), '-T', 1)::bigint + 1 || '-T'
                    || (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
                    WHERE organization_id = '{id}';
                COMMIT",
                COLUMNS[1],
                seal(&secret, "kv1"),
            );
            self.client.batch_execute(&sql).await.unwrap();
            secrets[1] = Some(secret);
            *self.bumps.entry(id.clone()).or_default() += 1;
        }
    }

    /// Deletes every second organization.
    async fn delete_some(&mut self) {
        for i in (0..ROWS).step_by(2) {
            let id = format!("org{i}");
            let sql = format!("DELETE FROM tenants WHERE organization_id = '{id}'");
            self.client.batch_execute(&sql).await.unwrap();
            self.expected.remove(&id);
        }
    }

    async fn strike(&mut self, fault: Fault, server: &Server) {
        match fault {
            Fault::Killed => {
                server.signal("KILL");
                server.wait_exit().await;
            }
            Fault::Cut => self.proxy.cut(),
            Fault::Panic => {}
            Fault::TenantChange => self.change_all().await,
            Fault::RowsDeleted => self.delete_some().await,
        }
    }

    /// Checks that every secret opens to its last value. Returns how many rows the service wrote,
    /// of those that still exist.
    async fn check_rows(&self) -> u64 {
        let rows = seed::snapshot(&self.client).await;
        let known: Vec<_> = self.expected.keys().collect();
        assert_eq!(rows.keys().collect::<Vec<_>>(), known);
        let mut writes = 0;
        for (id, row) in &rows {
            let opened = row.texts.each_ref().map(|text| {
                text.as_ref().map(|text| {
                    let (key, plaintext) = open(text, &keys(&["kv1", "kv2"])).unwrap();
                    (key, String::from_utf8(plaintext).unwrap())
                })
            });
            let plaintexts = opened
                .each_ref()
                .map(|o| o.as_ref().map(|(_, text)| text.clone()));
            assert_eq!(&plaintexts, &self.expected[id], "{id}");
            let bumps = self.bumps.get(id).copied().unwrap_or(0);
            let ours = row.version_parts().0 - 7 - bumps;
            // Before a tenant's change, a row is entirely under one key.
            if bumps == 0 {
                let target = if ours == 0 { "kv1" } else { "kv2" };
                let keys: Vec<_> = opened.iter().flatten().map(|(key, _)| key).collect();
                assert!(
                    keys.iter().all(|key| *key == target),
                    "{id}: {ours}: {keys:?}"
                );
                assert!(ours <= 1, "{id} was written {ours} times");
            }
            writes += ours;
        }
        writes
    }
}

async fn until_reached(directory: &Path, server: &Server) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !directory.join("reached").exists() {
        assert!(
            Instant::now() < deadline,
            "not reached:\n{}",
            server.log_text()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The error and the history have the counts of the audit record.
async fn check_history(server: &Server, error: &GrpcError, counts: [u64; 2], case: &str) {
    if counts == [0, 0] {
        return;
    }
    let told = error.error_info().unwrap().metadata;
    let told = ["rows_updated", "rows_in_doubt"].map(|name| told[name].parse::<u64>().unwrap());
    assert_eq!(told, counts, "{case}: {error:?}");
    let runs = ask(server, "ListRuns", json!({})).await;
    let id = error.run_id.as_deref().unwrap();
    let mut run = runs["runs"].as_array().unwrap().iter();
    let run = run.rfind(|run| run["id"] == id).unwrap();
    let kept = ["rowsUpdated", "rowsInDoubt"].map(|name| number(&run["report"][name]));
    assert_eq!(kept, counts, "{case}: {run}");
}

/// Checks the answer of the run during which the fault happened.
async fn check_answer(
    point: &str,
    fault: Fault,
    answer: Result<Report, GrpcError>,
    writes: u64,
    server: &Server,
) {
    let case = format!("{point}, {fault:?}");
    let report = match answer {
        Ok(report) => report,
        Err(error) => {
            let codes: &[_] = match fault {
                // grpcurl reports a connection that ends in its own words.
                Fault::Killed => return,
                Fault::Cut => &["UNAVAILABLE"],
                Fault::Panic => &["INTERNAL"],
                Fault::TenantChange | Fault::RowsDeleted => &[],
            };
            assert!(codes.contains(&error.code.as_str()), "{case}: {error:?}");
            // What it counted is in the audit record.
            let record = server.wait_log("call").await;
            let count = |name: &str| field(&record, name).and_then(|n| n.as_u64()).unwrap();
            let (updated, in_doubt) = (count("rows_updated"), count("rows_in_doubt"));
            assert!(updated <= writes, "{case}: {writes} written: {record}");
            // A panic leaves the rows of its batch in doubt, or those of all running batches.
            assert!(
                writes <= updated + in_doubt,
                "{case}: {writes} written: {record}"
            );
            check_history(server, &error, [updated, in_doubt], &case).await;
            return;
        }
    };
    assert_ne!(fault, Fault::Killed, "{case}: {report:?}");
    let counted = counters(&report);
    assert_eq!(counted.failed, 0, "{case}: {report:?}");
    let (updated, rows) = (u64::from(counted.updated), u64::from(report.rows_examined));
    match fault {
        // Rows that were written and deleted after that are counted.
        Fault::RowsDeleted => assert!(updated >= writes && rows >= 4, "{case}: {report:?}"),
        _ => assert_eq!((updated, rows), (writes, ROWS as u64), "{case}: {report:?}"),
    }
}

async fn strike(point: &str, fault: Fault) {
    let name = format!("{point}, {fault:?}");
    let mut case = Case::new().await;
    // Not through the proxy, which runs in this thread.
    migrate_state(&Site::new(&case.database));
    let server = case.armed(point, fault).start().await;
    let call = reencrypt(&server, certs::admin(), json!({}));
    let answer = if fault == Fault::Panic {
        call.await
    } else {
        let strike = async {
            until_reached(case.flags.path(), &server).await;
            if point == "after-write" {
                case.proxy.hold_answers();
                case.go();
                until_written(&case.client, 4).await;
            }
            case.strike(fault, &server).await;
            case.proxy.relay();
            case.go();
        };
        tokio::join!(call, strike).0
    };
    let writes = case.check_rows().await;
    check_answer(point, fault, answer, writes, &server).await;

    let server = if fault == Fault::Killed {
        case.site().start().await
    } else {
        server
    };
    server.wait_ready().await;
    // Postgres may need a moment to notice that the process that held the lock is gone.
    let mut next = reencrypt(&server, certs::admin(), json!({})).await;
    let deadline = Instant::now() + Duration::from_secs(30);
    while let Err(error) = &next {
        assert!(Instant::now() < deadline, "{name}: {error:?}");
        assert_eq!(error.code, "FAILED_PRECONDITION", "{name}: {error:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
        next = reencrypt(&server, certs::admin(), json!({})).await;
    }
    let next = next.unwrap();
    assert_eq!(counters(&next).failed, 0, "{name}: {next:?}");
    assert_eq!(next.rows_examined as usize, case.expected.len(), "{name}");
    let clean = run(&server, true).await;
    assert_eq!(
        (
            clean.rows_updated,
            clean.rows_skipped_all_on_target as usize
        ),
        (0, case.expected.len()),
        "{name}: {clean:?}"
    );
    let all = case.check_rows().await;
    assert_eq!(all, writes + u64::from(next.rows_updated), "{name}");
    if fault != Fault::Killed {
        let runs = ask(&server, "ListRuns", json!({})).await;
        let running = runs["runs"].as_array().unwrap().iter();
        let running: Vec<_> = running
            .filter(|run| run["state"] == "RUN_STATE_RUNNING")
            .collect();
        assert!(running.is_empty(), "{name}: {running:?}");
    }
}

async fn strike_at(point: &str) {
    for fault in FAULTS {
        strike(point, fault).await;
    }
}

#[tokio::test]
async fn a_fault_after_a_page_was_read() {
    strike_at("page-read").await;
}

#[tokio::test]
async fn a_fault_before_a_row_is_decided() {
    strike_at("before-decide").await;
}

#[tokio::test]
async fn a_fault_before_a_row_is_written() {
    strike_at("before-write").await;
}

#[tokio::test]
async fn a_fault_after_a_row_was_written_and_before_its_answer() {
    strike_at("after-write").await;
}

#[tokio::test]
async fn a_fault_before_the_rows_are_flushed() {
    strike_at("before-barrier").await;
}

#[tokio::test]
async fn a_fault_before_the_report() {
    strike_at("before-report").await;
}
