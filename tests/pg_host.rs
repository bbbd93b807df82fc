//! What Postgres needs on the machine: its programs, a user other than root, and a free port.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// The path of one of PostgreSQL's server programs.
pub(crate) fn binary(name: &str) -> PathBuf {
    static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
        find_binaries().expect(
            "no PostgreSQL server binaries (initdb, postgres): install them (Debian, Ubuntu: apt-get install \
             postgresql) or set PG_BIN to their directory",
        )
    });
    DIR.join(name)
}

fn find_binaries() -> Option<PathBuf> {
    let complete = |dir: &PathBuf| dir.join("initdb").is_file() && dir.join("postgres").is_file();
    if let Some(dir) = std::env::var_os("PG_BIN") {
        return Some(PathBuf::from(dir)).filter(complete);
    }
    let version = |dir: &PathBuf| dir.parent()?.file_name()?.to_str()?.parse::<u32>().ok();
    let packaged = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let packaged = packaged
        .map(|entry| entry.path().join("bin"))
        .filter(complete)
        .max_by_key(version);
    packaged.or_else(|| {
        let output = Command::new("pg_config").arg("--bindir").output().ok()?;
        Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim())).filter(complete)
    })
}

/// The user for Postgres if the tests run as root, which Postgres refuses: `postgres`, or else
/// `nobody`.
fn postgres_user() -> Option<(u32, u32)> {
    static USER: LazyLock<Option<(u32, u32)>> = LazyLock::new(|| {
        let id = |args: &[&str]| {
            let output = Command::new("id")
                .args(args)
                .output()
                .expect("cannot run id");
            String::from_utf8_lossy(&output.stdout)
                .trim()
                .parse::<u32>()
                .ok()
        };
        if id(&["-u"]) != Some(0) {
            return None;
        }
        let user = ["postgres", "nobody"]
            .into_iter()
            .find_map(|name| Some((id(&["-u", name])?, id(&["-g", name])?)));
        Some(user.expect(
            "running as root, and neither a user postgres nor a user nobody to run Postgres as",
        ))
    });
    *USER
}

/// Makes a command run as the user of Postgres.
pub(crate) fn as_postgres(command: &mut Command) -> &mut Command {
    if let Some((uid, gid)) = postgres_user() {
        command.uid(uid).gid(gid);
    }
    command
}

/// Makes the user of Postgres the owner of `path`.
pub(crate) fn give_to_postgres(path: &Path) {
    if let Some((uid, gid)) = postgres_user() {
        chown(path, Some(uid), Some(gid)).unwrap();
    }
}

/// An unused TCP port below the kernel's ephemeral range, so that no outgoing connection takes it
/// while a server restarts.
pub(crate) fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(15_000..32_000);
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
