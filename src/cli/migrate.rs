//! `migrate`: creates nico-api's tables in an empty database.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use super::{EX_CONFIG, fail, runtime};
use crate::{
    config::{Environment, load_database},
    store::database::Database,
};

mod embedded {
    refinery::embed_migrations!("migrations");
}

pub(super) fn run(files: &[PathBuf], environment: &Environment) -> ExitCode {
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

async fn migrate(database: &Database) -> Result<usize, String> {
    let mut client = database
        .connect()
        .await
        .map_err(|error| format!("database_url: {error}"))?;
    let migrated = embedded::migrations::runner()
        .set_grouped(true)
        .run_async(&mut client)
        .await;
    match migrated {
        Ok(report) => Ok(report.applied_migrations().len()),
        Err(error) => {
            // Ignored: if this fails, too, the connection is gone, and the first error says more.
            let _ = client.batch_execute(DROP_EMPTY_HISTORY).await;
            Err(format!(
                "the migrations failed and were rolled back ({error}): use an empty database, or \
                 one that this command created"
            ))
        }
    }
}

/// refinery commits its history table before the first migration. Removes the table again if
/// no migration succeeded, so that a failed attempt leaves nothing in another program's
/// database.
const DROP_EMPTY_HISTORY: &str = "-- drop_empty_history
    DO $$ BEGIN
        IF to_regclass('refinery_schema_history') IS NOT NULL THEN
            IF NOT EXISTS (SELECT FROM refinery_schema_history) THEN
                DROP TABLE refinery_schema_history;
            END IF;
        END IF;
    END $$";

fn print_applied(applied: usize) {
    // An error is ignored: the work is done, and nobody reads.
    let _ = writeln!(io::stdout(), "{applied} migrations applied");
}
