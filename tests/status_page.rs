//! The status page: as text for `curl`, and as HTML in a real Chromium.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::chromium::Browser;
use crate::database::Database;
use crate::outcome::seeded;
use crate::pg;
use crate::rewrap_client::{ended, migrate_state, run, start_slow};
use crate::seal::{keys, seal};
use crate::seed::{Org, signing_key_pem};
use crate::server::Server;
use crate::site::Site;

/// A key id that would be a script, if the page did not escape it.
const HOSTILE: &str = "<script>alert(1)</script>\u{1b}[31m";

/// The width and height of the smallest and of the usual window.
const SMALL: (u32, u32) = (360, 800);
const USUAL: (u32, u32) = (1440, 900);

/// Head and body of the page, for a client that accepts this.
async fn get(server: &Server, accept: &str) -> (String, String) {
    let mut stream = TcpStream::connect(&server.http).await.unwrap();
    let request = format!("GET /status HTTP/1.0\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_lowercase(), body.to_owned())
}

/// A site in the middle of a rotation, with a run in progress of this many rows per second.
async fn in_rotation(tenants: usize, more: Vec<Org>, rows_per_second: u32) -> (Server, Value) {
    let mut orgs: Vec<_> = (0..tenants)
        .map(|i| Org::under(&format!("tenant-{i:03}"), "kv1"))
        .collect();
    orgs.extend(more);
    let (database, client) = seeded(&orgs).await;
    client.batch_execute("ANALYZE").await.unwrap();
    let site = Site::new(&database)
        .set("rewrap.instance_name", "\"rewrap-0\"")
        .keys(&keys(&["kv1", "kv2", "kv3"]));
    migrate_state(&site);
    let server = site.start().await;
    server
        .wait_log("runs and censuses are kept in the schema nico_rewrap")
        .await;
    run(&server, "RUN_KIND_DRY_RUN").await;
    let rate = u32::try_from(tenants / 3).unwrap();
    let part = start_slow(&server, "RUN_KIND_APPLY", rate).await;
    sleep(Duration::from_secs(1)).await;
    crate::rewrap_client::ask(&server, "StopRun", json!({"runId": part["id"]})).await;
    ended(&server, &part).await;
    run(&server, "RUN_KIND_CENSUS").await;
    let active = start_slow(&server, "RUN_KIND_APPLY", rows_per_second).await;
    sleep(Duration::from_secs(2)).await;
    (server, active)
}

/// The same, with a key id that tries to be a script.
async fn with_a_hostile_key_id() -> (Server, Value) {
    let hostile = Org::new("hostile-tenant").text(0, seal(signing_key_pem(), HOSTILE));
    in_rotation(120, vec![hostile], 2).await
}

#[tokio::test]
async fn curl_gets_text_without_organizations_and_callers() {
    let (server, active) = with_a_hostile_key_id().await;
    let (head, text) = get(&server, "*/*").await;
    assert!(
        head.contains("content-type: text/plain; charset=utf-8"),
        "{head}"
    );
    for part in [
        "instance rewrap-0",
        "\nready\n",
        "  kv2 ",
        "TARGET",
        "IN_USE",
        "not in secrets",
        "KEY_NOT_IN_SECRETS × 1",
        "dry run to kv2 at rewrap-0",
        "STOPPED",
        "Runs of all instances",
        "rewrap-0 (this one)",
        active["id"].as_str().unwrap(),
    ] {
        assert!(text.contains(part), "no {part:?}: {text}");
    }
    let (head, html) = get(&server, "text/html").await;
    for header in [
        "content-type: text/html; charset=utf-8",
        "content-security-policy: default-src 'none'; style-src 'sha256-",
        "cache-control: no-store",
        "x-content-type-options: nosniff",
        "vary: accept",
    ] {
        assert!(head.contains(header), "{header}: {head}");
    }
    assert!(!html.contains("<script"), "{html}");
    for page in [text, html] {
        for name in ["tenant", "alice", "Acme", "\u{1b}"] {
            assert!(!page.contains(name), "{name:?}: {page}");
        }
    }
}

#[tokio::test]
async fn without_a_database_the_page_says_so() {
    let site = Site::with_url("postgres://nobody@127.0.0.1:1/nowhere");
    let server = site.start_unready().await;
    server.readiness().await;
    let (_, text) = get(&server, "*/*").await;
    assert!(text.contains("NOT READY: database: "), "{text}");
    assert!(text.contains("There was no census yet."), "{text}");
    let off = Site::new(&Database::migrated().await).set("machine_identity.enabled", "false");
    let (_, text) = get(&off.start().await, "*/*").await;
    assert!(text.contains("Machine identity is disabled"), "{text}");
}

#[tokio::test]
async fn many_requests_read_the_database_once_a_second() {
    let postgres = pg::Server::with_statistics();
    let database = Database::migrated_on(&postgres).await;
    let admin = database.count_statements().await;
    let site = Site::new(&database);
    migrate_state(&site);
    let server = site.start().await;
    server
        .wait_log("runs and censuses are kept in the schema nico_rewrap")
        .await;
    let start = Instant::now();
    for _ in 0..20 {
        let requests = (0..10).map(|_| get(&server, "*/*"));
        for (_, text) in futures_util::future::join_all(requests).await {
            assert!(text.contains("Runs of all instances"), "{text}");
        }
    }
    let seconds = start.elapsed().as_secs() + 1;
    // Only the status page lists runs.
    let sql = "SELECT sum(calls)::bigint FROM pg_stat_statements WHERE query LIKE '-- list_runs%'";
    let reads: i64 = admin.query_one(sql, &[]).await.unwrap().get(0);
    assert!(
        (1..=seconds).contains(&reads.try_into().unwrap()),
        "{reads} in {seconds} s"
    );
}

/// For each element with a text of its own: the text, the size of the font, and the contrast of
/// the text with its background, after WCAG 2.
const TEXTS: &str = r"
    (() => {
        const channels = (color) => color.match(/[\d.]+/g).map(Number);
        const luminance = (color) => {
            const [r, g, b] = channels(color).slice(0, 3).map((c) => {
                c /= 255;
                return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const background = (element) => {
            for (let at = element; at; at = at.parentElement) {
                const color = getComputedStyle(at).backgroundColor;
                if ((channels(color)[3] ?? 1) > 0) return color;
            }
            return 'none';
        };
        const own = (element) => [...element.childNodes]
            .filter((node) => node.nodeType === Node.TEXT_NODE)
            .map((node) => node.data.trim()).join('');
        return [...document.body.querySelectorAll('*')]
            .filter((element) => own(element) && element.getClientRects().length)
            .map((element) => {
                const style = getComputedStyle(element);
                const [a, b] = [style.color, background(element)].map(luminance);
                return {
                    text: own(element), size: parseFloat(style.fontSize),
                    contrast: (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05),
                };
            });
    })()";

#[tokio::test]
async fn a_browser_shows_it_on_small_and_large_screens_and_asks_for_nothing_else() {
    let (server, active) = with_a_hostile_key_id().await;
    let url = format!("http://{}/status", server.http);
    let mut browser = Browser::start();
    for (size, is_dark) in [(SMALL, false), (SMALL, true), (USUAL, true), (USUAL, false)] {
        browser.view(size, is_dark);
        browser.open(&url);
        let case = format!("{size:?}, dark: {is_dark}");
        let width = browser.evaluate("document.documentElement.scrollWidth");
        assert_eq!(width, size.0, "{case}: it scrolls to the side");
        let texts = browser.evaluate(TEXTS);
        let texts = texts.as_array().unwrap();
        assert!(texts.len() > 20, "{texts:?}");
        for text in texts {
            assert!(text["size"].as_f64().unwrap() >= 14.0, "{case}: {text}");
            assert!(text["contrast"].as_f64().unwrap() >= 4.5, "{case}: {text}");
        }
        let shown = browser.evaluate("document.body.innerText").to_string();
        for part in [
            "kv1",
            "kv2",
            "TARGET",
            "IN_USE",
            active["id"].as_str().unwrap(),
        ] {
            assert!(shown.contains(part), "{case}: no {part}: {shown}");
        }
        assert!(shown.contains("<script>alert(1)</script>"), "{shown}");
        let lines = "[...document.querySelectorAll('.runs td:nth-child(3)')].map((cell) => {
            const range = document.createRange();
            range.selectNodeContents(cell);
            return range.getClientRects().length;
        })";
        // The states of the dry run and of the stopped apply are not broken.
        assert_eq!(browser.evaluate(lines), json!([1, 1]), "{case}");
        // A bar has the width of its share.
        let bars = "[...document.querySelectorAll('svg')].map((svg) =>
            svg.querySelector('.fill').getBoundingClientRect().width / svg.getBoundingClientRect().width)";
        let bars = browser.evaluate(bars);
        let bars: Vec<f64> = serde_json::from_value(bars).unwrap();
        // The keys kv2, kv1, kv3 and the hostile one, and the run.
        assert_eq!(bars.len(), 5, "{bars:?}");
        assert!(
            (bars[..4].iter().sum::<f64>() - 1.0).abs() < 0.01,
            "{bars:?}"
        );
    }
    let requests = browser.events("Network.requestWillBeSent").len();
    let deadline = Instant::now() + Duration::from_secs(60);
    while browser.events("Network.requestWillBeSent").len() == requests {
        assert!(Instant::now() < deadline, "it does not refresh");
        sleep(Duration::from_millis(100)).await;
    }
    for request in browser.events("Network.requestWillBeSent") {
        assert_eq!(request["request"]["url"], url.as_str(), "{request}");
    }
    for event in [
        "Log.entryAdded",
        "Runtime.exceptionThrown",
        "Page.javascriptDialogOpening",
    ] {
        let events = browser.events(event);
        assert!(events.is_empty(), "{event}: {events:?}");
    }
}

/// Makes the picture in the documents: `STATUS_PICTURE=1 cargo test the_picture`.
#[tokio::test]
async fn the_picture_in_the_documents_shows_a_rotation() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/pictures/status-page.png");
    let (server, _active) = in_rotation(1200, vec![], 120).await;
    let mut browser = Browser::start();
    browser.view((1000, 1000), false);
    let url = format!("http://{}/status", server.http);
    let deadline = Instant::now() + Duration::from_secs(60);
    let done = loop {
        browser.open(&url);
        let done = browser.evaluate(
            "[...document.querySelectorAll('.card')].pop().innerText.match(/([0-9,]+) of 1,200 rows/)[1]",
        );
        let done: u32 = done.as_str().unwrap().replace(',', "").parse().unwrap();
        if done > 0 {
            break done;
        }
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(200)).await;
    };
    assert!(done < 1200, "{done}");
    let picture = browser.picture();
    if std::env::var_os("STATUS_PICTURE").is_some() {
        std::fs::write(&file, &picture).unwrap();
    }
    // The version and the times of the two pictures differ, but not their sizes.
    let size = |picture: &[u8]| picture[16..24].to_owned();
    assert_eq!(size(&picture), size(&std::fs::read(file).unwrap()));
}
