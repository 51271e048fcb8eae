//! The door for programs of this machine: a Unix socket.
//!
//! Always true: a socket that another process listens on is left alone, as is anything that is no socket; one
//! that was left behind is removed, and ours is at the end.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use mio::net::UnixListener;
use mio::{Interest, Poll, Token};
use socket2::{Domain, SockAddr, Socket as RawSocket, Type};

use super::socket::{PeerAddress, Socket};

/// A Unix socket that is listened on.
#[derive(Debug)]
pub(super) struct LocalDoor {
    listener: UnixListener,
    path: PathBuf,
    /// Device and number of its file, to know it again.
    file: (u64, u64),
}

impl LocalDoor {
    /// Listens; whoever may write to a file of this mode may connect.
    pub(super) fn open(path: &Path, mode: u32, backlog: i32) -> io::Result<Self> {
        remove_stale(path)?;
        let socket = RawSocket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SockAddr::unix(path)?)?;
        fs::set_permissions(path, Permissions::from_mode(mode))?;
        socket.listen(backlog)?;
        let found = fs::symlink_metadata(path)?;
        let listener = UnixListener::from_std(socket.into());
        Ok(Self { listener, path: path.to_path_buf(), file: (found.dev(), found.ino()) })
    }

    pub(super) fn register(&mut self, poll: &Poll, token: Token) -> io::Result<()> {
        poll.registry().register(&mut self.listener, token, Interest::READABLE)
    }

    pub(super) fn accept(&self) -> io::Result<(Socket, PeerAddress)> {
        let (stream, _) = self.listener.accept()?;
        let who = rustix::net::sockopt::socket_peercred(&stream)?;
        let address = PeerAddress::Local { pid: who.pid.as_raw_nonzero().get(), uid: who.uid.as_raw() };
        Ok((Socket::Unix(stream), address))
    }
}

impl Drop for LocalDoor {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| found.file_type().is_socket() && (found.dev(), found.ino()) == self.file);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Removes a socket that nobody listens on any more.
fn remove_stale(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::other("there is something else of that name"));
    }
    let probe = RawSocket::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        _ => Err(io::Error::other("another program listens there")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_left_behind_makes_place_and_nothing_else_does() {
        let folder = std::env::temp_dir().join(format!("leveret-local-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("amqp.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "it was left behind");
        let door = LocalDoor::open(&path, 0o600, 8).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let refused = LocalDoor::open(&path, 0o600, 8).unwrap_err().to_string();
        assert_eq!(refused, "another program listens there");
        let client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        // The first is the probe of the second door.
        door.accept().unwrap();
        let (_, address) = door.accept().unwrap();
        assert_eq!(address.to_string(), format!("process {} of user {}", std::process::id(), uid()));
        assert!(address.is_loopback());
        drop((door, client));
        assert!(!path.exists(), "it is removed at the end");
        fs::write(&path, "a file").unwrap();
        assert!(LocalDoor::open(&path, 0o600, 8).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"a file");
        fs::remove_dir_all(&folder).unwrap();
    }

    fn uid() -> u32 {
        fs::metadata("/proc/self").unwrap().uid()
    }
}
