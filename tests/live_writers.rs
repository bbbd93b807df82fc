//! `nico-api` changes rows during a run. None of its changes is lost or makes a row fail.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::certs;
use crate::database::Database;
use crate::faults::{Guard, orgs, until_blocked};
use crate::grpcurl::{Report, reencrypt, run};
use crate::seal::{keys, open, seal};
use crate::seed::{self, COLUMNS, Org, Row};
use crate::server::Server;
use crate::site::Site;

/// The plaintexts of a row's three secrets.
pub(crate) type Secrets = [Option<String>; 3];

/// The statement with which `nico-api` bumps a version. The trigger below refuses any other change
/// of a version.
const BUMP: &str = "UPDATE tenants SET version = 'V' || split_part(substr(version, 2), '-T', 1)::bigint + 1 || '-T'
    || (extract(epoch FROM clock_timestamp()) * 1000000)::bigint WHERE organization_id = ";

pub(crate) const VERSIONS_GROW: &str = r"
    CREATE FUNCTION versions_grow() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        was bigint[] := regexp_match(OLD.version, '^V(\d+)-T(\d+)$');
        becomes bigint[] := regexp_match(NEW.version, '^V(\d+)-T(\d+)$');
    BEGIN
        IF becomes[1] = was[1] + 1 AND becomes[2] > was[2] THEN RETURN NEW; END IF;
        RAISE EXCEPTION '% after %', NEW.version, OLD.version;
    END $$;
    CREATE TRIGGER versions_grow BEFORE UPDATE ON tenants FOR EACH ROW EXECUTE FUNCTION versions_grow()";

/// A task that changes its own organizations as `nico-api` does, and knows their expected content.
pub(crate) struct Rival {
    name: usize,
    client: Client,
    pub(crate) expected: BTreeMap<String, Secrets>,
    pub(crate) changes: u32,
    gave_way: u32,
}

impl Rival {
    pub(crate) async fn new(name: usize, database: &Database) -> Self {
        let client = database.client().await;
        let mut rival = Self {
            name,
            client,
            expected: BTreeMap::new(),
            changes: 0,
            gave_way: 0,
        };
        for _ in 0..10 {
            rival.insert().await;
        }
        rival
    }

    async fn write_until(mut self, stop: Arc<AtomicBool>) -> Self {
        while !stop.load(Ordering::Relaxed) {
            self.change().await;
        }
        self
    }

    /// Connects again, after a restart of the database.
    pub(crate) async fn reconnect(&mut self, database: &Database) {
        self.client = database.client().await;
    }

    /// One random change.
    pub(crate) async fn change(&mut self) {
        if self.expected.len() < 5 {
            self.insert().await;
        }
        let any = fastrand::usize(..self.expected.len());
        let id = self.expected.keys().nth(any).unwrap().clone();
        let fresh = Some(format!("{} of rival {}", self.changes, self.name));
        match fastrand::u32(..12) {
            0..4 => {
                self.update(
                    &id,
                    fastrand::usize(..2),
                    fresh,
                    "current_signing_key_slot = 'signing_key_2'",
                )
                .await
            }
            4..7 => {
                self.update(&id, 2, fresh, "auth_method = 'client_secret_basic'")
                    .await
            }
            7 => self.update(&id, 2, None, "auth_method = NULL").await,
            8..10 => {
                self.update(&id, 1, None, "non_active_slot_expires_at = NULL")
                    .await
            }
            10 => self.delete(&id).await,
            _ => self.insert().await,
        }
        self.changes += 1;
    }

    async fn update(&mut self, id: &str, slot: usize, secret: Option<String>, also: &str) {
        let key_id = if fastrand::bool() { "kv1" } else { "kv2" };
        let text = secret.as_ref().map(|secret| seal(secret, key_id));
        let value = text.map_or("NULL".to_owned(), |text| format!("'{text}'"));
        let sql = format!(
            "UPDATE tenant_identity_config SET {} = {value}, {also}, updated_at = now() WHERE organization_id = '{id}';
            SELECT pg_sleep(0.002);
            {BUMP} '{id}'",
            COLUMNS[slot]
        );
        self.execute(&sql).await;
        self.expected.get_mut(id).unwrap()[slot] = secret;
    }

    /// Locks the two rows in the opposite order, as a cascade does.
    async fn delete(&mut self, id: &str) {
        let sql = format!(
            "SELECT FROM tenants WHERE organization_id = '{id}' FOR UPDATE;
            SELECT pg_sleep(0.002);
            DELETE FROM tenants WHERE organization_id = '{id}'"
        );
        self.execute(&sql).await;
        self.expected.remove(id);
    }

    /// A new organization.
    pub(crate) async fn insert(&mut self) {
        let id = format!("org-{}-{}", fastrand::u32(..), self.name);
        let secret = |what: &str| Some(format!("{what} of {id}"));
        let secrets = [secret("key"), None, secret("delegation")];
        let texts = secrets
            .clone()
            .map(|secret| secret.map(|secret| seal(secret, "kv1")));
        Org::new(&id).texts(texts).insert(&self.client).await;
        self.expected.insert(id, secrets);
    }

    /// Runs one transaction whose statements are sent together. Repeats it after a deadlock.
    async fn execute(&mut self, sql: &str) {
        while let Err(e) = self.client.batch_execute(sql).await {
            let retry = [
                SqlState::T_R_DEADLOCK_DETECTED,
                SqlState::T_R_SERIALIZATION_FAILURE,
            ];
            assert!(
                e.code().is_some_and(|code| retry.contains(code)),
                "{sql}: {e:?}"
            );
            self.gave_way += 1;
        }
    }
}

fn secrets(row: &Row, target: &str) -> Secrets {
    let plaintext = |text: &String| {
        let (key_id, plaintext) = open(text, &keys(&["kv1", "kv2"])).unwrap();
        assert_eq!(key_id, target);
        String::from_utf8(plaintext).unwrap()
    };
    row.texts
        .each_ref()
        .map(|text| text.as_ref().map(plaintext))
}

/// A site-wide apply. `None` if another one is in progress.
async fn try_run(server: &Server) -> Option<Report> {
    match reencrypt(server, certs::admin(), json!({})).await {
        Ok(report) => Some(report),
        Err(error) => {
            let reason = error.reason();
            assert_eq!(reason.as_deref(), Some("APPLY_UNDER_WAY"), "{error:?}");
            None
        }
    }
}

#[tokio::test]
async fn concurrent_writes_are_never_lost_during_runs_in_both_directions() {
    let database = Database::migrated().await;
    let admin = database.admin().await;
    // With the default deadlock_timeout of 1 s, there would be few deadlocks.
    let impatient = format!(
        "ALTER DATABASE {} SET deadlock_timeout = '20ms'; {VERSIONS_GROW}",
        database.name()
    );
    admin.batch_execute(&impatient).await.unwrap();
    let to = |target| Site::new(&database).target(target).start();
    let (to_kv1, to_kv2) = tokio::join!(to("kv1"), to("kv2"));
    let stop = Arc::new(AtomicBool::new(false));
    let mut rivals = Vec::new();
    for name in 0..3 {
        let rival = Rival::new(name, &database).await;
        rivals.push(tokio::spawn(rival.write_until(stop.clone())));
    }

    let mut reports = Vec::new();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        reports.extend([run(&to_kv2, false).await, run(&to_kv1, false).await]);
    }
    let updated = |reports: &[Report]| -> u32 { reports.iter().map(|r| r.rows_updated).sum() };
    // On a slow machine, until the runs have met the rivals often enough.
    while start.elapsed() < Duration::from_secs(5)
        || (updated(&reports) <= 100 && start.elapsed() < Duration::from_secs(60))
    {
        // One of two at once may be refused: a site has one apply at a time.
        let both = tokio::join!(try_run(&to_kv1), try_run(&to_kv2));
        reports.extend([both.0, both.1].into_iter().flatten());
    }
    stop.store(true, Ordering::Relaxed);
    let (mut expected, mut gave_way) = (BTreeMap::new(), 0);
    for rival in rivals {
        let rival = rival.await.unwrap();
        gave_way += rival.gave_way;
        assert!(rival.changes > 20, "a rival that hardly writes is none");
        expected.extend(rival.expected);
    }
    reports.push(run(&to_kv2, false).await);
    for report in &reports {
        assert_eq!(report.failures, [], "{report:?}");
        assert_eq!(report.rows_failed, 0);
        assert_eq!(
            report.rows_examined,
            report.rows_updated + report.rows_skipped_all_on_target
        );
    }
    let updated = updated(&reports);
    assert!(updated > 100, "{updated} rows are hardly a run each way");

    let rows = seed::snapshot(&admin).await;
    let found: BTreeMap<_, _> = rows
        .iter()
        .map(|(id, row)| (id.clone(), secrets(row, "kv2")))
        .collect();
    assert_eq!(found, expected, "rivals gave way {gave_way} times");
    let last = run(&to_kv2, false).await;
    assert_eq!(
        (last.rows_updated, last.rows_skipped_all_on_target as usize),
        (0, expected.len())
    );
}

#[tokio::test]
async fn a_row_that_keeps_changing_is_rewrapped_under_a_row_lock() {
    let database = Database::migrated().await;
    let rival = database.client().await;
    seed::insert(&rival, &orgs(1)).await;
    let server = Site::new(&database)
        .set("rewrap.lock_timeout", "\"60s\"")
        .set("rewrap.statement_timeout", "\"60s\"");
    let server = server.start().await;
    let gate = Guard::closed(&database).await;
    rival
        .batch_execute("SET lock_timeout = '100ms'")
        .await
        .unwrap();

    let mut report = std::pin::pin!(run(&server, false));
    let mut changes = 0;
    loop {
        tokio::select! {
            report = &mut report => panic!("past a closed gate: {report:?}"),
            () = gate.reached() => {}
        }
        let text = seal(format!("change {}", changes + 1), "kv1");
        let change =
            format!("UPDATE tenant_identity_config SET encrypted_signing_key_2 = '{text}'");
        match rival.batch_execute(&change).await {
            Ok(()) => changes += 1,
            // The service has locked the row before it writes, so no other client can change it.
            Err(e) if e.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => break,
            Err(e) => panic!("{e:?}"),
        }
        assert!(
            changes < 20,
            "a rival that never rests is never caught up with"
        );
        gate.pass().await;
    }
    gate.open().await;
    let report = report.await;
    assert_eq!(
        (
            report.rows_updated,
            report.fields_reencrypted,
            report.rows_failed
        ),
        (1, 3, 0)
    );
    let row = &seed::snapshot(&rival).await["org000"];
    assert_eq!(secrets(row, "kv2")[1], Some(format!("change {changes}")));
    assert!(
        changes > 0 && row.version.starts_with("V8-"),
        "{changes} changes, {}",
        row.version
    );
}

#[tokio::test]
async fn a_row_that_changed_after_it_was_read_is_decided_again() {
    let on_target = seal("on target", "kv2");
    let unreadable = "encrypted_auth_method_config = 'not an envelope'";
    let deleted = "DELETE FROM tenants WHERE organization_id = 'org001'";
    let update = |set: &str| {
        format!("UPDATE tenant_identity_config SET {set} WHERE organization_id = 'org001'")
    };
    // The change of the other client, and the expected report: updated, on target, failed.
    let table = [
        (deleted.to_owned(), (2, 0, 0)),
        (
            update("encrypted_signing_key_1 = NULL, encrypted_auth_method_config = ''"),
            (2, 1, 0),
        ),
        (
            update(&format!(
                "encrypted_signing_key_1 = '{on_target}', encrypted_auth_method_config = NULL"
            )),
            (2, 1, 0),
        ),
        (update(unreadable), (2, 0, 1)),
        (update("issuer = 'https://elsewhere.example'"), (3, 0, 0)),
        (format!("{BUMP} 'org001'"), (3, 0, 0)),
    ];
    for (change, expected) in table {
        let database = Database::migrated().await;
        let rival = database.client().await;
        seed::insert(&rival, &orgs(3)).await;
        let server = Site::new(&database)
            .set("rewrap.lock_timeout", "\"60s\"")
            .start()
            .await;
        let gate = Guard::closed(&database).await;
        let mut after_change = BTreeMap::new();
        let meanwhile = async {
            gate.reached().await;
            rival.batch_execute(&change).await.unwrap();
            after_change = seed::snapshot(&rival).await;
            gate.open().await;
        };
        let (report, ()) = tokio::join!(run(&server, false), meanwhile);
        let counted = (
            report.rows_updated,
            report.rows_skipped_all_on_target,
            report.rows_failed,
        );
        assert_eq!(counted, expected, "{change}");
        assert_eq!(
            report.rows_examined,
            counted.0 + counted.1 + counted.2,
            "{change}"
        );
        let after_run = seed::snapshot(&rival).await;
        let untouched = after_run.get("org001") == after_change.get("org001");
        assert_eq!(
            untouched,
            expected.0 == 2,
            "{change}: only an update may touch the row"
        );
        if change.starts_with(BUMP) {
            assert!(
                after_run["org001"].version.starts_with("V9-"),
                "both bumps count"
            );
        }
    }
}

#[tokio::test]
async fn an_organization_deleted_during_its_run_is_not_found() {
    let database = Database::migrated().await;
    let rival = database.client().await;
    seed::insert(&rival, &orgs(1)).await;
    let server = Site::new(&database).start().await;
    let gate = Guard::closed(&database).await;
    let request = json!({"organizationId": "org000"});
    let meanwhile = async {
        gate.reached().await;
        rival.batch_execute("DELETE FROM tenants").await.unwrap();
        gate.open().await;
    };
    let (answer, ()) = tokio::join!(reencrypt(&server, certs::admin(), request), meanwhile);
    assert_eq!(answer.unwrap_err().code, "NOT_FOUND");
}

#[tokio::test]
async fn a_change_committed_while_a_run_waits_for_the_row_survives() {
    let database = Database::migrated().await;
    let (rival, watch) = (database.client().await, database.client().await);
    seed::insert(&rival, &orgs(3)).await;
    let server = Site::new(&database)
        .set("rewrap.lock_timeout", "\"60s\"")
        .set("rewrap.statement_timeout", "\"60s\"");
    let server = server.start().await;
    let text = seal("the rival's", "kv1");
    let change = format!(
        "BEGIN; UPDATE tenant_identity_config SET encrypted_signing_key_1 = '{text}' WHERE organization_id = 'org001';
        {BUMP} 'org001'"
    );
    rival.batch_execute(&change).await.unwrap();
    let meanwhile = async {
        until_blocked(&watch).await;
        rival.batch_execute("COMMIT").await.unwrap();
    };
    let (report, ()) = tokio::join!(run(&server, false), meanwhile);
    assert_eq!((report.rows_updated, report.rows_failed), (3, 0));
    let row = &seed::snapshot(&rival).await["org001"];
    assert_eq!(secrets(row, "kv2")[0].as_deref(), Some("the rival's"));
    assert!(
        row.version.starts_with("V9-"),
        "both bumps count: {}",
        row.version
    );
}
