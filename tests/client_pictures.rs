//! The pictures of the documents: screens of the real client at a real site.
//!
//! Times, addresses, ids and rates differ from run to run, so the pictures have examples in their
//! place. Everything else is what the client has written. `UPDATE_REFERENCE=1` makes the pictures
//! again.

use std::path::Path;

use serde_json::json;

use crate::documents::read;
use crate::operator::Operator;
use crate::outcome::seeded;
use crate::picture::Screen;
use crate::rewrap_client::{ask, ended, migrate_state};
use crate::seed::Org;
use crate::server::Server;
use crate::site::Site;
use crate::terminal::Terminal;

const ROWS: u16 = 80;
const COLUMNS: u16 = 160;

/// Enough that the run does not end before a look at it.
const ORGANIZATIONS: usize = 150;

/// The addresses of the instances, as in a cluster.
const ADDRESSES: [&str; 2] = ["10.244.1.17:1179", "10.244.2.31:1179"];

/// The times in the order of the day of the pictures.
const CHECKED: &str = "2026-11-30T20:14:51Z";
const STARTED: &str = "2026-11-30T20:15:02Z";
const ENDED: &str = "2026-11-30T20:15:10Z";
const CLEAN: &str = "2026-11-30T20:15:11Z";
const REMOVABLE: &str = "2026-11-30T21:15:11Z";
const CENSUS: &str = "2026-11-30T21:20:00Z";

/// The screens of one site.
struct Camera {
    operator: Operator,
    addresses: [String; 2],
    outdated: Vec<String>,
}

impl Camera {
    /// Starts the client in a terminal.
    fn start(&self, command: &[&str]) -> Terminal {
        Terminal::sized(&self.operator.args(command), &[], ROWS, COLUMNS)
    }

    /// The screen of a command that has ended, with this exit code, and with these times in place
    /// of its own.
    async fn screen(&self, mut terminal: Terminal, code: i32, times: &[&str]) -> Screen {
        let exit = terminal.exit_code().await;
        let mut screen = Screen::of(&terminal.screen(), ROWS, COLUMNS);
        assert_eq!(exit, code, "{}", screen.text());
        let mut times = times.iter();
        screen.map(|text| self.example(text, &mut times));
        assert_eq!(times.next(), None, "{}", screen.text());
        screen
    }

    /// The text with examples for everything that differs from run to run.
    fn example<'a>(&self, text: &str, times: &mut impl Iterator<Item = &'a &'a str>) -> String {
        let mut text = text.to_owned();
        for (real, example) in self.addresses.iter().zip(ADDRESSES) {
            text = text.replace(real, example);
        }
        let text = with_example_ids(&text);
        let text = with_example_times(&text, times);
        let text = between(&text, "Postgres ", ", TLS", "16.4");
        let text = after(&text, "answers: Postgres ", "16.4");
        let text = between(&text, "The dry run took ", ".", "20 ms");
        let text = match text.starts_with("  clean since ") {
            true => between(&text, "Z (", ")", "1h 5m"),
            false => between(&text, "Z (", " ago)", "2 s"),
        };
        match text.strip_prefix("  ") {
            Some(rest) if rest.contains(" rows/s (limit ") => {
                format!(
                    "  58 of {} rows, 15 rows/s (limit 15 rows/s), about 6 s left",
                    ORGANIZATIONS + 1
                )
            }
            _ => text,
        }
    }

    /// Compares a picture with its file, or writes it.
    fn compare(&mut self, name: &str, svg: &str) {
        let path = format!("docs/pictures/{name}.svg");
        if std::env::var_os("UPDATE_REFERENCE").is_some() {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
            std::fs::write(path, svg).unwrap();
        } else if read(&path) != *svg {
            self.outdated.push(format!("{path} would be:\n{svg}"));
        }
    }
}

/// Replaces what is between `start` and the next `end`.
fn between(text: &str, start: &str, end: &str, example: &str) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(start) {
        result = result + before + start;
        let Some((_, behind)) = after.split_once(end) else {
            return result + after;
        };
        result += example;
        rest = &after[after.len() - behind.len() - end.len()..];
    }
    result + rest
}

/// Replaces what is after `start`.
fn after(text: &str, start: &str, example: &str) -> String {
    match text.split_once(start) {
        Some((before, _)) => format!("{before}{start}{example}"),
        None => text.to_owned(),
    }
}

/// Replaces everything that looks like `shape`, in which `0` is any character `is_part`.
fn replaced<'a>(
    text: &str,
    shape: &str,
    is_part: fn(char) -> bool,
    mut example: impl FnMut() -> &'a str,
) -> String {
    let characters: Vec<char> = text.chars().collect();
    let shape: Vec<char> = shape.chars().collect();
    let mut result = String::new();
    let mut at = 0;
    while at < characters.len() {
        let window = characters.get(at..at + shape.len());
        let fits = window.is_some_and(|window| {
            let mut pairs = window.iter().zip(&shape);
            pairs.all(|(c, s)| if *s == '0' { is_part(*c) } else { c == s })
        });
        if fits {
            result += example();
            at += shape.len();
        } else {
            result.push(characters[at]);
            at += 1;
        }
    }
    result
}

fn with_example_ids(text: &str) -> String {
    replaced(
        text,
        "00000000-0000-0000-0000-000000000000",
        |c| c.is_ascii_hexdigit(),
        || "5f0c2a4e-7c1d-4b8a-9e36-1d2f8b40c7a9",
    )
}

fn with_example_times<'a>(text: &str, times: &mut impl Iterator<Item = &'a &'a str>) -> String {
    replaced(
        text,
        "0000-00-00T00:00:00Z",
        |c| c.is_ascii_digit(),
        || times.next().expect("a time without an example"),
    )
}

/// A site with two instances in the middle of a rotation: kv2 is the target key, and nico-api has
/// written one secret under it.
async fn site() -> (crate::database::Database, [Server; 2]) {
    let mut orgs: Vec<_> = (0..ORGANIZATIONS)
        .map(|index| Org::under(&format!("org-{index:03}"), "kv1"))
        .collect();
    orgs.push(Org::under("test-org", "kv2"));
    let (database, client) = seeded(&orgs).await;
    // An estimate of the number of rows.
    client.batch_execute("ANALYZE").await.unwrap();
    let instance = |name: &str| {
        Site::new(&database)
            .set("rewrap.instance_name", format!("\"{name}\""))
            .set("rewrap.max_rows_per_second", "15")
            // Progress is known after each page.
            .set("rewrap.page_size", "10")
            .set("rewrap.soak", "\"1ms\"")
    };
    migrate_state(&instance("nico-rewrap-0"));
    let first = instance("nico-rewrap-0").start().await;
    let second = instance("nico-rewrap-1").start().await;
    (database, [first, second])
}

#[tokio::test]
async fn the_pictures_show_what_the_client_writes() {
    let (_database, servers) = site().await;
    let mut camera = Camera {
        operator: Operator::with(&[&servers[0], &servers[1]], crate::certs::admin()),
        addresses: [servers[0].grpc.clone(), servers[1].grpc.clone()],
        outdated: Vec::new(),
    };

    let screen = camera.screen(camera.start(&["check"]), 0, &[CHECKED]).await;
    let svg = screen.svg(
        "nico-rewrap check",
        "nico-rewrap check",
        "A list of checks before a rotation, each with a mark. All are good.",
    );
    camera.compare("check", &svg);

    let no = camera.start(&["can-i-delete", "kv1"]);
    let screen = camera.screen(no, 8, &[CHECKED]).await;
    let svg = screen.svg(
        "nico-rewrap can-i-delete kv1",
        "nico-rewrap can-i-delete kv1: no",
        "The answer is no, because secrets are still under the key kv1.",
    );
    camera.compare("can-i-delete-no", &svg);

    let mut rotate = camera.start(&["rotate"]);
    rotate.wait_for("Type yes to start:").await;
    rotate.type_in("yes\n");
    rotate.wait_after("Type yes", " left").await;
    let mut screen = camera
        .screen(camera.start(&["status"]), 0, &[CHECKED])
        .await;
    let text = screen.text();
    assert!(text.contains("Run in progress: apply of site"), "{text}");
    let version = concat!(env!("CARGO_PKG_VERSION"), " (a1b2c3d)");
    screen.replace_column("ADDRESS", "VERSION", &ADDRESSES);
    screen.replace_column("VERSION", "STARTED", &[version, version]);
    screen.replace_column("STARTED", "TARGET KEY", &["6m 12s ago", "5m 40s ago"]);
    let svg = screen.svg(
        "nico-rewrap status",
        "nico-rewrap status during a rotation",
        "One screen with the instances, the database, the keys with their verdicts, the run in progress and the next step.",
    );
    camera.compare("status", &svg);

    let times = [CHECKED, STARTED, ENDED, CLEAN, CLEAN, REMOVABLE, CLEAN];
    let screen = camera.screen(rotate, 0, &times).await;
    let svg = screen.svg(
        "nico-rewrap rotate",
        "nico-rewrap rotate",
        "The checks, what will happen, the question, the apply, and the keys with their verdicts after it.",
    );
    camera.compare("rotate", &svg);

    // The soak of this site is short. A census after it decides.
    let census = json!({"kind": "RUN_KIND_CENSUS", "site": {}});
    let run = ask(&servers[0], "StartRun", census).await;
    ended(&servers[0], &run).await;
    let times = [CLEAN, CENSUS, CLEAN, CENSUS, CLEAN, REMOVABLE];
    let yes = camera.start(&["can-i-delete", "kv1"]);
    let screen = camera.screen(yes, 0, &times).await;
    let svg = screen.svg(
        "nico-rewrap can-i-delete kv1",
        "nico-rewrap can-i-delete kv1: yes",
        "The answer is yes, with the census and the times that prove it.",
    );
    camera.compare("can-i-delete-yes", &svg);

    assert!(
        camera.outdated.is_empty(),
        "{}\nTo write the pictures again: UPDATE_REFERENCE=1 cargo test client_pictures",
        camera.outdated.join("\n")
    );
}
