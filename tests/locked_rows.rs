//! After too many conflicts, the server decides a row under its lock. It holds the lock only for
//! the decision and one round trip, and always releases it.

use std::time::Duration;

use nico_rewrap::domain::keyring::KeyId;
use nico_rewrap::store::database::Database as Target;
use nico_rewrap::store::{Durability, PoolMode, Store, StoreOptions};
use tokio_postgres::Client;

use crate::database::Database;
use crate::faults::{before_update, orgs, until, until_blocked, until_written};
use crate::grpcurl::run;
use crate::pg;
use crate::proxy::Proxy;
use crate::seal::key_id;
use crate::seed::{self, snapshot};
use crate::site::{Site, quote};

/// SQL condition: the service has no transaction open, and so holds no lock.
const ENDED: &str = "NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
    AND application_name = 'nico-rewrap' AND xact_start IS NOT NULL)";

/// Makes one organization miss three times, so that the server locks it for the fourth attempt.
/// `body` then acts on that write.
async fn fourth_try(client: &Client, body: &str) {
    seed::insert(client, &orgs(1)).await;
    let tries = "CREATE SEQUENCE tries";
    client.batch_execute(tries).await.unwrap();
    let miss = "IF nextval('tries') <= 3 THEN RETURN NULL; END IF;";
    before_update(client, "fourth", "true", &format!("{miss} {body}")).await;
}

#[tokio::test]
async fn the_commit_goes_out_before_the_write_is_answered() {
    for (pooler, cut) in [
        ("session", false),
        ("session", true),
        ("transaction", false),
    ] {
        let database = Database::migrated().await;
        let (gate, watch) = (database.client().await, database.client().await);
        fourth_try(&watch, "PERFORM pg_advisory_xact_lock(1);").await;
        let close = "SELECT pg_advisory_lock(1)";
        gate.batch_execute(close).await.unwrap();
        let proxy = Proxy::to(pg::Server::shared().port()).await;
        let site = Site::with_url(&proxy.url(&database)).set("rewrap.pool_mode", quote(pooler));
        let site = site
            .set("rewrap.statement_timeout", "\"100s\"")
            .set("rewrap.lock_timeout", "\"100s\"");
        let server = site.start().await;
        let answers_held = async {
            until_blocked(&watch).await;
            proxy.hold_answers();
            let open = "SELECT pg_advisory_unlock(1)";
            gate.batch_execute(open).await.unwrap();
            // Postgres has released the lock, but the answer to the write has not arrived.
            until_written(&watch, 1).await;
            match cut {
                true => proxy.cut(),
                false => proxy.relay(),
            }
        };
        let (report, ()) = tokio::join!(run(&server, false), answers_held);
        let counted = (report.rows_examined, report.rows_updated);
        assert_eq!(counted, (1, 1), "{pooler} {cut}: {report:?}");
        let row = &snapshot(&watch).await["org000"];
        assert!(row.version.starts_with("V8-"), "{pooler} {cut}: once");
        let keys = row.texts.iter().flatten().map(|text| key_id(text));
        assert!(keys.into_iter().all(|key| key == "kv2"), "{pooler} {cut}");
    }
}

#[tokio::test]
async fn a_failure_under_the_lock_is_reported_and_nothing_is_written() {
    // The action of the trigger, the action at COMMIT, and a word of the failure. `None` means
    // that the row does not fail.
    let raise =
        |sqlstate: &str| format!("RAISE EXCEPTION 'made by a test' USING ERRCODE = '{sqlstate}';");
    let twice = |sqlstate| format!("IF nextval('tries') <= 7 THEN {} END IF;", raise(sqlstate));
    let table = [
        (raise("23514"), String::new(), Some("23514")),
        (raise("40001"), String::new(), Some("max_attempts")),
        (twice("40001"), String::new(), None),
        (String::new(), raise("P0001"), Some("P0001")),
        (String::new(), raise("40P01"), Some("max_attempts")),
        (String::new(), twice("40P01"), None),
        (
            "RETURN NULL;".to_owned(),
            String::new(),
            Some("ignored the write"),
        ),
    ];
    for pooler in ["session", "transaction"] {
        for (write, commit, named) in &table {
            let case = format!("{pooler}, {write:?}, {commit:?}");
            let database = Database::migrated().await;
            let client = database.client().await;
            fourth_try(&client, write).await;
            let at_commit = format!(
                "CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {commit} RETURN NULL; END $$;
                CREATE CONSTRAINT TRIGGER at_commit AFTER UPDATE ON tenants DEFERRABLE INITIALLY DEFERRED
                    FOR EACH ROW EXECUTE FUNCTION at_commit()"
            );
            client.batch_execute(&at_commit).await.unwrap();
            let before = snapshot(&client).await;
            let site = Site::new(&database).set("rewrap.pool_mode", quote(pooler));
            let server = site.set("rewrap.database_pool_size", "1").start().await;
            let report = run(&server, false).await;
            let row = snapshot(&client).await;
            match named {
                None => {
                    assert_eq!(report.rows_updated, 1, "{case}: {report:?}");
                    assert!(row["org000"].version.starts_with("V8-"), "{case}");
                }
                Some(named) => {
                    assert_eq!(report.rows_failed, 1, "{case}: {report:?}");
                    let error = &report.failures[0].error;
                    assert!(error.contains(named), "{case}: {error}");
                    assert_eq!(row, before, "{case}");
                }
            }
            until(&client, ENDED).await;
        }
    }
}

#[tokio::test]
async fn a_version_that_is_kept_from_counting_is_told_under_the_lock_too() {
    let database = Database::migrated().await;
    let client = database.client().await;
    fourth_try(&client, "").await;
    let keep =
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
        CREATE TRIGGER keep BEFORE UPDATE ON tenants FOR EACH ROW EXECUTE FUNCTION keep()";
    client.batch_execute(keep).await.unwrap();
    let before = snapshot(&client).await;
    let server = Site::new(&database).start().await;
    let report = run(&server, false).await;
    assert_eq!(report.rows_failed, 1, "{report:?}");
    let error = &report.failures[0].error;
    assert!(error.contains("tenants.version"), "{error}");
    assert_eq!(snapshot(&client).await, before, "a row is all or nothing");
}

#[tokio::test]
async fn a_write_under_lock_that_is_given_up_leaves_no_transaction_behind() {
    // The table for which the write waits when it is given up: it waits for its lock, or in the
    // write after the COMMIT was sent.
    for table in ["tenant_identity_config", "tenants"] {
        for pooler in [PoolMode::Session, PoolMode::Transaction] {
            let database = Database::migrated().await;
            let (rival, watch) = (database.client().await, database.client().await);
            seed::insert(&rival, &orgs(1)).await;
            let before = snapshot(&rival).await;
            let target = Target::parse(&database.url(), None, Duration::from_secs(30)).unwrap();
            let store = Store::new(&target, options(pooler)).unwrap();
            let lock = format!("BEGIN; SELECT FROM {table} FOR UPDATE");
            rival.batch_execute(&lock).await.unwrap();
            let mut writer = store.writer().await.unwrap();
            let key = KeyId::new("kv2").unwrap();
            let texts = || [Some("new".to_owned()), None, None];
            tokio::select! {
                outcome = writer.replace_locked("org000", &key, |_| ((), Some(texts()))) =>
                    panic!("past a lock: {outcome:?}"),
                () = until_blocked(&watch) => {}
            }
            drop(writer);
            rival.batch_execute("ROLLBACK").await.unwrap();
            until(&watch, ENDED).await;
            let row = &snapshot(&watch).await["org000"];
            let written = row.texts == texts() && row.version.starts_with("V8-");
            let untouched = *row == before["org000"];
            assert!(untouched || (written && table == "tenants"), "{row:?}");
            // The pool's only connection is one that can be used.
            let found = store.row("org000").await.unwrap().unwrap();
            assert_eq!(found.texts, row.texts);
        }
    }
}

/// Options with limits far above the duration of a test.
pub(crate) fn options(pooler: PoolMode) -> StoreOptions {
    StoreOptions {
        database_pool_size: 1,
        page_size: 100,
        lock_timeout: Duration::from_secs(100),
        statement_timeout: Duration::from_secs(100),
        pool_acquire_timeout: Duration::from_secs(30),
        max_attempts: 5,
        pipeline_depth: 1,
        durability: Durability::PerRun,
        pool_mode: pooler,
    }
}
