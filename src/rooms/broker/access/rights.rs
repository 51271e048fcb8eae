//! What a user may do in a virtual host, and the checks.
//!
//! Always true: without a permission nothing is allowed; the texts of refusals are RabbitMQ's; patterns are
//! compiled when they are set, with their variables filled in, for each belongs to one user and one virtual
//! host. A check neither allocates nor asks twice: whoever may write to an exchange is remembered by its
//! channel until the topology changes.

use crate::command::{ChannelId, ConnectionId, ExchangeId, VhostId};
use crate::error::{Advice, Fault, ReplyCode};

use super::fault::OperatorFault;
use super::pattern::{Pattern, escaped};
use super::records::{Permission, Right, Thing, TopicPermission};
use crate::broker::Broker;
use crate::broker::routing::Kind;
use crate::broker::work::Work;

impl Broker {
    /// Whether the user of a connection may do this.
    pub(in super::super) fn check(
        &self,
        work: &mut Work,
        connection: ConnectionId,
        vhost: VhostId,
        right: Right,
        thing: Thing<'_>,
    ) -> Result<(), Fault> {
        let record = &self.connections[connection.index()];
        if record.is_own {
            return Ok(());
        }
        let permission = record.user_index.and_then(|user| self.find_permission(user, vhost));
        let pattern = permission.map(|permission| match right {
            Right::Configure => &self.access.permissions[permission].patterns[0],
            Right::Write => &self.access.permissions[permission].patterns[1],
            Right::Read => &self.access.permissions[permission].patterns[2],
        });
        if pattern.is_some_and(|pattern| pattern.matches(work, thing.name())) {
            return Ok(());
        }
        let fault = Fault::new(
            ReplyCode::AccessRefused,
            format_args!(
                "access to {thing} in vhost '{}' refused for user '{}'",
                self.vhost_name(vhost),
                record.user
            ),
        );
        let is_default = matches!(thing, Thing::Exchange(""));
        Err(if is_default { fault.advising(Advice::MatchDefaultExchange) } else { fault })
    }

    /// Whether a channel may publish to this exchange, found or not.
    pub(in super::super) fn check_publish(
        &mut self,
        work: &mut Work,
        channel: ChannelId,
        exchange: &str,
    ) -> Result<(), Fault> {
        let record = &self.channels[channel.index()];
        let (connection, vhost) = (record.connection, record.vhost);
        let found = self.find_exchange(vhost, exchange);
        if found.is_some() && record.may_write == found && record.may_write_until == self.routing.revision() {
            return Ok(());
        }
        self.check(work, connection, vhost, Right::Write, Thing::Exchange(exchange))?;
        let record = &mut self.channels[channel.index()];
        (record.may_write, record.may_write_until) = (found, self.routing.revision());
        Ok(())
    }

    /// Whether keys have to be looked at where this connection's user writes to, or reads from, an exchange.
    pub(in super::super) fn minds_topics(&self, connection: ConnectionId, exchange: ExchangeId) -> bool {
        let user = self.connections[connection.index()].user_index;
        user.is_some_and(|user| self.access.users[user].topics > 0)
            && self.routing.exchange(exchange).kind == Kind::Topic
    }

    /// Whether the user of a connection may use this key with a topic exchange.
    pub(in super::super) fn check_topic(
        &self,
        work: &mut Work,
        connection: ConnectionId,
        exchange: ExchangeId,
        right: Right,
        key: &[u8],
    ) -> Result<(), Fault> {
        let record = &self.connections[connection.index()];
        let topic = self.routing.exchange(exchange);
        let permission = record.user_index.filter(|_| topic.kind == Kind::Topic);
        let permission = permission.and_then(|user| self.find_topic(user, topic.vhost, &topic.name));
        let Some(permission) = permission else { return Ok(()) };
        let [write, read] = &self.access.topics[permission].patterns;
        let pattern = if right == Right::Read { read } else { write };
        let key = core::str::from_utf8(key);
        if key.is_ok_and(|key| pattern.matches(work, key)) {
            return Ok(());
        }
        Err(Fault::new(
            ReplyCode::AccessRefused,
            format_args!(
                "access to topic '{}' in {} refused for user '{}'",
                key.unwrap_or_default(),
                self.exchange_in_words(topic.vhost, &topic.name),
                record.user
            ),
        ))
    }

    /// Whether a connection's messages may say that they are another user's.
    pub(in super::super) fn may_impersonate(&self, connection: ConnectionId) -> bool {
        let record = &self.connections[connection.index()];
        // What a bridge hands on says whose it was.
        record.is_own || record.user_index.is_some_and(|user| self.access.users[user].has_tag("impersonator"))
    }

    pub(super) fn find_permission(&self, user: usize, vhost: VhostId) -> Option<usize> {
        let table = &self.access.permission_table;
        table.find((user, vhost), |index| {
            let permission = &self.access.permissions[index];
            (permission.user, permission.vhost) == (user, vhost)
        })
    }

    pub(super) fn find_topic(&self, user: usize, vhost: VhostId, exchange: &str) -> Option<usize> {
        self.access.topic_table.find((user, vhost, exchange), |index| {
            let topic = &self.access.topics[index];
            (topic.user, topic.vhost, &*topic.exchange) == (user, vhost, exchange)
        })
    }

    // ---- changing them

    pub(super) fn put_permission(
        &mut self,
        user: usize,
        vhost: VhostId,
        texts: [&str; 3],
    ) -> Result<(), OperatorFault> {
        let most = self.access.pattern_bytes.most();
        let [configure, write, read] = texts.map(|text| Pattern::new(text, most));
        let bad = |right, error| OperatorFault::BadPattern { right, why: format!("{error}") };
        let patterns = [
            configure.map_err(|error| bad("configure", error))?,
            write.map_err(|error| bad("write", error))?,
            read.map_err(|error| bad("read", error))?,
        ];
        let old = self.find_permission(user, vhost);
        let freed = old.map_or(0, |old| bytes_of(&self.access.permissions[old].patterns));
        self.take_patterns(old.is_none(), bytes_of(&patterns), freed)?;
        match old {
            Some(old) => self.access.permissions[old].patterns = patterns,
            None => {
                let record = Permission { user, vhost, patterns };
                let index = self.access.permissions.insert(record);
                let index = index.map_err(|_| OperatorFault::NoRoom("permissions_max"))?;
                self.access.permission_table.insert((user, vhost), index);
            }
        }
        self.routing.revise();
        Ok(())
    }

    pub(super) fn put_topic(
        &mut self,
        user: usize,
        vhost: VhostId,
        exchange: &str,
        texts: [&str; 2],
    ) -> Result<(), OperatorFault> {
        let fill = |text: &str| {
            let user = escaped(self.user_name(user));
            let vhost = escaped(self.vhost_name(vhost));
            // AMQP 0-9-1 has no client ids, so RabbitMQ leaves {client_id} as it stands.
            let meant = text.replace("{username}", &user).replace("{vhost}", &vhost);
            Pattern::expanded(text, &meant, self.access.pattern_bytes.most())
        };
        let [write, read] = texts.map(fill);
        let bad = |right, error| OperatorFault::BadPattern { right, why: format!("{error}") };
        let patterns =
            [write.map_err(|error| bad("write", error))?, read.map_err(|error| bad("read", error))?];
        let old = self.find_topic(user, vhost, exchange);
        let freed = old.map_or(0, |old| bytes_of(&self.access.topics[old].patterns));
        self.take_patterns(old.is_none(), bytes_of(&patterns), freed)?;
        match old {
            Some(old) => self.access.topics[old].patterns = patterns,
            None => {
                let record = TopicPermission { user, vhost, exchange: exchange.into(), patterns };
                let index = self.access.topics.insert(record);
                let index = index.map_err(|_| OperatorFault::NoRoom("permissions_max"))?;
                self.access.topic_table.insert((user, vhost, exchange), index);
                self.access.users[user].topics += 1;
            }
        }
        self.routing.revise();
        Ok(())
    }

    /// Counts patterns in for others that go.
    fn take_patterns(&mut self, is_new: bool, bytes: usize, freed: usize) -> Result<(), OperatorFault> {
        let access = &mut self.access;
        if is_new && access.permissions.len() + access.topics.len() >= access.permissions_max {
            return Err(OperatorFault::NoRoom("permissions_max"));
        }
        access.pattern_bytes.take(bytes, freed)
    }

    pub(super) fn remove_permission(&mut self, index: usize) {
        let permission = self.access.permissions.remove(index);
        self.access.permission_table.remove((permission.user, permission.vhost), index);
        self.access.pattern_bytes.give_back(bytes_of(&permission.patterns));
        self.routing.revise();
    }

    pub(super) fn remove_topic(&mut self, index: usize) {
        let topic = self.access.topics.remove(index);
        self.access.topic_table.remove((topic.user, topic.vhost, &*topic.exchange), index);
        self.access.pattern_bytes.give_back(bytes_of(&topic.patterns));
        self.access.users[topic.user].topics -= 1;
        self.routing.revise();
    }
}

fn bytes_of(patterns: &[Pattern]) -> usize {
    patterns.iter().map(Pattern::bytes).sum()
}
