//! The listener for programs of this machine: a Unix socket.
//!
//! Always true: a socket that another process listens on is left alone, as is anything that is no socket; one
//! that was left behind is removed, and ours is at the end. In a folder that is ours alone nobody else
//! listens, so one that may not even be asked was left behind by another user; and what root makes there
//! belongs to the folder's owner, who has to get on with it one day.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use mio::net::UnixListener;
use mio::{Interest, Poll, Token};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, open};
use rustix::process::geteuid;
use socket2::{Domain, SockAddr, SockRef, Socket as RawSocket, Type};

use leveret_server::PeerAddress;

use super::socket::{Socket, Stream};

/// What is known of the folder that a socket is to stand in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Folder {
    /// Nothing: others may listen there.
    Anybodys,
    /// This process has the lock on it.
    Ours,
}

/// A Unix socket that is listened on.
#[derive(Debug)]
pub(super) struct LocalListener {
    listener: UnixListener,
    path: PathBuf,
    /// Device and number of its file, to know it again.
    file: (u64, u64),
}

impl LocalListener {
    /// Listens; whoever may write to a file of this mode may connect.
    pub(super) fn open(path: &Path, folder: Folder, mode: u32, backlog: i32) -> io::Result<Self> {
        let bound = Self::bind(path, folder, mode)?;
        bound.listen(backlog).map(|()| bound)
    }

    /// Lets the kernel accept connections.
    pub(super) fn listen(&self, backlog: i32) -> io::Result<()> {
        SockRef::from(&self.listener).listen(backlog)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the socket, which accepts nobody yet.
    pub(super) fn bind(path: &Path, folder: Folder, mode: u32) -> io::Result<Self> {
        remove_stale(path, folder)?;
        let socket = RawSocket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SockAddr::unix(path)?)?;
        fs::set_permissions(path, Permissions::from_mode(mode))?;
        if folder == Folder::Ours {
            give_to_owner(path)?;
        }
        let found = fs::symlink_metadata(path)?;
        let listener = UnixListener::from_std(socket.into());
        Ok(Self { listener, path: path.to_path_buf(), file: (found.dev(), found.ino()) })
    }

    pub(super) fn register(&mut self, poll: &Poll, token: Token) -> io::Result<()> {
        poll.registry().register(&mut self.listener, token, Interest::READABLE)
    }

    pub(super) fn accept(&self) -> io::Result<(Socket, PeerAddress)> {
        let (stream, _) = self.listener.accept()?;
        // The process is 0 where it is of another namespace, such as a container's.
        let who = getsockopt(&stream, PeerCredentials)?;
        let address = PeerAddress::Local { pid: who.pid(), uid: who.uid() };
        Ok((Socket::new(Stream::Unix(stream)), address))
    }
}

impl Drop for LocalListener {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| found.file_type().is_socket() && (found.dev(), found.ino()) == self.file);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// What root makes in the folder of another belongs to that one, as the files of the store do. What is given
/// is the socket itself, whatever its owner may put in its place meanwhile.
fn give_to_owner(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let owner = fs::metadata(folder.unwrap_or(Path::new(".")))?;
    if !geteuid().is_root() || owner.uid() == 0 {
        return Ok(());
    }
    let made = open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let found = fstat(&made)?;
    let is_socket = FileType::from_raw_mode(found.st_mode) == FileType::Socket;
    if is_socket && found.st_uid == 0 && found.st_nlink == 1 {
        let (user, group) = (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()));
        chownat(&made, "", Some(user), Some(group), AtFlags::EMPTY_PATH)?;
    }
    Ok(())
}

/// Removes a socket that nobody listens on any more.
fn remove_stale(path: &Path, folder: Folder) -> io::Result<()> {
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
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && folder == Folder::Ours => {
            fs::remove_file(path)
        }
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
        let listener = LocalListener::open(&path, Folder::Anybodys, 0o600, 8).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let refused = LocalListener::open(&path, Folder::Anybodys, 0o600, 8).unwrap_err().to_string();
        assert_eq!(refused, "another program listens there");
        let client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        // The first is the probe of the second listener.
        listener.accept().unwrap();
        let (_, address) = listener.accept().unwrap();
        assert_eq!(address.to_string(), format!("process {} of user {}", std::process::id(), uid()));
        assert!(address.is_loopback());
        drop((listener, client));
        assert!(!path.exists(), "it is removed at the end");
        fs::write(&path, "a file").unwrap();
        assert!(LocalListener::open(&path, Folder::Anybodys, 0o600, 8).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"a file");
        fs::remove_dir_all(&folder).unwrap();
    }

    fn uid() -> u32 {
        fs::metadata("/proc/self").unwrap().uid()
    }
}
