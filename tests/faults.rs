//! Database faults, created in Postgres itself: triggers that fire only for the service, and a gate
//! that blocks its writes until the test opens the gate.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::database::Database;
use crate::seed::{Org, VERSION};

/// An SQL condition for triggers and `pg_stat_activity`: true for the service, by its
/// `application_name`.
const SERVICE: &str = "current_setting('application_name') = 'nico-rewrap'";

/// `n` usual organizations under `kv1`: `org000`, `org001`, …
pub(crate) fn orgs(n: usize) -> Vec<Org> {
    (0..n)
        .map(|i| Org::under(&format!("org{i:03}"), "kv1"))
        .collect()
}

/// Waits until an SQL condition is true.
pub(crate) async fn until(client: &Client, condition: &str) {
    let sql = format!("SELECT ({condition})::boolean");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !client.query_one(&sql, &[]).await.unwrap().get::<_, bool>(0) {
        assert!(Instant::now() < deadline, "still not: {condition}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until a statement of the service waits for a lock.
pub(crate) async fn until_blocked(client: &Client) {
    let blocked = "EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
        AND application_name = 'nico-rewrap' AND wait_event_type = 'Lock')";
    until(client, blocked).await;
}

/// Waits until this many organizations have another version than the seeded one.
pub(crate) async fn until_written(client: &Client, organizations: i64) {
    let written =
        format!("(SELECT count(*) FROM tenants WHERE version <> '{VERSION}') >= {organizations}");
    until(client, &written).await;
}

/// The number of organizations that have another version than the seeded one.
pub(crate) async fn written(client: &Client) -> i64 {
    let sql = "SELECT count(*) FROM tenants WHERE version <> $1";
    client.query_one(sql, &[&VERSION]).await.unwrap().get(0)
}

/// Waits until a commit waits for the synchronous standby that is configured: the setting takes effect a moment
/// after it can be read.
pub(crate) async fn until_commits_wait(database: &Database, watch: &Client) {
    let probe = database.admin().await;
    let pid: i32 = probe
        .query_one("SELECT pg_backend_pid()", &[])
        .await
        .unwrap()
        .get(0);
    let waits = format!(
        "EXISTS (SELECT FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'SyncRep')"
    );
    let commit = "SET synchronous_commit = on; SELECT pg_logical_emit_message(true, 'test', '')";
    loop {
        tokio::select! {
            committed = probe.batch_execute(commit) => committed.unwrap(),
            () = until(watch, &waits) => break,
        }
    }
    watch
        .query("SELECT pg_cancel_backend($1)", &[&pid])
        .await
        .unwrap();
}

/// Makes every row write of the service take this long.
pub(crate) async fn slow_writes(client: &Client, seconds: f64) {
    let body = format!("PERFORM pg_sleep({seconds});");
    before_update(client, "slow", "true", &body).await;
}

/// Makes the service's writes of this organization raise an error: the first `times` writes, or all
/// of them.
pub(crate) async fn raise(client: &Client, organization: &str, sqlstate: &str, times: Option<u32>) {
    let name = format!("raise_{organization}");
    let sequence = format!("CREATE SEQUENCE {name}");
    client.batch_execute(&sequence).await.unwrap();
    let times = times.map_or("NULL".to_owned(), |times| times.to_string());
    // A rollback does not reset a sequence.
    let body = format!(
        "IF nextval('{name}') <= coalesce({times}, 1000000) THEN
            RAISE EXCEPTION 'made by a test' USING ERRCODE = '{sqlstate}';
        END IF;"
    );
    let when = format!("OLD.organization_id = '{organization}'");
    before_update(client, &name, &when, &body).await;
}

/// How often the trigger of [`raise`] fired.
pub(crate) async fn raised(client: &Client, organization: &str) -> i64 {
    let sql = format!("SELECT last_value FROM raise_{organization}");
    client.query_one(&sql, &[]).await.unwrap().get(0)
}

/// Adds a trigger that runs before the service updates a row. `body` is PL/pgSQL.
pub(crate) async fn before_update(client: &Client, name: &str, when: &str, body: &str) {
    let sql = format!(
        "CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NEW; END $$;
        CREATE TRIGGER {name} BEFORE UPDATE ON tenant_identity_config
            FOR EACH ROW WHEN ({SERVICE} AND {when}) EXECUTE FUNCTION {name}()"
    );
    client.batch_execute(&sql).await.unwrap();
}

/// Blocks every UPDATE of the service after it has taken its snapshot and before it reads a row. A
/// change that another client commits in the meantime makes the compare-and-set miss.
pub(crate) struct Guard {
    holder: Client,
}

impl Guard {
    /// Creates a closed gate.
    pub(crate) async fn closed(database: &Database) -> Self {
        let holder = database.client().await;
        let sql = format!(
            "CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF {SERVICE} THEN
                    PERFORM pg_advisory_lock_shared(1);
                    PERFORM pg_advisory_unlock_shared(1);
                END IF;
                RETURN NULL;
            END $$;
            CREATE TRIGGER gate BEFORE UPDATE ON tenant_identity_config
                FOR EACH STATEMENT EXECUTE FUNCTION gate();
            SELECT pg_advisory_lock(1)"
        );
        holder.batch_execute(&sql).await.unwrap();
        Self { holder }
    }

    /// Waits until the service waits at the gate.
    pub(crate) async fn reached(&self) {
        until_blocked(&self.holder).await;
    }

    /// Lets the current waiters pass. The gate queues for the lock behind them, so later ones wait.
    pub(crate) async fn pass(&self) {
        let sql = "SELECT pg_advisory_unlock(1); SELECT pg_advisory_lock(1)";
        self.holder.batch_execute(sql).await.unwrap();
    }

    /// Opens the gate permanently.
    pub(crate) async fn open(self) {
        self.holder
            .batch_execute("SELECT pg_advisory_unlock(1)")
            .await
            .unwrap();
    }
}
