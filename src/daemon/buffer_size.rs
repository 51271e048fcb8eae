//! The kernel's buffers of one connection.

use std::io;

use socket2::SockRef;

use leveret_core::limits::Limits;

/// Which buffers a connection has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BufferSize {
    /// Of a connection over the network.
    Usual,
    /// Of a connection from this machine.
    Local,
}

impl BufferSize {
    /// Sets them; 0 leaves it to the system.
    pub(super) fn set(self, socket: &SockRef<'_>, limits: &Limits) -> io::Result<()> {
        let [receive, send] = match self {
            Self::Usual => [limits.socket_receive_buffer_bytes, limits.socket_send_buffer_bytes],
            Self::Local => [limits.socket_local_buffer_bytes; 2],
        };
        if receive > 0 {
            socket.set_recv_buffer_size(receive as usize)?;
        }
        if send > 0 {
            socket.set_send_buffer_size(send as usize)?;
        }
        Ok(())
    }
}
