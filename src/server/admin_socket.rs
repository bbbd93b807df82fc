//! The file of the admin socket: creation, replacement of a stale one, removal.

use std::{
    fs::{self, Metadata},
    io,
    os::{
        fd::OwnedFd,
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, MetadataExt, PermissionsExt},
        },
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, fchmod},
    io::Errno,
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
    },
};
use thiserror::Error;
use tokio::net::UnixListener;

use crate::auth::local::LocalUsers;

/// The mode of the file. The kernel needs the right to write for a connection.
const MODE: u32 = 0o600;

/// Maximum number of connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// The longest path, in bytes (unix(7), "Address format"). Clients need a zero byte at the end.
const MAX_PATH_BYTES: usize = 107;

/// The usual id that the kernel shows for a user without a mapping in this user namespace.
const DEFAULT_OVERFLOW_UID: u32 = 65_534;

/// A listening admin socket. Dropping it removes the file.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    users: LocalUsers,
    file: SocketFile,
}

/// An error of the admin socket.
#[derive(Debug, Error)]
pub enum AdminSocketError {
    /// The path is too long for a socket.
    #[error("the path has more than {MAX_PATH_BYTES} bytes: use a shorter one")]
    TooLong,
    /// The path names a file that is not a socket.
    #[error("the path is not a socket: remove the file, or use another path")]
    NotASocket,
    /// Another process serves the socket.
    #[error("another process listens at this path: stop it, or use another path")]
    InUse,
    /// The directory does not exist.
    #[error("the directory {} does not exist: create it for the user of nico-rewrap", .0.display())]
    NoDirectory(PathBuf),
    /// Any other error of the operating system.
    #[error("{0} failed ({1})")]
    System(&'static str, io::Error),
}

impl AdminSocket {
    /// Listens at this path. Replaces the socket of a process that no longer listens.
    ///
    /// # Errors
    ///
    /// [`AdminSocketError`] if the path cannot be used.
    pub fn bind(path: &Path) -> Result<Self, AdminSocketError> {
        let (socket, file) = match create(path) {
            Err(Create::Exists) => {
                remove_stale(path)?;
                create(path)
            }
            created => created,
        }
        .map_err(|error| match error {
            // Another process has created a socket in the meantime.
            Create::Exists => AdminSocketError::InUse,
            Create::Failed(error) => error,
        })?;
        listen(&socket, BACKLOG).map_err(system("listen"))?;
        let listener = UnixListener::from_std(socket.into()).map_err(system("listen"))?;
        let own = rustix::process::geteuid().as_raw();
        Ok(Self {
            listener,
            users: LocalUsers::new(own, overflow_uid()),
            file,
        })
    }

    /// The listener.
    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// The path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// The users that may connect.
    #[must_use]
    pub fn users(&self) -> LocalUsers {
        self.users
    }
}

fn system<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> AdminSocketError {
    move |error| AdminSocketError::System(what, error.into())
}

/// Why a socket was not created.
#[derive(Debug)]
enum Create {
    /// The path already exists.
    Exists,
    Failed(AdminSocketError),
}

/// Creates a socket that does not listen yet. Until it does, the kernel refuses connections.
fn create(path: &Path) -> Result<(OwnedFd, SocketFile), Create> {
    let failed = |what| move |error: Errno| Create::Failed(system(what)(error));
    let address = address(path).map_err(Create::Failed)?;
    let socket = new_socket().map_err(Create::Failed)?;
    // Linux creates the file with the mode of the socket, so it never has a wider one.
    fchmod(&socket, Mode::from_raw_mode(MODE)).map_err(failed("fchmod"))?;
    bind(&socket, &address).map_err(|error| match error {
        Errno::ADDRINUSE => Create::Exists,
        Errno::NOENT => {
            let directory = path.parent().unwrap_or(path).to_owned();
            Create::Failed(AdminSocketError::NoDirectory(directory))
        }
        error => failed("bind")(error),
    })?;
    let stat = fs::symlink_metadata(path);
    let metadata = stat.map_err(|error| Create::Failed(system("stat")(error)))?;
    let file = SocketFile::new(path, &metadata);
    // Necessary on other systems than Linux, and if the umask removes rights of the owner.
    if metadata.mode() & 0o777 != MODE {
        fs::set_permissions(path, fs::Permissions::from_mode(MODE))
            .map_err(|error| Create::Failed(system("chmod")(error)))?;
    }
    Ok((socket, file))
}

fn address(path: &Path) -> Result<SocketAddrUnix, AdminSocketError> {
    if path.as_os_str().as_bytes().len() > MAX_PATH_BYTES {
        return Err(AdminSocketError::TooLong);
    }
    SocketAddrUnix::new(path).map_err(system("bind"))
}

fn new_socket() -> Result<OwnedFd, AdminSocketError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(system("socket"))
}

/// Removes the file if it is a socket at which nobody listens.
fn remove_stale(path: &Path) -> Result<(), AdminSocketError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system("stat")(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(AdminSocketError::NotASocket);
    }
    match connect(new_socket()?, &address(path)?) {
        Err(Errno::CONNREFUSED) => {}
        // EAGAIN: the other process listens, and its queue of connections is full.
        Ok(()) | Err(Errno::AGAIN) => return Err(AdminSocketError::InUse),
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(system("connect")(error)),
    }
    tracing::info!(path = %path.display(), "admin socket: replacing the socket of an ended process");
    fs::remove_file(path).map_err(system("unlink"))
}

/// The file of a socket, which is removed on drop.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn new(path: &Path, metadata: &Metadata) -> Self {
        Self {
            path: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Remove only this file: another process may have put its own socket at the path.
        let is_own = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == (self.device, self.inode));
        if is_own && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "admin socket: can't remove the file");
        }
    }
}

/// The id that the kernel gives in place of a user without a mapping.
fn overflow_uid() -> u32 {
    // A sandbox can hide the file.
    let text = fs::read_to_string("/proc/sys/kernel/overflowuid");
    let known = text.ok().and_then(|text| text.trim().parse().ok());
    known.unwrap_or(DEFAULT_OVERFLOW_UID)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn the_file_has_its_mode_from_the_beginning_and_nobody_connects_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        // Tests the mode from the kernel, without chmod. The umask of tests lets others read and
        // execute files.
        let socket = new_socket().unwrap();
        fchmod(&socket, Mode::from_raw_mode(MODE)).unwrap();
        bind(&socket, &address(&path).unwrap()).unwrap();
        assert_eq!(mode(&path), MODE);
        drop(socket);
        fs::remove_file(&path).unwrap();

        let (_socket, file) = create(&path).unwrap();
        assert_eq!(mode(&path), MODE);
        let refused = UnixStream::connect(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        drop(file);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let (socket, file) = create(&path).unwrap();
        // As after a kill.
        std::mem::forget(file);
        drop(socket);
        assert!(path.exists());
        let live = AdminSocket::bind(&path).unwrap();
        let error = AdminSocket::bind(&path).unwrap_err();
        assert!(matches!(error, AdminSocketError::InUse), "{error:?}");
        let _client = UnixStream::connect(&path).unwrap();
        drop(live);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_is_not_our_socket_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "text").unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("nothing"), &link).unwrap();
        for path in [&file, &link] {
            let error = AdminSocket::bind(path).unwrap_err();
            assert!(matches!(error, AdminSocketError::NotASocket), "{error:?}");
            assert!(fs::symlink_metadata(path).is_ok());
        }
        // A datagram socket: a connection attempt does not show whether its process is alive.
        let datagram = dir.path().join("datagram");
        let _other = UnixDatagram::bind(&datagram).unwrap();
        let error = AdminSocket::bind(&datagram).unwrap_err();
        assert!(
            matches!(error, AdminSocketError::System("connect", _)),
            "{error:?}"
        );
        assert!(datagram.exists());

        let long = dir.path().join("x".repeat(MAX_PATH_BYTES));
        let error = AdminSocket::bind(&long).unwrap_err();
        assert!(matches!(error, AdminSocketError::TooLong), "{error:?}");
    }

    #[tokio::test]
    async fn the_file_of_a_successor_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let first = AdminSocket::bind(&path).unwrap();
        fs::rename(&path, dir.path().join("moved")).unwrap();
        let second = AdminSocket::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }
}
