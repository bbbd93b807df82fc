//! Standard error without a reader: a log collector that hangs must not stop the service.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::certs;
use crate::database::Database;
use crate::pg_host::free_port;
use crate::process::signal;
use crate::seal::seal;
use crate::seed::{self, Org};
use crate::site::{BINARY, Site, path, quote};

/// Time limit on a busy machine, for a server that does not hang.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// A server, its files, and the pipe of its standard error, which nobody reads.
struct Stalled {
    process: Child,
    grpc: String,
    http: String,
    site: Site,
}

impl Stalled {
    fn start(site: Site) -> Self {
        let [grpc, http] = [(); 2].map(|()| format!("127.0.0.1:{}", free_port()));
        let site = site
            .set("rewrap.listen", quote(&grpc))
            .set("rewrap.metrics_endpoint", quote(&http));
        let process = Command::new(BINARY)
            .args(site.write("serve"))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut server = Self {
            process,
            grpc,
            http,
            site,
        };
        server.wait_ready();
        server
    }

    fn wait_ready(&mut self) {
        let deadline = Instant::now() + TIME_LIMIT;
        loop {
            let answer = self.get("/readyz");
            if answer.starts_with("HTTP/1.0 200") {
                return;
            }
            assert_eq!(self.process.try_wait().unwrap(), None);
            assert!(Instant::now() < deadline, "not ready: {answer}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The answer to a GET. Empty if the server gives no answer.
    fn get(&self, path: &str) -> String {
        let ask = || {
            let mut stream = TcpStream::connect(&self.http)?;
            stream.set_read_timeout(Some(TIME_LIMIT))?;
            stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            std::io::Result::Ok(answer)
        };
        ask().unwrap_or_default()
    }

    /// Makes a call with grpcurl, which prints to a pipe with a reader.
    fn reencrypt(&self) -> String {
        let grpcurl = std::env::var_os("GRPCURL").unwrap_or_else(|| "grpcurl".into());
        let leaf = certs::admin();
        let output = Command::new(grpcurl)
            .args(["-max-time", "30", "-cacert"])
            .arg(&certs::root_ca().cert)
            .arg("-cert")
            .arg(&leaf.cert_chain)
            .arg("-key")
            .arg(&leaf.key)
            .args(["-d", "{\"dryRun\": true}", &self.grpc])
            .arg("forge.Forge/ReencryptTenantIdentitySecrets")
            .output()
            .unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    fn assert_alive(&self) {
        for path in ["/livez", "/readyz"] {
            let answer = self.get(path);
            assert!(answer.starts_with("HTTP/1.0 200"), "{path}: {answer}");
        }
    }

    fn metric(&self, name: &str) -> f64 {
        let metrics = self.get("/metrics");
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().parse().unwrap()
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A site in which every row fails. The log lines exceed the capacity of a pipe, 64 KiB.
async fn site_with_failures(rows: usize) -> Site {
    let database = Database::migrated().await;
    let client = database.client().await;
    let foreign = seal("plaintext", "kv3");
    let orgs: Vec<_> = (0..rows)
        .map(|i| Org::new(&format!("org{i:05}")).text(0, &foreign))
        .collect();
    seed::insert(&client, &orgs).await;
    Site::new(&database)
}

#[tokio::test]
async fn calls_probes_and_sigterm_do_not_wait_for_it() {
    let site = site_with_failures(2000).await;
    let audit = site.dir().join("audit.log");
    let site = site.set("rewrap.audit_log", path(&audit));
    let mut server = Stalled::start(site);
    for _ in 0..3 {
        let answer = server.reencrypt();
        assert!(answer.contains("\"rowsFailed\": 2000"), "{answer}");
        server.assert_alive();
    }
    signal(&[server.process.id()], "TERM");
    let start = Instant::now();
    let code = loop {
        if let Some(status) = server.process.try_wait().unwrap() {
            break status.code();
        }
        assert!(start.elapsed() < TIME_LIMIT, "still there after SIGTERM");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(code, Some(0));
    let records = std::fs::read_to_string(&audit).unwrap();
    assert_eq!(
        records.matches("\"outcome\":\"OK\"").count(),
        3,
        "{records}"
    );
}

#[tokio::test]
async fn dropped_lines_are_counted_and_logged() {
    // A call has few lines of its own. At this level, its libraries write many more.
    let site = site_with_failures(1000).await;
    let mut server = Stalled::start(site.set("rewrap.log_filter", "\"trace\""));
    let dropped = "nico_rewrap_log_lines_dropped_total";
    assert_eq!(server.metric(dropped).to_bits(), 0_f64.to_bits());
    let deadline = Instant::now() + 4 * TIME_LIMIT;
    while server.metric(dropped) < 1.0 {
        assert!(Instant::now() < deadline, "the queue takes everything");
        let answer = server.reencrypt();
        assert!(answer.contains("\"rowsFailed\": 1000"), "{:.2000}", answer);
    }
    server.assert_alive();
    let mut stderr = server.process.stderr.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut log = Vec::new();
        stderr.read_to_end(&mut log).unwrap();
        String::from_utf8(log).unwrap()
    });
    // Once a reader reads it, later lines arrive.
    std::thread::sleep(Duration::from_secs(2));
    signal(&[server.process.id()], "TERM");
    server.process.wait().unwrap();
    let log = reader.join().unwrap();
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let told = lines.iter().find(|line| {
        let message = line["message"].as_str().unwrap_or_default();
        message.contains("log lines were dropped")
    });
    assert!(told.unwrap()["lines"].as_u64().unwrap() > 0);
    assert!(log.contains("shut down"));
}

#[tokio::test]
async fn a_file_size_limit_does_not_end_the_server() {
    let site = Site::new(&Database::migrated().await);
    let dir = site.dir().to_owned();
    let log = dir.join("stderr");
    let [grpc, http] = [(); 2].map(|()| format!("127.0.0.1:{}", free_port()));
    let site = site
        .set("rewrap.listen", quote(&grpc))
        .set("rewrap.metrics_endpoint", quote(&http));
    // Two blocks of 512 bytes: less than the first lines of the log.
    let script = "ulimit -f 2; exec \"$@\" 2>>\"$LOG\"";
    let process = Command::new("/bin/sh")
        .args(["-c", script, "sh", BINARY])
        .args(site.write("serve"))
        .env("LOG", &log)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut server = Stalled {
        process,
        grpc,
        http,
        site,
    };
    server.wait_ready();
    assert!(server.reencrypt().contains("rowsExamined") || !server.reencrypt().is_empty());
    server.assert_alive();
    assert!(server.metric("nico_rewrap_log_lines_dropped_total") > 0.0);
    assert!(Path::new(&log).metadata().unwrap().len() <= 1024);
    signal(&[server.process.id()], "TERM");
    assert_eq!(server.process.wait().unwrap().code(), Some(0));
    drop(std::mem::replace(
        &mut server.site,
        Site::with_url("postgres://u@127.0.0.1:1/x"),
    ));
}

#[tokio::test]
async fn a_sighup_before_the_configuration_is_read_does_not_end_the_process() {
    let database = Database::migrated().await;
    let mut seen_early = false;
    for _ in 0..20 {
        let site = Site::new(&database);
        let mut process = Command::new(BINARY)
            .args(site.write("serve"))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = process.id();
        let deadline = Instant::now() + TIME_LIMIT;
        let early = loop {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap_or_default().trim().to_owned()
            };
            let caught = u64::from_str_radix(&field("SigCgt:"), 16).unwrap_or_default();
            // SIGHUP is 1.
            if caught & 1 == 1 {
                break field("Threads:") == "1";
            }
            assert!(Instant::now() < deadline, "never caught");
        };
        for _ in 0..5 {
            signal(&[pid], "HUP");
        }
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(process.try_wait().unwrap(), None, "ended by SIGHUP");
        signal(&[pid], "TERM");
        assert_eq!(process.wait().unwrap().code(), Some(0));
        seen_early |= early;
        if seen_early {
            return;
        }
    }
    panic!("the handler is installed after the first thread was started");
}
