//! Real Postgres servers in temporary directories: one for the whole test process, and private ones
//! for tests that stop the server, restart it or need another configuration.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::pg_host::{as_postgres, binary, free_port, give_to_postgres};
use crate::pki::Leaf;
use crate::process::{Supervised, lasting_dir, run};

/// The superuser, which fixtures use over the Unix socket.
pub(crate) const SUPERUSER: &str = "postgres";
/// The owner of every test database. Not a superuser, as at a site.
pub(crate) const OWNER: &str = "nico";
/// The password in every URL of the service, so that tests can search for leaks. The server does
/// not check passwords.
pub(crate) const PASSWORD: &str = "database-password-that-nobody-logs";

const HBA: &str =
    "local all all trust\nlocal replication all trust\nhost all all 127.0.0.1/32 trust\n";
const HBA_PASSWORDS: &str = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
const HBA_TLS_ONLY: &str = "local all all trust\nhostssl all all 127.0.0.1/32 trust\n";

const SETTINGS: &[(&str, &str)] = &[
    ("listen_addresses", "127.0.0.1"),
    ("max_connections", "300"),
    ("shared_buffers", "64MB"),
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("logging_collector", "off"),
    ("log_statement", "none"),
    ("log_line_prefix", "%m [%p] %d %a %e "),
];

/// A running Postgres server. It ends when this value is dropped or the test process ends.
pub(crate) struct Server {
    dir: PathBuf,
    port: u16,
    process: Mutex<Option<Supervised>>,
}

/// The differences of a private server from the shared one.
#[derive(Default)]
pub(crate) struct Options {
    settings: Vec<(String, String)>,
    certificate: Option<(PathBuf, PathBuf)>,
    tls_only: bool,
    passwords: bool,
}

impl Options {
    /// Adds a line to postgresql.conf, for example `shared_preload_libraries`.
    pub(crate) fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Offers TLS with this certificate.
    pub(crate) fn tls(mut self, leaf: &Leaf) -> Self {
        self.certificate = Some((leaf.cert_chain.clone(), leaf.key.clone()));
        self
    }

    /// Refuses TCP connections without TLS.
    pub(crate) fn tls_only(mut self) -> Self {
        self.tls_only = true;
        self
    }

    /// Checks the passwords of TCP connections.
    pub(crate) fn passwords(mut self) -> Self {
        self.passwords = true;
        self
    }

    /// Starts the server. Blocks until the server answers.
    pub(crate) fn start(self) -> Server {
        let dir = lasting_dir("pg");
        give_to_postgres(&dir);
        let data = dir.join("data");
        initdb(&data);
        let mut conf = String::new();
        let mut set = |name: &str, value: &str| {
            conf += &format!("{name} = '{}'\n", value.replace('\'', "''"))
        };
        SETTINGS.iter().for_each(|(name, value)| set(name, value));
        set("unix_socket_directories", dir.to_str().unwrap());
        if let Some((cert, key)) = &self.certificate {
            for (from, to) in [(cert, "server.crt"), (key, "server.key")] {
                fs::copy(from, data.join(to)).unwrap();
                give_to_postgres(&data.join(to));
                fs::set_permissions(data.join(to), Permissions::from_mode(0o600)).unwrap();
            }
            set("ssl", "on");
        }
        self.settings
            .iter()
            .for_each(|(name, value)| set(name, value));
        fs::write(data.join("postgresql.conf"), conf).unwrap();
        let hba = match (self.tls_only, self.passwords) {
            (true, _) => HBA_TLS_ONLY,
            (false, true) => HBA_PASSWORDS,
            (false, false) => HBA,
        };
        fs::write(data.join("pg_hba.conf"), hba).unwrap();
        Server::start_in(dir)
    }
}

impl Server {
    /// The server that all tests share. No test stops it.
    pub(crate) fn shared() -> &'static Server {
        static SHARED: OnceLock<Server> = OnceLock::new();
        SHARED.get_or_init(Server::start)
    }

    /// A private server with the usual settings.
    pub(crate) fn start() -> Server {
        Options::default().start()
    }

    /// A private server that can count its statements: see [`Database::count_statements`].
    ///
    /// [`Database::count_statements`]: crate::database::Database::count_statements
    pub(crate) fn with_statistics() -> Server {
        Self::options()
            .setting("shared_preload_libraries", "pg_stat_statements")
            .start()
    }

    /// A private server with other settings: `Server::options().setting(…).start()`.
    pub(crate) fn options() -> Options {
        Options::default()
    }

    /// Starts a hot standby with streaming replication from this server. Blocks until the standby
    /// answers.
    pub(crate) fn standby(&self) -> Server {
        let dir = lasting_dir("standby");
        give_to_postgres(&dir);
        let data = dir.join("data");
        let mut backup = Command::new(binary("pg_basebackup"));
        as_postgres(&mut backup).current_dir(&dir);
        backup
            .args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync"])
            .args(["-U", SUPERUSER, "-p", &self.port.to_string(), "-h"])
            .arg(&self.dir)
            .arg("-D")
            .arg(&data);
        run(&mut backup);
        // Of two lines for one setting, the last one counts.
        let mut conf = File::options()
            .append(true)
            .open(data.join("postgresql.conf"))
            .unwrap();
        writeln!(conf, "unix_socket_directories = '{}'", dir.display()).unwrap();
        Self::start_in(dir)
    }

    /// The directory of the Unix socket.
    pub(crate) fn socket_dir(&self) -> &Path {
        &self.dir
    }

    /// The TCP port on 127.0.0.1, which is also the number in the socket's name.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The server's log.
    pub(crate) fn log(&self) -> String {
        let log = fs::read(self.dir.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Stops the server like a crash: clients get no message, and the next start runs recovery.
    pub(crate) fn stop_immediate(&self) {
        self.stop("QUIT");
    }

    /// Stops the server cleanly: it rolls back transactions and informs clients.
    pub(crate) fn stop_fast(&self) {
        self.stop("INT");
    }

    /// Stops the server if it runs, and starts it on the same port. Blocks until the server
    /// answers.
    pub(crate) fn restart(&self) {
        self.stop_fast();
        for _ in 0..50 {
            if self.try_start() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("Postgres does not start again; its log:\n{}", self.log());
    }

    /// The process id of the postmaster.
    pub(crate) fn pid(&self) -> u32 {
        self.process
            .lock()
            .unwrap()
            .as_ref()
            .expect("the server runs")
            .pid()
    }

    /// Starts the server whose data is in this directory.
    fn start_in(dir: PathBuf) -> Self {
        let mut server = Self {
            dir,
            port: 0,
            process: Mutex::new(None),
        };
        // Another process may take the port before Postgres does, hence more than one try.
        for _ in 0..10 {
            server.port = free_port();
            if server.try_start() {
                return server;
            }
        }
        panic!("Postgres does not start; its log:\n{}", server.log());
    }

    fn stop(&self, signal: &str) {
        if let Some(mut process) = self.process.lock().unwrap().take() {
            process.signal(signal);
            process.wait(Duration::from_secs(30));
        }
    }

    fn try_start(&self) -> bool {
        let data = self.dir.join("data");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))
            .unwrap();
        let port = self.port.to_string();
        let args = ["-D", data.to_str().unwrap(), "-p", &port];
        let mut process = Supervised::spawn(&binary("postgres"), args, "QUIT", |command| {
            as_postgres(command).current_dir(&self.dir).stderr(log);
        });
        let deadline = Instant::now() + Duration::from_secs(60);
        while process.try_wait().is_none() {
            // The eighth line of this file is the postmaster's state.
            let state = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
            if state
                .lines()
                .nth(7)
                .is_some_and(|line| line.trim() == "ready")
            {
                *self.process.lock().unwrap() = Some(process);
                return true;
            }
            assert!(
                Instant::now() < deadline,
                "Postgres is not ready after a minute; its log:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }
}

/// The log of the shared server so far.
pub(crate) fn server_log() -> String {
    Server::shared().log()
}

/// Uses a linguistic default collation, if the build has ICU. This reveals code that needs byte
/// order but lacks `COLLATE "C"`.
fn initdb(data: &Path) {
    let icu = ["--locale=C", "--locale-provider=icu", "--icu-locale=en-US"];
    let initdb = |locale: &[&str]| {
        let mut command = Command::new(binary("initdb"));
        as_postgres(&mut command).current_dir(data.parent().unwrap());
        command
            .args(["--no-sync", "-A", "trust", "-E", "UTF8", "-U", SUPERUSER])
            .args(locale)
            .arg("-D")
            .arg(data);
        command
    };
    if !initdb(&icu)
        .output()
        .is_ok_and(|output| output.status.success())
    {
        run(&mut initdb(&["--locale=C"]));
    }
}
