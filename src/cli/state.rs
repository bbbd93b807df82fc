//! `state migrate`: creates or upgrades the schema `nico_rewrap`, in which all instances of a
//! site keep runs, censuses and receipts.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::Subcommand;

use super::{ConfigFiles, EX_CONFIG, fail, runtime};
use crate::{
    config::{Environment, load_database},
    store::{
        database::Database,
        state::{STATE_TABLES, STATE_VERSION},
    },
};

/// The files of `migrations/state`, in order. The first one makes version 1.
const MIGRATIONS: [&str; STATE_VERSION as usize] =
    [include_str!("../../migrations/state/001_state.sql")];

// One migration at a time. A concurrent one waits, and then finds nothing to do.
const LOCK: &str = "-- state_lock
    BEGIN ISOLATION LEVEL READ COMMITTED, READ WRITE; SELECT pg_advisory_xact_lock(hashtext('nico_rewrap state migrate'));
    CREATE SCHEMA IF NOT EXISTS nico_rewrap";

const EXISTS: &str = "-- state_exists
    SELECT to_regclass('nico_rewrap.schema_version') IS NOT NULL";

const VERSION: &str = "-- state_version
    SELECT coalesce(max(version), 0) FROM nico_rewrap.schema_version";

// The tables of version 1, by whether they exist.
const TABLES: &str = "-- state_tables
    SELECT string_agg(name, ', ') FILTER (WHERE to_regclass('nico_rewrap.' || name) IS NOT NULL),
        string_agg(name, ', ') FILTER (WHERE to_regclass('nico_rewrap.' || name) IS NULL)
    FROM unnest($1::text[]) name";

/// What an operator can do about a schema that is not as this program has made it.
const START_AGAIN: &str = "restore it from a backup, or give up its runs, censuses and receipts: \
     `DROP SCHEMA nico_rewrap CASCADE`, then run this command again. The verdicts then start again";

#[derive(Debug, Subcommand)]
pub(super) enum State {
    /// Create or upgrade the schema nico_rewrap.
    ///
    /// The database user of the configuration must be allowed to create a schema. Afterwards,
    /// the server needs only the privileges that deploy/postgres/role.sql grants. The command
    /// can be repeated at any time.
    ///
    /// The exit code is 0 if the schema is ready, 78 for a configuration error, and 1 for any
    /// other error. After an error, nothing was changed.
    Migrate(ConfigFiles),
}

impl State {
    pub(super) fn run(&self, environment: &Environment) -> ExitCode {
        let Self::Migrate(files) = self;
        migrate_with(&files.config, environment)
    }
}

fn migrate_with(files: &[PathBuf], environment: &Environment) -> ExitCode {
    let database = match load_database(files, environment) {
        Ok(database) => database,
        Err(error) => return fail(&error, EX_CONFIG),
    };
    let migrated = runtime()
        .map_err(|error| error.to_string())
        .and_then(|runtime| runtime.block_on(migrate(&database)));
    match migrated {
        Ok(applied) => {
            print_applied(applied);
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error, 1),
    }
}

/// Applies the missing migrations, in one transaction. Returns how many files it applied.
async fn migrate(database: &Database) -> Result<usize, String> {
    let problem = |error: tokio_postgres::Error| match error.code().map(|code| code.code()) {
        Some("42501") => "the database user may not create the schema nico_rewrap (SQLSTATE \
             42501): use a user that may create schemas in this database"
            .to_owned(),
        Some(code) => format!("the migration failed and was rolled back (SQLSTATE {code})"),
        None => format!("the migration failed: {error}"),
    };
    let client = database
        .connect()
        .await
        .map_err(|error| format!("database_url: {error}"))?;
    client.batch_execute(LOCK).await.map_err(problem)?;
    let exists = client.query_one(EXISTS, &[]).await.map_err(problem)?;
    let version: i32 = if exists.try_get(0).map_err(problem)? {
        let row = client.query_one(VERSION, &[]).await.map_err(problem)?;
        row.try_get(0).map_err(problem)?
    } else {
        0
    };
    if version > STATE_VERSION {
        return Err(format!(
            "the schema nico_rewrap has version {version}, and this program knows only \
             {STATE_VERSION}: use a newer nico-rewrap"
        ));
    }
    let tables = client.query_one(TABLES, &[&STATE_TABLES.as_slice()]).await;
    let tables = tables.map_err(problem)?;
    let names = |column| tables.try_get::<_, Option<String>>(column).map_err(problem);
    match (version, names(0)?, names(1)?) {
        (0, Some(existing), _) => {
            return Err(format!(
                "the schema nico_rewrap has the tables {existing}, but schema_version has no \
                 version of them. If they are complete: INSERT INTO nico_rewrap.schema_version \
                 (version) VALUES ({STATE_VERSION}). Otherwise {START_AGAIN}"
            ));
        }
        (1.., _, Some(missing)) => {
            return Err(format!(
                "the schema nico_rewrap lacks the tables {missing}, which it had: {START_AGAIN}"
            ));
        }
        _ => {}
    }
    let mut applied = 0;
    for (sql, number) in MIGRATIONS
        .iter()
        .zip(1..)
        .filter(|(_, number)| *number > version)
    {
        let record =
            format!("{sql}; INSERT INTO nico_rewrap.schema_version (version) VALUES ({number})");
        client.batch_execute(&record).await.map_err(problem)?;
        applied += 1;
    }
    client.batch_execute("COMMIT").await.map_err(problem)?;
    Ok(applied)
}

fn print_applied(applied: usize) {
    // An error is ignored: the work is done, and nobody reads.
    let _ = writeln!(
        io::stdout(),
        "schema nico_rewrap: version {STATE_VERSION}, {applied} migrations applied"
    );
}
