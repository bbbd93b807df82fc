//! Tells systemd that the server runs (sd_notify(3)), for units with `Type=notify`. Until then,
//! `systemctl reload` waits and sends no SIGHUP.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

use crate::config::Environment;

/// The notification socket, if systemd started the process with `Type=notify`.
pub(super) fn socket(environment: &Environment) -> Option<OsString> {
    let value = environment.get("NOTIFY_SOCKET")?.as_ref()?;
    Some(OsString::from(value.as_str()))
}

/// Notifies systemd that the server runs.
pub(super) fn ready(socket: Option<&OsStr>) {
    if let Some(socket) = socket
        && let Err(error) = send(socket, b"READY=1")
    {
        tracing::warn!(
            %error,
            "cannot notify systemd that the server runs: check the socket in NOTIFY_SOCKET"
        );
    }
}

fn send(socket: &OsStr, message: &[u8]) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    let datagram = UnixDatagram::unbound()?;
    // The server does not wait for systemd.
    datagram.set_nonblocking(true)?;
    datagram.send_to_addr(message, &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_arrives_at_a_path_and_at_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("nico-rewrap-test-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
        let cases = [
            (UnixDatagram::bind(&path).unwrap(), path.into_os_string()),
            (
                UnixDatagram::bind_addr(&abstract_name).unwrap(),
                format!("@{name}").into(),
            ),
        ];
        for (listener, socket) in cases {
            send(&socket, b"READY=1").unwrap();
            let mut message = [0; 64];
            let length = listener.recv(&mut message).unwrap();
            assert_eq!(&message[..length], b"READY=1");
        }
        assert!(send("/nowhere/at/all".as_ref(), b"READY=1").is_err());
    }
}
