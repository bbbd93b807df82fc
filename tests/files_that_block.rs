//! A path that is not a regular file does not block the server. The start fails with a message that
//! says what the file is. A reload continues once a good file is back.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::certs;
use crate::configuration::refused;
use crate::crl::Crl;
use crate::database::Database;
use crate::process;
use crate::reload::until;
use crate::site::{Site, path, quote, run_binary};

fn fifo(at: &Path) -> PathBuf {
    process::run(Command::new("mkfifo").arg(at));
    at.to_owned()
}

#[tokio::test]
async fn only_regular_files_are_read_at_the_start() {
    let database = Database::migrated().await;
    let dir = process::temp_dir("odd");
    let fifo = fifo(&dir.path().join("fifo"));
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    for (file, what) in [
        (fifo.as_path(), "it is a FIFO, not a regular file"),
        (&socket, "it is a socket, not a regular file"),
        (dir.path(), "it is a directory, not a regular file"),
        (Path::new("/dev/zero"), "it is a device, not a regular file"),
    ] {
        let said = format!("{} can't be read ({what})", file.display());
        for setting in [
            "tls.identity_pemfile_path",
            "tls.identity_keyfile_path",
            "tls.root_cafile_path",
            "tls.admin_root_cafile_path",
            "auth.casbin_policy_file",
        ] {
            let (section, name) = setting.split_once('.').unwrap();
            let spelled = format!("site.toml: [{section}].{name}: ");
            refused(&database, &[&spelled, &said], |site| {
                site.set(setting, path(file))
            })
            .await;
        }
        refused(&database, &["[rewrap].crl_files: ", &said], |site| {
            site.set("rewrap.crl_files", format!("[{}]", path(file)))
        })
        .await;
        let words = [
            "[rewrap].secrets_file: ",
            &*file.display().to_string(),
            what,
        ];
        refused(&database, &words, |site| {
            site.set("rewrap.secrets_file", path(file))
        })
        .await;
        let url = format!(
            "{}?sslmode=verify-full&sslrootcert={}",
            database.url(),
            file.display()
        );
        refused(&database, &["database_url: sslrootcert: ", &said], |site| {
            site.set("database_url", quote(&url))
        })
        .await;
        for subcommand in ["serve", "migrate", "healthcheck"] {
            let file = file.to_str().unwrap().to_owned();
            let args = [subcommand.to_owned(), "--config".to_owned(), file.clone()];
            let exit = run_binary(&args, &[]).await;
            let words = format!("{file}: can't be read ({what})");
            assert!(
                exit.code == 78 && exit.stderr.contains(&words),
                "{}",
                exit.stderr
            );
        }
    }
    let words = [
        "[rewrap].audit_log: ",
        "it is a FIFO, and no process reads it",
    ];
    refused(&database, &words, |site| {
        site.set("rewrap.audit_log", path(&fifo))
    })
    .await;
    let words = ["[rewrap].audit_log: ", "it is a socket, not a regular file"];
    refused(&database, &words, |site| {
        site.set("rewrap.audit_log", path(&socket))
    })
    .await;
}

#[tokio::test]
async fn a_file_that_is_a_fifo_for_a_moment_does_not_end_reloading() {
    let database = Database::migrated().await;
    let dir = process::temp_dir("reload");
    let at = |name: &str| dir.path().join(name);
    let good = Crl::of(certs::root_ca()).issue();
    std::fs::copy(&good, at("crl.pem")).unwrap();
    std::fs::copy(&certs::root_ca().cert, at("root.pem")).unwrap();
    let server = Site::new(&database)
        .set("rewrap.tls_reload_interval", "\"100ms\"")
        .set("rewrap.crl_files", format!("[{}]", path(at("crl.pem"))))
        .set("tls.root_cafile_path", path(at("root.pem")))
        .start()
        .await;
    for name in ["crl.pem", "root.pem"] {
        std::fs::rename(at(name), at("good")).unwrap();
        fifo(&at(name));
        until(&server, "nico_rewrap_tls_reload_failing", &[], 1.0).await;
        std::fs::rename(at("good"), at(name)).unwrap();
        until(&server, "nico_rewrap_tls_reload_failing", &[], 0.0).await;
    }
    assert!(
        server
            .log_text()
            .contains("it is a FIFO, not a regular file")
    );
}
