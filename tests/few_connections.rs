//! A role with a lower connection limit than the configured pool size: one connection is enough.

use crate::database::Database;
use crate::faults::orgs;
use crate::grpcurl::run;
use crate::seed;
use crate::server::Server;
use crate::site::Site;

async fn limited_to(connections: u32, database: &Database) -> Server {
    limited(connections, database).await.start().await
}

pub(crate) async fn limited(connections: u32, database: &Database) -> Site {
    let admin = database.admin().await;
    let role = format!("limited_{}", database.name());
    let sql = format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'pw' CONNECTION LIMIT {connections};
         GRANT SELECT, UPDATE ON tenants, tenant_identity_config TO {role}"
    );
    admin.batch_execute(&sql).await.unwrap();
    let url = database.url();
    let (_, rest) = url.split_once('@').unwrap();
    Site::with_url(&format!("postgres://{role}:pw@{rest}"))
}

#[tokio::test]
async fn a_run_with_few_connections_waits_for_locked_rows_to_its_end() {
    // The connections that Postgres allows, and those that are configured.
    for (allowed, pool_size) in [(1, "5"), (2, "5"), (2, "1"), (3, "2")] {
        let case = format!("{allowed} {pool_size}");
        let database = Database::migrated().await;
        let (rival, client) = (database.client().await, database.client().await);
        seed::insert(&client, &orgs(120)).await;
        let server = limited(allowed, &database)
            .await
            .set("rewrap.database_pool_size", pool_size)
            .set("rewrap.page_size", "30")
            .set("rewrap.lock_timeout", "\"300ms\"")
            .set("rewrap.statement_timeout", "\"2s\"")
            .set("rewrap.pool_acquire_timeout", "\"500ms\"")
            .start()
            .await;
        let lock = "BEGIN; SELECT FROM tenant_identity_config ORDER BY organization_id LIMIT 40 FOR UPDATE";
        rival.batch_execute(lock).await.unwrap();
        // One batch of them takes much longer than pool_acquire_timeout.
        let report = run(&server, false).await;
        assert_eq!(
            (report.rows_updated, report.rows_failed),
            (80, 40),
            "{case}"
        );
        rival.batch_execute("ROLLBACK").await.unwrap();
    }
}

#[tokio::test]
async fn a_run_goes_on_with_the_connections_that_there_are() {
    for limit in [1, 2, 3, 5] {
        let database = Database::migrated().await;
        let client = database.client().await;
        seed::insert(&client, &orgs(400)).await;
        let server = limited_to(limit, &database).await;
        for dry_run in [true, false, false] {
            let report = run(&server, dry_run).await;
            assert_eq!(
                (report.rows_examined, report.rows_failed),
                (400, 0),
                "{limit}"
            );
        }
        let told = server.log_text().matches("fewer connections than").count();
        // Four batches and a page do not always want six connections at once.
        let expected = if limit < 5 { 1..=1 } else { 0..=1 };
        assert!(
            expected.contains(&told),
            "said {told} times, with {limit} connections"
        );
    }
}
