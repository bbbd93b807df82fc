//! Several hosts in the database URL. If a host is down or hangs, the program connects to the next
//! one.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::database::Database;
use crate::grpcurl::run;
use crate::pg::PASSWORD;
use crate::site::{Exit, Site};

/// A server that accepts no connection, or accepts one and sends nothing.
struct Hung {
    listener: TcpListener,
    _waiting: Vec<TcpStream>,
}

impl Hung {
    fn silent() -> Self {
        Self {
            listener: Self::listen(64),
            _waiting: Vec::new(),
        }
    }

    /// A server whose accept queue is full, so that the kernel drops new connections.
    async fn dropping() -> Self {
        let listener = Self::listen(0);
        let mut waiting = Vec::new();
        let address = listener.local_addr().unwrap();
        let soon = Duration::from_millis(300);
        while let Ok(stream) = timeout(soon, TcpStream::connect(address)).await {
            waiting.push(stream.unwrap());
        }
        Self {
            listener,
            _waiting: waiting,
        }
    }

    fn listen(queue: u32) -> TcpListener {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        socket.listen(queue).unwrap()
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }
}

/// The database's URL with other hosts before its own host.
fn after(others: &[SocketAddr], database: &Database) -> String {
    let others: String = others.iter().map(|other| format!("{other},")).collect();
    let url = database.url();
    let (credentials, rest) = url.split_once('@').unwrap();
    format!("{credentials}@{others}{rest}")
}

async fn hung_servers() -> [Hung; 2] {
    [Hung::dropping().await, Hung::silent()]
}

#[tokio::test]
async fn a_server_that_hangs_is_skipped_after_the_timeout() {
    let database = Database::migrated().await;
    for hung in hung_servers().await {
        let url = after(&[hung.address()], &database);
        let began = Instant::now();
        let server = Site::with_url(&format!("{url}?connect_timeout=1"))
            .start()
            .await;
        assert_eq!(run(&server, true).await.rows_examined, 0);
        // The default of `connect_timeout` would take longer.
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "{:?}",
            began.elapsed()
        );
        let said = server
            .wait_log("cannot use a server of database_url; trying the next one")
            .await;
        let words = "no answer within connect_timeout of database_url, 1s";
        let error = said["error"].to_string();
        assert!(
            error.contains(words) || error.contains("timed out"),
            "{said}"
        );
        assert!(!server.log_text().contains(PASSWORD));
    }
}

#[tokio::test]
async fn the_timeout_applies_to_each_server() {
    let database = Database::new().await;
    let hung = hung_servers().await;
    let url = after(&hung.each_ref().map(Hung::address), &database);
    // Each of two hanging servers takes the whole timeout. The setting overrides the URL.
    let site = || {
        Site::with_url(&format!("{url}?connect_timeout=60"))
            .set("rewrap.connect_timeout", "\"500ms\"")
    };
    let Exit { code, stderr, .. } = site().run("migrate").await;
    assert_eq!(code, 0, "{stderr}");
    site().start().await;
}

#[tokio::test]
async fn the_last_error_is_reported_if_no_server_accepts() {
    let hung = Hung::silent();
    let url = format!("postgres://nico@{},127.0.0.1:1/nico", hung.address());
    let site = Site::with_url(&url).set("rewrap.connect_timeout", "\"300ms\"");
    let Exit { code, stderr, .. } = site.run("migrate").await;
    assert!(
        code == 1 && stderr.contains("database_url: error connecting"),
        "{stderr}"
    );
    let url = format!("postgres://nico@127.0.0.1:1,{}/nico", hung.address());
    let site = Site::with_url(&url).set("rewrap.connect_timeout", "\"300ms\"");
    let server = site.start_unready().await;
    server.wait_log("waiting for the database").await;
    let (status, body) = server.get("/readyz").await;
    let words = "no answer within [rewrap].connect_timeout, 300ms";
    assert!(status == 503 && body.contains(words), "{status} {body}");
}

#[tokio::test]
async fn the_server_that_accepts_writes_is_used() {
    let primary = crate::pg::Server::start();
    let database = Database::migrated_on(&primary).await;
    let standby = primary.standby();
    let before = SocketAddr::from(([127, 0, 0, 1], standby.port()));
    let url = after(&[before], &database);
    let server = Site::with_url(&url).start().await;
    assert_eq!(run(&server, false).await.rows_examined, 0);
    let said = server
        .wait_log("cannot use a server of database_url; trying the next one")
        .await;
    assert!(
        said["error"].to_string().contains("does not allow writes"),
        "{said}"
    );
}
