//! `nico-rewrap healthcheck`, for the health check of a container: it reports the result of the
//! server's probes.

use crate::database::Database;
use crate::pg;
use crate::process::temp_dir;
use crate::site::{Exit, Site, quote, run_binary};

/// Runs the health check with these arguments and the address in the environment.
async fn ask(address: &str, args: &[&str]) -> Exit {
    let args: Vec<_> = [&["healthcheck"], args].concat();
    let args: Vec<_> = args.iter().map(|&arg| arg.to_owned()).collect();
    let env = [("NICO_REWRAP__METRICS_ENDPOINT".into(), address.into())];
    run_binary(&args, &env).await
}

async fn assert_healthy(address: &str, args: &[&str]) {
    let exit = ask(address, args).await;
    assert_eq!(
        (exit.code, exit.stdout.as_str(), exit.stderr.as_str()),
        (0, "", ""),
        "{address} {args:?}"
    );
}

async fn assert_unhealthy(address: &str, args: &[&str], words: &str) {
    let Exit {
        code,
        stdout,
        stderr,
    } = ask(address, args).await;
    assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
    assert!(stderr.contains(words), "no {words:?} in {stderr}");
}

#[tokio::test]
async fn the_exit_code_follows_the_probes() {
    let postgres = pg::Server::start();
    let database = Database::migrated_on(&postgres).await;
    postgres.stop_fast();
    let server = Site::new(&database).start_unready().await;
    server.wait_log("waiting for the database").await;
    assert_healthy(&server.http, &["--live"]).await;
    let url = format!("http://{}/readyz: 503 not ready: database: ", server.http);
    assert_unhealthy(&server.http, &[], &url).await;
    postgres.restart();
    server.wait_ready().await;
    assert_healthy(&server.http, &[]).await;
    assert_healthy(&server.http, &["--live"]).await;
    server.signal("TERM");
    assert_eq!(server.wait_exit().await, 0);
    for args in [&[][..], &["--live"]] {
        assert_unhealthy(&server.http, args, "refused").await;
    }
}

#[tokio::test]
async fn a_server_on_every_address_is_queried_on_loopback() {
    let database = Database::migrated().await;
    for any in ["0.0.0.0", "[::]"] {
        let server = Site::new(&database)
            .set("rewrap.metrics_endpoint", quote(&format!("{any}:0")))
            .start_unready()
            .await;
        let port = server.http.rsplit_once(':').unwrap().1;
        let address = format!("{any}:{port}");
        assert_healthy(&address, &["--live"]).await;
        server.signal("TERM");
        assert_eq!(server.wait_exit().await, 0);
        assert_unhealthy(&address, &[], &format!("http://{address}/readyz: ")).await;
    }
    // In a container without IPv6, nothing answers on [::1].
    let server = Site::new(&database)
        .set("rewrap.metrics_endpoint", "\"0.0.0.0:0\"")
        .start()
        .await;
    let port = server.http.rsplit_once(':').unwrap().1;
    assert_healthy(&format!("[::]:{port}"), &[]).await;
}

#[tokio::test]
async fn only_the_address_is_read_from_the_files_of_serve() {
    let database = Database::migrated().await;
    let server = Site::new(&database).start().await;
    let earlier =
        "[rewrap]\nmetrics_endpoint = \"127.0.0.1:1\"\n[tls]\nidentity_pemfile_path = 7\n";
    let later = format!("[rewrap]\nmetrics_endpoint = {}\n", quote(&server.http));
    let dir = temp_dir("healthcheck");
    let [earlier, later] =
        [("earlier.toml", earlier), ("later.toml", &later)].map(|(name, text)| {
            let file = dir.path().join(name);
            std::fs::write(&file, text).unwrap();
            file.to_str().unwrap().to_owned()
        });
    let args = ["healthcheck", "--config", &earlier, "--config", &later].map(str::to_owned);
    let exit = run_binary(&args, &[]).await;
    assert_eq!((exit.code, exit.stderr.as_str()), (0, ""));
    // The environment overrides the file.
    assert_unhealthy("127.0.0.1:1", &["--config", &later], "127.0.0.1:1/readyz").await;

    let exit = ask("localhost", &["--config", &later]).await;
    assert!(
        exit.code == 78 && exit.stderr.contains("[rewrap].metrics_endpoint: must be"),
        "{exit:?}"
    );
    let exit = ask(&server.http, &["--config", "/nowhere.toml"]).await;
    assert!(
        exit.code == 78 && exit.stderr.contains("/nowhere.toml: can't be read"),
        "{exit:?}"
    );
}

#[tokio::test]
async fn another_server_at_the_address_is_not_healthy() {
    use std::io::{Read, Write};
    for (answer, words) in [
        (&b""[..], "the answer is not HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "the answer is not HTTP"),
        (
            b"HTTP/1.1 404 Not Found\r\n\r\nno such page\n",
            "404 no such page",
        ),
        (b"HTTP/1.1\r\n\r\n200", "the answer is not HTTP"),
    ] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // Read the request: unread data would make the system reset the connection.
            let _ = stream.read(&mut [0; 1024]).unwrap();
            stream.write_all(answer).unwrap();
        });
        assert_unhealthy(&address, &[], words).await;
        server.join().unwrap();
    }
}

#[tokio::test]
async fn a_silent_or_endless_answer_is_not_healthy() {
    use std::io::Write;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endless = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addresses = [&silent, &endless].map(|one| one.local_addr().unwrap().to_string());
    std::thread::spawn(move || {
        let (mut stream, _) = endless.accept().unwrap();
        while stream.write_all(b"x").is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    });
    for address in addresses {
        assert_unhealthy(&address, &["--live"], "no answer within 5 seconds").await;
    }
}
