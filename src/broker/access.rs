//! Who may come in: credentials and virtual hosts.
//!
//! For now there is one user, guest, and one virtual host, `/`; guest comes in from the board itself only,
//! as with RabbitMQ, because everybody knows its password.

use crate::command::{ConnectionId, Name, Outcome, VhostId};
use crate::error::{Fault, ReplyCode};
use crate::mem::Slab;

use super::Broker;
use super::exchange::Kind;
use super::exchanges::ExchangeDeclaration;

const GUEST: &str = "guest";

/// One virtual host.
#[derive(Debug)]
pub(super) struct Vhost {
    name: Box<str>,
}

/// What exists in every virtual host before anybody declares anything: name, type, internal.
const PREDECLARED: [(&str, Kind, bool); 8] = [
    ("", Kind::Default, false),
    ("amq.direct", Kind::Direct, false),
    ("amq.fanout", Kind::Fanout, false),
    ("amq.headers", Kind::Headers, false),
    ("amq.match", Kind::Headers, false),
    ("amq.topic", Kind::Topic, false),
    ("amq.rabbitmq.trace", Kind::Topic, true),
    ("amq.rabbitmq.log", Kind::Topic, true),
];

/// Exchanges that a virtual host starts with.
pub(super) const PREDECLARED_EXCHANGES: usize = PREDECLARED.len();

impl Broker {
    pub(super) fn vhost_name(&self, vhost: VhostId) -> &str {
        &self.vhosts[vhost.index()].name
    }

    pub(super) fn create_vhost(&mut self, name: &str) -> Result<VhostId, Fault> {
        let index = self.vhosts.insert(Vhost { name: name.into() });
        let vhost = VhostId::from_index(index.map_err(|_| self.out_of("vhosts"))?);
        for (exchange, kind, internal) in PREDECLARED {
            let declaration = ExchangeDeclaration {
                exchange,
                kind: kind.name(),
                durable: true,
                auto_delete: false,
                internal,
                arguments: &[],
            };
            self.add_exchange(vhost, kind, &declaration, 0)?;
        }
        Ok(vhost)
    }

    /// SASL credentials. A refusal says nothing about its reason to the peer; the log does.
    pub(super) fn login(
        &mut self,
        connection: ConnectionId,
        user: &str,
        password: &[u8],
        from_loopback: bool,
    ) -> Result<Outcome, Fault> {
        let known = user == GUEST && equal(password, GUEST.as_bytes());
        if !known || !from_loopback {
            if known {
                log::warn!("user 'guest' can only connect from this machine itself; the login was refused");
            } else {
                log::warn!("a login was refused: unknown user or wrong password");
            }
            return Err(Fault::connection(ReplyCode::AccessRefused, format_args!("login refused")));
        }
        self.connections[connection.index()].user = Name::try_from(user).unwrap_or_default();
        Ok(Outcome::Done)
    }

    /// connection.open.
    pub(super) fn open_vhost(&mut self, connection: ConnectionId, name: &str) -> Result<Outcome, Fault> {
        let Some((index, _)) = find_vhost(&self.vhosts, name) else {
            return Err(Fault::connection(ReplyCode::NotAllowed, format_args!("vhost {name} not found")));
        };
        self.connections[connection.index()].vhost = Some(VhostId::from_index(index));
        Ok(Outcome::Done)
    }
}

fn find_vhost<'a>(vhosts: &'a Slab<Vhost>, name: &str) -> Option<(usize, &'a Vhost)> {
    vhosts.iter().find(|(_, vhost)| &*vhost.name == name)
}

/// Compares in a time that depends on the lengths alone.
fn equal(one: &[u8], two: &[u8]) -> bool {
    let differing = one.iter().zip(two).fold(0, |differing, (a, b)| differing | (a ^ b));
    one.len() == two.len() && differing == 0
}
