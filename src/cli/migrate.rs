//! `migrate`: nico-api's tables in an empty database.

use std::{path::PathBuf, process::ExitCode};

use super::{EX_CONFIG, fail, runtime};
use crate::{
    config::{Environment, load_database},
    database::Database,
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
            say(applied);
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
    let report = embedded::migrations::runner()
        .set_grouped(true)
        .run_async(&mut client)
        .await
        .map_err(|error| {
            format!(
                "the migrations failed and were rolled back: the database must be empty, or have \
                 been made by this command ({error})"
            )
        })?;
    Ok(report.applied_migrations().len())
}

#[expect(clippy::print_stdout, reason = "this is what the command is for")]
fn say(applied: usize) {
    println!("{applied} migrations applied");
}
