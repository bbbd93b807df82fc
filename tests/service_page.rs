//! Runs the commands of docs/reference/service.md, and compares its answers with those of the
//! server. Also runs the command of docs/install/postgres.md that creates the schema.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::database::Database;
use crate::document_commands::sections;
use crate::documents::read;
use crate::process;
use crate::rewrap_client::run;
use crate::run_book::{Operator, after_step_3};
use crate::seal::seal;
use crate::seed::{Org, insert, signing_key_pem};
use crate::site::Site;

const PAGE: &str = "reference/service";

fn commands(page: &str, heading: &str) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/doc_commands.sh");
    let mut print = Command::new(script);
    process::run(print.args([page, heading]))
}

/// All commands of the page, in their order.
fn all_commands(text: &str) -> String {
    let headings = sections(text).into_iter().map(|(heading, _)| heading);
    headings.map(|heading| commands(PAGE, &heading)).collect()
}

/// The answer that the page shows for this method.
fn shown(text: &str, method: &str) -> Value {
    let section = text.split(&format!("\n## {method}\n")).nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let block = section.split("```json\n").nth(1);
    let block = block.unwrap_or_else(|| panic!("{method}: no answer"));
    serde_json::from_str(block.split("```").next().unwrap()).unwrap()
}

/// Whether `answer` has every member of `shown`, with values of the same type.
fn has_members(answer: &Value, shown: &Value) -> Result<(), String> {
    match (answer, shown) {
        (Value::Object(answer), Value::Object(shown)) => {
            for (name, value) in shown {
                let found = answer
                    .get(name)
                    .ok_or_else(|| format!("no member {name}"))?;
                has_members(found, value).map_err(|problem| format!("{name}: {problem}"))?;
            }
            Ok(())
        }
        (Value::Array(answer), Value::Array(shown)) => match (answer.first(), shown.first()) {
            (Some(answer), Some(shown)) => has_members(answer, shown),
            (None, Some(_)) => Err("the list is empty".to_owned()),
            _ => Ok(()),
        },
        (answer, shown) => {
            let same = std::mem::discriminant(answer) == std::mem::discriminant(shown);
            same.then_some(()).ok_or(format!("{answer}, not {shown}"))
        }
    }
}

#[tokio::test]
async fn the_answers_of_the_service_page_are_those_of_the_server() {
    let database = after_step_3().await;
    let lost = Org::new("lost").text(0, seal(signing_key_pem(), "kv0"));
    insert(&database.client().await, &[lost]).await;
    let server = Site::new(&database).start().await;
    // ListKeys shows a census.
    run(&server, "RUN_KIND_CENSUS").await;
    let operator = Operator::new();
    let text = read(format!("docs/{PAGE}.md"));
    operator.run_text(&all_commands(&text), &server).unwrap();
    for method in [
        "StartRun",
        "GetRun",
        "ListRuns",
        "StopRun",
        "ListFailures",
        "ListKeys",
        "GetStatus",
        "WhoAmI",
    ] {
        let answer = operator.report(&format!("{method}.json"));
        let members = has_members(&answer, &shown(&text, method));
        members.unwrap_or_else(|problem| panic!("{method}: {problem}\n{answer}"));
    }
    let stream = std::fs::read_to_string(operator.dir.join("WatchRun.json")).unwrap();
    let states = serde_json::Deserializer::from_str(&stream).into_iter::<Value>();
    let states: Vec<_> = states.map(Result::unwrap).collect();
    for state in &states {
        has_members(state, &shown(&text, "WatchRun")).unwrap();
    }
    assert_eq!(states.last().unwrap()["state"], "RUN_STATE_FINISHED");
}

#[tokio::test]
async fn the_page_about_postgres_creates_the_schema() {
    let database = Database::migrated().await;
    let site = Site::new(&database);
    // The page says: nico-api's site config, in the current directory.
    let site_config = site.write("serve");
    let config = site_config
        .iter()
        .find(|argument| argument.ends_with(".toml"))
        .unwrap();
    let operator = Operator::new();
    std::fs::copy(config, operator.dir.join("site.toml")).unwrap();
    let page = read("docs/install/postgres.md");
    let mut print =
        Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/doc_commands.sh"));
    let commands = process::run(print.args(["install/postgres", "Schema nico_rewrap"]));
    let commands = commands.replace("postgres://nico@localhost/nico", &database.url());
    let server = site.start().await;
    let (said, _) = operator.run_text(&commands, &server).unwrap();
    assert!(page.contains(&format!("\n{}\n", said.trim())), "{said}");
    let client = database.admin().await;
    let tables = client
        .query(
            "SELECT tablename::text FROM pg_tables WHERE schemaname = 'nico_rewrap'",
            &[],
        )
        .await
        .unwrap();
    let section = page.split("\n## Schema nico_rewrap\n").nth(1).unwrap();
    for row in tables {
        let table: String = row.get(0);
        assert!(section.contains(&format!("`{table}`")), "{table}");
    }
}
