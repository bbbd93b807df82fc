//! Triggers that run after the UPDATE of a row and undo it: at the end of the statement, or at
//! COMMIT. Only the affected rows fail, and they stay unchanged.

use serde_json::json;
use tokio_postgres::Client;

use crate::certs;
use crate::database::Database;
use crate::faults::{orgs, slow_writes, until_written, written};
use crate::grpcurl::{reencrypt, run};
use crate::outcome::seeded;
use crate::seed::snapshot;
use crate::site::{Site, quote};

const TEXT: &str = "put another text";
const VERSION: &str = "kept tenants.version";

/// Undoes the text of org001 and org002, after any UPDATE by the service.
const UNDO_TEXT: &str =
    "IF NOT EXISTS (SELECT FROM undone WHERE id = pg_current_xact_id()::text) THEN
        INSERT INTO undone VALUES (pg_current_xact_id()::text);
        UPDATE tenant_identity_config c SET encrypted_signing_key_1 = k.encrypted_signing_key_1
        FROM kept k WHERE k.organization_id = c.organization_id AND c.organization_id IN ('org001', 'org002');
    END IF;";
/// Undoes the version of org001 and org002.
const UNDO_VERSION: &str =
    "IF NOT EXISTS (SELECT FROM undone WHERE id = pg_current_xact_id()::text) THEN
        INSERT INTO undone VALUES (pg_current_xact_id()::text);
        UPDATE tenants t SET version = k.version
        FROM kept k WHERE k.organization_id = t.organization_id AND t.organization_id IN ('org001', 'org002');
    END IF;";
const IF_SERVICE: &str = "current_setting('application_name') = 'nico-rewrap'";

/// A trigger function with this body, and `kept`: the rows as they are now.
async fn undo(client: &Client, body: &str) {
    let sql = format!(
        "CREATE TABLE kept AS SELECT c.*, t.version FROM tenant_identity_config c JOIN tenants t USING (organization_id);
        CREATE FUNCTION undo() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN IF {IF_SERVICE} THEN {body} END IF; RETURN NULL; END $$;
        CREATE TABLE undone (id text);
        CREATE TABLE elsewhere (id text);
        CREATE FUNCTION elsewhere() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO elsewhere VALUES (NEW.organization_id); RETURN NEW; END $$"
    );
    client.batch_execute(&sql).await.unwrap();
}

#[tokio::test]
async fn a_trigger_after_the_write_that_undoes_it_fails_the_row_and_nothing_is_written() {
    let row = "AFTER UPDATE ON {} FOR EACH ROW";
    let statement = "AFTER UPDATE ON {} FOR EACH STATEMENT";
    let deferred = "AFTER UPDATE ON {} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW";
    let deferrable = "AFTER UPDATE ON {} DEFERRABLE FOR EACH ROW";
    // Where the trigger is, when it runs, and what it undoes.
    let table = [
        ("tenant_identity_config", row, UNDO_TEXT, TEXT),
        ("tenant_identity_config", statement, UNDO_TEXT, TEXT),
        ("tenant_identity_config", deferred, UNDO_TEXT, TEXT),
        ("tenant_identity_config", deferrable, UNDO_VERSION, VERSION),
        ("tenants", row, UNDO_VERSION, VERSION),
        ("tenants", statement, UNDO_VERSION, VERSION),
        ("tenants", deferred, UNDO_VERSION, VERSION),
        ("tenants", deferred, UNDO_TEXT, TEXT),
    ];
    for (on, when, body, words) in table {
        for pooler in ["session", "transaction"] {
            let case = format!("{on} {when} {words} {pooler}");
            let (database, client) = seeded(&orgs(4)).await;
            undo(&client, body).await;
            let constraint = if when.contains("DEFERRABLE") {
                "CONSTRAINT"
            } else {
                ""
            };
            let when = when.replace("{}", on);
            let sql = format!("CREATE {constraint} TRIGGER undo {when} EXECUTE FUNCTION undo()");
            client.batch_execute(&sql).await.unwrap();
            assert_two_fail(&database, &client, words, pooler, &case).await;
        }
    }
}

#[tokio::test]
async fn a_deferred_trigger_of_another_table_that_undoes_a_write_fails_the_row() {
    // A trigger can be deferred from the start, or by another trigger.
    let defer = "CREATE FUNCTION defer() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN SET CONSTRAINTS undo DEFERRED; RETURN NEW; END $$;
        CREATE TRIGGER defer BEFORE UPDATE ON tenant_identity_config
            FOR EACH ROW EXECUTE FUNCTION defer();";
    for (pooler, initially, defer) in [
        ("session", "DEFERRED", ""),
        ("transaction", "DEFERRED", ""),
        ("session", "IMMEDIATE", defer),
        ("transaction", "IMMEDIATE", defer),
    ] {
        let (database, client) = seeded(&orgs(4)).await;
        undo(&client, UNDO_TEXT).await;
        let sql = format!(
            "{defer}
            CREATE TRIGGER elsewhere BEFORE UPDATE ON tenant_identity_config
                FOR EACH ROW EXECUTE FUNCTION elsewhere();
            CREATE CONSTRAINT TRIGGER undo AFTER INSERT ON elsewhere DEFERRABLE INITIALLY {initially}
                FOR EACH ROW EXECUTE FUNCTION undo()"
        );
        client.batch_execute(&sql).await.unwrap();
        let case = format!("{initially} {pooler}");
        assert_two_fail(&database, &client, TEXT, pooler, &case).await;
    }
}

#[tokio::test]
async fn a_trigger_behind_a_foreign_key_that_follows_the_version_fails_the_row() {
    let (database, client) = seeded(&orgs(4)).await;
    undo(&client, UNDO_TEXT).await;
    let sql = "CREATE TABLE copies AS SELECT organization_id, version FROM tenants;
        ALTER TABLE tenants ADD UNIQUE (organization_id, version);
        ALTER TABLE copies ADD FOREIGN KEY (organization_id, version)
            REFERENCES tenants (organization_id, version) ON UPDATE CASCADE;
        CREATE TRIGGER undo AFTER UPDATE ON copies FOR EACH ROW EXECUTE FUNCTION undo()";
    client.batch_execute(sql).await.unwrap();
    assert_two_fail(&database, &client, TEXT, "session", "foreign key").await;
}

/// Applies to the site and to each organization: org001 and org002 fail, and only they.
async fn assert_two_fail(
    database: &Database,
    client: &Client,
    words: &str,
    pooler: &str,
    case: &str,
) {
    let before = snapshot(client).await;
    let server = Site::new(database)
        .set("rewrap.pool_mode", quote(pooler))
        .start()
        .await;
    let report = run(&server, false).await;
    let counted = (report.rows_updated, report.rows_failed);
    assert_eq!(counted, (2, 2), "{case}: {:?}", report.failures);
    for (failure, id) in report.failures.iter().zip(["org001", "org002"]) {
        assert_eq!(failure.organization_id, id, "{case}");
        assert!(failure.error.contains(words), "{case}: {}", failure.error);
    }
    let one = json!({"organizationId": "org001"});
    let report = reencrypt(&server, certs::admin(), one).await.unwrap();
    assert_eq!(report.rows_failed, 1, "{case}");
    let mut after = snapshot(client).await;
    // The write of another row touches them and changes nothing.
    for (id, row) in &mut after {
        row.written_by = before[id].written_by.clone();
    }
    for id in ["org000", "org003"] {
        assert!(after[id].version.starts_with("V8-"), "{case}: {id}");
        after.insert(id.to_owned(), before[id].clone());
    }
    assert_eq!(after, before, "{case}");
}

#[tokio::test]
async fn a_trigger_that_undoes_nothing_or_is_not_in_force_fails_no_row() {
    let audit = "CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO audit VALUES (NEW.organization_id); RETURN NULL; END $$;
        CREATE TABLE audit (id text)";
    let table = [
        "CREATE TRIGGER audit AFTER UPDATE ON tenants FOR EACH ROW EXECUTE FUNCTION audit();
            CREATE TRIGGER audit AFTER UPDATE ON tenant_identity_config FOR EACH ROW EXECUTE FUNCTION audit()",
        // A second bump, by a trigger.
        "CREATE FUNCTION bump() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN IF pg_trigger_depth() = 1 THEN UPDATE tenants SET version = 'V99-T1'
                WHERE organization_id = NEW.organization_id; END IF; RETURN NULL; END $$;
            CREATE TRIGGER bump AFTER UPDATE ON tenants FOR EACH ROW EXECUTE FUNCTION bump()",
        "CREATE TRIGGER undo AFTER UPDATE ON tenant_identity_config FOR EACH ROW EXECUTE FUNCTION undo();
            ALTER TABLE tenant_identity_config DISABLE TRIGGER undo",
        "CREATE TRIGGER undo AFTER UPDATE OF issuer ON tenant_identity_config
            FOR EACH ROW EXECUTE FUNCTION undo()",
    ];
    for trigger in table {
        let (database, client) = seeded(&orgs(120)).await;
        undo(&client, UNDO_TEXT).await;
        client.batch_execute(audit).await.unwrap();
        client.batch_execute(trigger).await.unwrap();
        // As without triggers, the run evaluates changed rows again.
        let miss = "IF OLD.organization_id IN ('org007', 'org050') AND nextval('misses') <= 4 THEN RETURN NULL; END IF;";
        client
            .batch_execute("CREATE SEQUENCE misses")
            .await
            .unwrap();
        crate::faults::before_update(&client, "miss", "true", miss).await;
        let server = Site::new(&database).start().await;
        let report = run(&server, false).await;
        let counted = (report.rows_updated, report.rows_failed);
        assert_eq!(counted, (120, 0), "{trigger}: {:?}", report.failures);
        assert_eq!(written(&client).await, 120, "{trigger}");
        let report = run(&server, true).await;
        assert_eq!(report.rows_skipped_all_on_target, 120, "{trigger}");
    }
}

#[tokio::test]
async fn a_trigger_that_is_created_in_mid_run_ends_the_run_with_its_name() {
    let (database, client) = seeded(&orgs(60)).await;
    undo(&client, UNDO_TEXT).await;
    slow_writes(&client, 0.02).await;
    let site = Site::new(&database).set("rewrap.page_size", "10");
    let server = site.set("rewrap.database_pool_size", "2").start().await;
    let create = async {
        until_written(&client, 5).await;
        let sql = "CREATE TRIGGER undo AFTER UPDATE ON tenant_identity_config
            FOR EACH ROW EXECUTE FUNCTION undo()";
        client.batch_execute(sql).await.unwrap();
    };
    let (answer, ()) = tokio::join!(reencrypt(&server, certs::admin(), json!({})), create);
    let error = answer.unwrap_err();
    assert_eq!(error.code, "FAILED_PRECONDITION", "{error:?}");
    assert_eq!(error.reason().as_deref(), Some("TRIGGER_CREATED"));
    let named = "the trigger undo on tenant_identity_config";
    assert!(error.message.contains(named), "{}", error.message);
    assert_eq!(server.audited_rows("TRIGGER_CREATED").await, 60);
    // The next run reads what it writes.
    let report = run(&server, false).await;
    assert_eq!((report.rows_failed, report.rows_updated), (2, 0));
}
