//! The life of the process: the first log lines, the order of readiness, and the exit.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::certs;
use crate::database::Database;
use crate::grpcurl::{Call, reencrypt, run};
use crate::leaks;
use crate::pg;
use crate::seed::Org;
use crate::server::Server;
use crate::site::{Exit, Site};

/// Time limit for a condition on a busy machine.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// Waits until the gRPC health of the whole server and of the service has this value. It follows
/// `/readyz`.
async fn assert_health(server: &Server, expected: &str) {
    let call = Call::new(server, certs::machine());
    for service in ["", "forge.Forge"] {
        let request = json!({"service": service});
        let told = async || {
            let answer = call.unary("grpc.health.v1.Health/Check", &request).await;
            answer.unwrap().0["status"].clone()
        };
        let follows = async {
            while told().await != expected {
                sleep(Duration::from_millis(20)).await;
            }
        };
        let in_time = timeout(TIME_LIMIT, follows).await;
        in_time.unwrap_or_else(|_| panic!("{service:?} is not {expected}"));
    }
}

/// Checks that the probe and calls answer that the server is not ready. `why` is part of the
/// answer. `expected` is the code and the reason of the error.
async fn assert_not_ready(server: &Server, why: &str, expected: (&str, &str)) {
    assert_eq!(server.get("/livez").await, (200, "ok\n".to_owned()));
    until_probes_answer(server, 503, why).await;
    let (status, body) = server.get("/readyz").await;
    assert!(
        status == 503 && body.contains("not ready: database: ") && body.contains(why),
        "{status} {body}"
    );
    leaks::assert_none(&body);
    let error = reencrypt(server, certs::admin(), json!({"dryRun": true}))
        .await
        .unwrap_err();
    assert_eq!(
        (error.code.as_str(), error.reason().unwrap().as_str()),
        expected
    );
    assert!(error.message.contains(why), "{}", error.message);
    leaks::assert_none(&error.message);
    assert_health(server, "NOT_SERVING").await;
}

async fn assert_ready(server: &Server) {
    server.wait_ready().await;
    assert_eq!(server.get("/livez").await.0, 200);
    assert_eq!(server.get("/readyz").await, (200, "ready\n".to_owned()));
    assert_eq!(run(server, false).await.rows_updated, 1);
    assert_health(server, "SERVING").await;
}

#[tokio::test]
async fn the_start_waits_for_a_database_that_is_down() {
    let postgres = pg::Server::start();
    let database = Database::migrated_on(&postgres).await;
    Org::under("acme", "kv1")
        .insert(&database.client().await)
        .await;
    postgres.stop_fast();
    let server = Site::new(&database).start_unready().await;
    server.wait_log("waiting for the database").await;
    assert_not_ready(&server, "refused", ("UNAVAILABLE", "NOT_READY")).await;
    postgres.restart();
    assert_ready(&server).await;
    leaks::assert_none(&server.log_text());
}

#[tokio::test]
async fn the_start_waits_for_a_database_that_does_not_exist_yet() {
    let elsewhere = Database::migrated().await;
    let name = format!("late_{}", elsewhere.name());
    let url = elsewhere.url().replace(elsewhere.name(), &name);
    let server = Site::with_url(&url).start_unready().await;
    assert_not_ready(
        &server,
        "the database of database_url does not exist (SQLSTATE 3D000)",
        ("FAILED_PRECONDITION", "DATABASE_LOGIN"),
    )
    .await;
    Org::under("acme", "kv1")
        .insert(&elsewhere.client().await)
        .await;
    // A database is renamed only while nobody is connected to it.
    let admin = Database::new().await.admin().await;
    let end = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'",
        elsewhere.name()
    );
    admin.batch_execute(&end).await.unwrap();
    let rename = format!("ALTER DATABASE {} RENAME TO {name}", elsewhere.name());
    let renamed = async {
        while admin.batch_execute(&rename).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(TIME_LIMIT, renamed).await.unwrap();
    assert_ready(&server).await;
}

/// Waits until the probe has this answer. Calls have their own errors.
pub(crate) async fn until_probes_answer(server: &Server, status: u16, words: &str) {
    let deadline = Instant::now() + TIME_LIMIT;
    loop {
        let (found, body) = server.get("/readyz").await;
        if found == status && body.contains(words) {
            return;
        }
        assert!(Instant::now() < deadline, "{found} {body}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn probes_answer_while_the_database_is_silent() {
    // Accepts connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://nico@{}/nico", silent.local_addr().unwrap());
    let start = Instant::now();
    let server = Site::with_url(&url)
        .set("rewrap.connect_timeout", "\"100s\"")
        .start_unready()
        .await;
    assert_eq!(server.get("/livez").await, (200, "ok\n".to_owned()));
    until_probes_answer(&server, 503, "database: connecting to it").await;
    assert_health(&server, "NOT_SERVING").await;
    assert!(
        start.elapsed() < Duration::from_secs(50),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(server.terminate().await, 0);
}

/// A server whose Postgres the test may stop, and which gives up soon on a connection.
async fn on_its_own_postgres() -> (pg::Server, Database, Server) {
    let postgres = pg::Server::start();
    let database = Database::migrated_on(&postgres).await;
    let server = Site::new(&database)
        .set("rewrap.pool_acquire_timeout", "\"1s\"")
        .start()
        .await;
    (postgres, database, server)
}

#[tokio::test]
async fn the_probes_follow_a_database_that_stops_and_restarts() {
    let (postgres, _database, server) = on_its_own_postgres().await;
    for _ in 0..2 {
        postgres.stop_fast();
        until_probes_answer(&server, 503, "not ready: database: ").await;
        assert_eq!(server.get("/livez").await.0, 200);
        assert_health(&server, "NOT_SERVING").await;
        let error = reencrypt(&server, certs::admin(), json!({"dryRun": true})).await;
        // The call has its own error, not that of the probe.
        assert_eq!(
            error.unwrap_err().reason().as_deref(),
            Some("DATABASE_UNAVAILABLE")
        );
        postgres.restart();
        until_probes_answer(&server, 200, "ready").await;
        assert_health(&server, "SERVING").await;
    }
    leaks::assert_none(&server.log_text());
}

#[tokio::test]
async fn the_probes_show_a_database_that_hangs() {
    let (postgres, database, server) = on_its_own_postgres().await;
    let admin = database.admin().await;
    let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 'nico-rewrap'";
    let rows = admin.query(sql, &[]).await.unwrap();
    let mut pids: Vec<_> = rows
        .iter()
        .map(|row| row.get::<_, i32>(0).try_into().unwrap())
        .collect();
    pids.push(postgres.pid());
    crate::process::signal(&pids, "STOP");
    until_probes_answer(&server, 503, "no answer from the database").await;
    crate::process::signal(&pids, "CONT");
    until_probes_answer(&server, 200, "ready").await;
}

#[tokio::test]
async fn the_probes_show_a_revoked_privilege() {
    let database = Database::migrated().await;
    let admin = database.admin().await;
    let role = format!("reader_of_{}", database.name());
    let grant = format!(
        "CREATE ROLE {role} LOGIN;
         GRANT SELECT ON tenants, tenant_identity_config TO {role};
         GRANT UPDATE ON tenants TO {role}"
    );
    admin.batch_execute(&grant).await.unwrap();
    let url = database.url().replace("//nico:", &format!("//{role}:"));
    // The role has no UPDATE privilege for tenant_identity_config, as at a site that makes dry runs
    // only.
    let server = Site::with_url(&url)
        .set("rewrap.pool_acquire_timeout", "\"1s\"")
        .start()
        .await;
    // The first ping records the privileges with which later pings compare.
    sleep(Duration::from_secs(1)).await;
    assert_eq!(server.get("/readyz").await.0, 200);
    let revoke = format!("REVOKE UPDATE ON tenants FROM {role}");
    admin.batch_execute(&revoke).await.unwrap();
    until_probes_answer(&server, 503, "UPDATE on tenants.version").await;
    assert_health(&server, "NOT_SERVING").await;
    let grant = format!("GRANT UPDATE (version) ON tenants TO {role}");
    admin.batch_execute(&grant).await.unwrap();
    until_probes_answer(&server, 200, "ready").await;
    // Only a new connection shows that the role may not log in.
    let no_login = format!("ALTER ROLE {role} NOLOGIN");
    admin.batch_execute(&no_login).await.unwrap();
    until_probes_answer(&server, 503, "28000").await;
}

#[tokio::test]
async fn sigterm_ends_the_wait_for_a_database() {
    let nowhere = format!(
        "postgres://nico@127.0.0.1:{}/nico",
        crate::pg_host::free_port()
    );
    for signal in ["TERM", "INT"] {
        let server = Site::with_url(&nowhere).start_unready().await;
        server.wait_log("waiting for the database").await;
        server.signal(signal);
        assert_eq!(server.wait_exit().await, 0, "{}", server.log_text());
    }
}

#[tokio::test]
async fn sigterm_and_sigint_end_an_idle_server_with_exit_code_0() {
    let database = Database::migrated().await;
    for signal in ["TERM", "INT"] {
        let server = Site::new(&database).start().await;
        server.signal(signal);
        assert_eq!(server.wait_exit().await, 0, "{}", server.log_text());
        assert_eq!(
            server.logs_with("shut down").len(),
            1,
            "{}",
            server.log_text()
        );
    }
}

#[tokio::test]
async fn a_database_without_the_tables_or_columns_is_a_configuration_error() {
    let empty = Database::new().await;
    let lacking = Database::migrated().await;
    let ddl = "ALTER TABLE tenants DROP COLUMN version;
        ALTER TABLE tenant_identity_config DROP COLUMN updated_at, DROP COLUMN encrypted_signing_key_2";
    lacking.client().await.batch_execute(ddl).await.unwrap();
    let tables: &[&str] = &[
        "database_url: ",
        "lacks table tenants, table tenant_identity_config:",
    ];
    let columns: &[&str] = &[
        "database_url: ",
        "lacks column tenants.version, column tenant_identity_config.encrypted_signing_key_2, \
         column tenant_identity_config.updated_at:",
    ];
    for (database, words) in [(&empty, tables), (&lacking, columns)] {
        let Exit { code, stderr, .. } = Site::new(database).run_to_exit().await;
        assert_eq!(code, 78, "{stderr}");
        words
            .iter()
            .for_each(|words| assert!(stderr.contains(words), "no {words:?} in: {stderr}"));
        leaks::assert_none(&stderr);
    }
    empty.migrate().await;
    Site::new(&empty).start().await;
}

#[tokio::test]
async fn a_late_database_without_the_tables_ends_the_server() {
    let postgres = pg::Server::start();
    let database = Database::on(&postgres).await;
    postgres.stop_fast();
    let server = Site::new(&database).start_unready().await;
    server.wait_log("waiting for the database").await;
    postgres.restart();
    assert_eq!(server.wait_exit().await, 78, "{}", server.log_text());
    assert!(
        server
            .log_text()
            .contains("database_url: the database lacks table tenants, "),
        "{}",
        server.log_text()
    );
}

#[tokio::test]
async fn serve_runs_no_ddl_and_needs_no_privilege_for_it() {
    let postgres = pg::Server::options()
        .setting("log_statement", "all")
        .start();
    let database = Database::migrated_on(&postgres).await;
    Org::under("acme", "kv1")
        .insert(&database.client().await)
        .await;
    let rights = "REVOKE CREATE ON SCHEMA public FROM PUBLIC;
        CREATE ROLE rewrapper LOGIN;
        GRANT SELECT, UPDATE ON tenants, tenant_identity_config TO rewrapper";
    database.admin().await.batch_execute(rights).await.unwrap();
    let url = database.url().replace("//nico:", "//rewrapper:");
    let server = Site::with_url(&url).start().await;
    assert_eq!(run(&server, false).await.rows_updated, 1);
    let log = postgres.log();
    let ours: Vec<_> = log
        .lines()
        .filter(|line| line.contains(" nico-rewrap "))
        .collect();
    assert!(
        ours.iter().any(|line| line.contains("-- ")),
        "its statements are in the log:\n{log}"
    );
    for word in ["CREATE ", "ALTER ", "DROP ", "TRUNCATE ", "GRANT "] {
        assert!(
            !ours.iter().any(|line| line.contains(word)),
            "{word}\n{log}"
        );
    }
}

#[tokio::test]
async fn without_machine_identity_the_server_needs_no_keys_and_no_database() {
    let bare = |site: Site| {
        site.missing_secrets()
            .unset("rewrap.secrets_file")
            .unset("database_url")
    };
    let nowhere = || Site::with_url("postgres://nobody@127.0.0.1:1/nowhere");
    let sites = [
        bare(nowhere().without_section("machine_identity")),
        bare(
            nowhere()
                .set("machine_identity.enabled", "false")
                .unset("machine_identity.current_encryption_key_id"),
        ),
        bare(nowhere().unset("machine_identity.enabled")),
        nowhere()
            .set("machine_identity.enabled", "false")
            .missing_secrets(),
    ];
    for site in sites {
        let server = site.start().await;
        for request in [json!({"dryRun": true}), json!({"organizationId": "acme"})] {
            let error = reencrypt(&server, certs::admin(), request)
                .await
                .unwrap_err();
            assert_eq!(
                (error.code.as_str(), error.reason().as_deref()),
                ("FAILED_PRECONDITION", Some("MACHINE_IDENTITY_DISABLED"))
            );
            assert!(
                error.message.contains("[machine_identity].enabled = true"),
                "{}",
                error.message
            );
        }
        assert_health(&server, "SERVING").await;
        // An unauthorized client learns nothing about the configuration.
        let error = reencrypt(&server, certs::machine(), json!({}))
            .await
            .unwrap_err();
        assert_eq!(error.code, "PERMISSION_DENIED");
    }
}
