//! The file of the admin socket: mode, stale sockets, paths that cannot be used, removal.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use serde_json::json;

use crate::admin_socket::{ask, disabled};
use crate::database::Database;
use crate::process::lasting_dir;
use crate::server::field;
use crate::site::{Exit, Site, path};

async fn answers(socket: &Path) -> bool {
    ask(socket, "WhoAmI", json!({})).await.is_ok()
}

#[tokio::test]
async fn only_the_owner_may_use_the_file_whatever_the_umask_and_it_goes_with_the_server() {
    for umask in ["0", "077", "0777"] {
        let (site, socket) = disabled();
        let command = format!("umask {umask}; exec \"$@\"");
        let server = site.prefix(&["sh", "-c", &command, "sh"]).start().await;
        let metadata = fs::symlink_metadata(&socket).unwrap();
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.mode() & 0o7777, 0o600, "umask {umask}");
        let listening = server.wait_log("listening").await;
        let logged = field(&listening, "admin_socket").unwrap();
        assert_eq!(logged, socket.to_str().unwrap());
        assert!(answers(&socket).await);
        assert_eq!(server.terminate().await, 0);
        assert!(!socket.exists());
    }
}

/// The start of another server with this socket, to its end.
async fn start_with(socket: &Path) -> Exit {
    let (site, _) = disabled();
    site.set("rewrap.admin_socket", path(socket))
        .run_to_exit()
        .await
}

fn assert_refused(exit: &Exit, message: &str) {
    assert_eq!(exit.code, 78, "{}", exit.stderr);
    let text = exit.stderr.replace("\\\"", "\"");
    assert!(text.contains("[rewrap].admin_socket"), "{text}");
    assert!(text.contains(message), "{text}");
}

#[tokio::test]
async fn the_socket_of_a_killed_server_is_replaced_and_that_of_a_live_one_is_not() {
    let socket = lasting_dir("socket").join("admin.sock");
    let site = || disabled().0.set("rewrap.admin_socket", path(&socket));
    let killed = site().start().await;
    killed.signal("KILL");
    killed.wait_exit().await;
    assert!(socket.exists());
    let live = site().start().await;
    live.wait_log("admin socket: replacing the socket of an ended process")
        .await;
    assert!(answers(&socket).await);
    assert_refused(
        &start_with(&socket).await,
        "another process listens at this path",
    );
    assert!(answers(&socket).await, "{}", live.log_text());
    // A stopped process is alive, too.
    live.signal("STOP");
    assert_refused(
        &start_with(&socket).await,
        "another process listens at this path",
    );
    live.signal("CONT");
    assert!(answers(&socket).await);
}

#[tokio::test]
async fn a_path_that_cannot_be_used_stops_the_start_and_stays_as_it_is() {
    let directory = lasting_dir("socket");
    let file = directory.join("file");
    fs::write(&file, "text").unwrap();
    assert_refused(&start_with(&file).await, "the path is not a socket");
    assert_eq!(fs::read_to_string(&file).unwrap(), "text");
    let link = directory.join("link");
    std::os::unix::fs::symlink("nothing", &link).unwrap();
    assert_refused(&start_with(&link).await, "the path is not a socket");
    assert_refused(&start_with(&directory).await, "the path is not a socket");

    let missing = directory.join("missing/admin.sock");
    let message = format!(
        "the directory {} does not exist",
        missing.parent().unwrap().display()
    );
    assert_refused(&start_with(&missing).await, &message);
    assert_refused(
        &start_with(&file.join("admin.sock")).await,
        "Not a directory",
    );
    let long = directory.join("x".repeat(100));
    assert_refused(&start_with(&long).await, "more than 107 bytes");
    assert_refused(
        &start_with(Path::new("admin.sock")).await,
        "is not an absolute path",
    );
}

#[tokio::test]
async fn a_server_that_cannot_use_its_database_leaves_no_socket() {
    let socket = lasting_dir("socket").join("admin.sock");
    let site = Site::new(&Database::new().await).set("rewrap.admin_socket", path(&socket));
    let exit = site.run_to_exit().await;
    assert_eq!(exit.code, 78, "{}", exit.stderr);
    assert!(
        exit.stderr.contains("admin.sock"),
        "it was there: {}",
        exit.stderr
    );
    assert!(!socket.exists());
}
