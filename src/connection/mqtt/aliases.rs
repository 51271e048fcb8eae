//! Topic aliases of MQTT 5 (§3.3.2.3.4): numbers that stand for topic names on a connection.
//!
//! Each direction of a connection has its own aliases. A client that connects when there is no memory for them gets Topic Alias
//! Maximum 0, and must send the topic name in each PUBLISH.

use leveret_core::command::Name;
use leveret_mqtt::{PacketError, ReasonCode};

use super::super::connection::Pools;

/// The highest alias, as in RabbitMQ.
pub(super) const TOPIC_ALIAS_MAX: u16 = 16;
/// The shortest topic that is replaced by an alias, in bytes. The property of the alias takes 3 bytes.
const TOPIC_BYTES_MIN: usize = 4;

/// The names of the aliases 1 to [`TOPIC_ALIAS_MAX`]; an empty name is that of no alias.
type Table = [Name; TOPIC_ALIAS_MAX as usize];

/// All tables together take at most this part of the memory that is free, because a table has 4 KiB.
const FREE_DIVISOR: usize = 16;

/// The aliases of one direction. Their table is allocated with the first alias.
#[derive(Debug, Default)]
pub(super) struct TopicAliases {
    /// The highest alias; 0: there are none.
    max: u16,
    names: Option<Box<Table>>,
}

/// The alias of a topic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Alias {
    pub(super) number: u16,
    /// The receiver does not know the alias yet.
    pub(super) is_new: bool,
}

impl TopicAliases {
    /// Returns aliases up to `max`, or fewer. There are none if there is no memory for them.
    pub(super) fn reserve(pools: &mut Pools, max: u16) -> Self {
        let max = max.min(TOPIC_ALIAS_MAX);
        let memory = &mut pools.alias_bytes;
        let is_within_share = memory.used() + size_of::<Table>() <= memory.free() / FREE_DIVISOR;
        match max > 0 && is_within_share && memory.try_add(size_of::<Table>()) {
            true => Self { max, names: None },
            false => Self::default(),
        }
    }

    /// Clears the aliases, and returns their table to the pool.
    pub(super) fn release(&mut self, pools: &mut Pools) {
        if core::mem::take(self).max > 0 {
            pools.alias_bytes.subtract(size_of::<Table>());
        }
    }

    pub(super) const fn max(&self) -> u16 {
        self.max
    }

    fn names(&mut self) -> &mut Table {
        self.names.get_or_insert_with(|| Box::new([const { Name::new() }; TOPIC_ALIAS_MAX as usize]))
    }

    /// Returns the topic of a PUBLISH that a client has sent with an alias. A topic that is not empty is the new topic of
    /// the alias.
    ///
    /// # Errors
    /// The alias is not allowed, or has no topic.
    pub(super) fn resolve(&mut self, alias: u16, topic: Name) -> Result<Name, PacketError> {
        if alias == 0 || alias > self.max {
            let text = "a topic alias that is larger than the Topic Alias Maximum, or 0";
            return Err(PacketError::new(ReasonCode::TopicAliasInvalid, text));
        }
        let known = &mut self.names()[usize::from(alias) - 1];
        if !topic.is_empty() {
            *known = topic;
        }
        if known.is_empty() {
            return Err(PacketError::protocol("a topic alias without a topic"));
        }
        Ok(known.clone())
    }

    /// Returns the alias for a topic that is sent to the client. A new alias is sent with its topic, and then assigned.
    pub(super) fn alias_of(&self, topic: &[u8]) -> Option<Alias> {
        if topic.len() < TOPIC_BYTES_MIN {
            return None;
        }
        let known = self.names.as_ref().map_or(&[][..], |names| &names[..usize::from(self.max)]);
        let found = known.iter().position(|name| name.is_empty() || name.as_bytes() == topic);
        match found {
            Some(at) => Some(Alias { number: at as u16 + 1, is_new: known[at].is_empty() }),
            None if self.max > 0 && self.names.is_none() => Some(Alias { number: 1, is_new: true }),
            None => None,
        }
    }

    /// Notes that a new alias was sent with its topic.
    pub(super) fn assign(&mut self, alias: Alias, topic: &[u8]) {
        if let Some(name) = core::str::from_utf8(topic).ok().and_then(|topic| Name::try_from(topic).ok()) {
            self.names()[usize::from(alias.number) - 1] = name;
        }
    }
}

#[cfg(test)]
mod tests {
    use leveret_core::limits::Limits;

    use super::*;

    fn name(text: &str) -> Name {
        Name::try_from(text).expect("short")
    }

    #[test]
    fn an_alias_stands_for_its_last_topic() {
        let mut pools = Pools::new(&Limits::default());
        let mut aliases = TopicAliases::reserve(&mut pools, u16::MAX);
        let reason = |result: Result<Name, PacketError>| result.expect_err("refused").reason;
        assert_eq!(reason(aliases.resolve(0, name("t"))), ReasonCode::TopicAliasInvalid);
        assert_eq!(reason(aliases.resolve(17, name("t"))), ReasonCode::TopicAliasInvalid);
        assert_eq!(reason(aliases.resolve(16, Name::new())), ReasonCode::ProtocolError);
        for topic in ["a", "b"] {
            assert_eq!(aliases.resolve(16, name(topic)), Ok(name(topic)));
            assert_eq!(aliases.resolve(16, Name::new()), Ok(name(topic)));
        }
    }

    #[test]
    fn a_topic_is_sent_until_its_alias_is_known() {
        let mut pools = Pools::new(&Limits::default());
        let mut aliases = TopicAliases::reserve(&mut pools, 2);
        let alias = |number, is_new| Some(Alias { number, is_new });
        assert_eq!(TopicAliases::default().alias_of(b"first"), None);
        assert_eq!(aliases.alias_of(b"abc"), None);
        for (number, topic) in [(1, &b"first"[..]), (2, b"second")] {
            assert_eq!(aliases.alias_of(topic), alias(number, true));
            // A packet without space for the alias does not assign it.
            assert_eq!(aliases.alias_of(topic), alias(number, true));
            aliases.assign(Alias { number, is_new: true }, topic);
            assert_eq!(aliases.alias_of(topic), alias(number, false));
        }
        assert_eq!(aliases.alias_of(b"third"), None);
        assert_eq!(aliases.alias_of(b"first"), alias(1, false));
    }

    #[test]
    fn tables_are_limited_and_returned() {
        // A sixteenth of 192 extents is a few tables.
        let memory = leveret_core::mem::Memory::new(192 + leveret_core::mem::COMMAND_EXTENTS, [0; 3]);
        let mut pools = Pools::in_memory(&Limits::default(), &memory);
        let mut all: Vec<_> = (0..20).map(|_| TopicAliases::reserve(&mut pools, 5)).collect();
        let count = all.iter().filter(|aliases| aliases.max() == 5).count();
        assert!((5..12).contains(&count) && all[count].max() == 0, "{count}");
        all[0].release(&mut pools);
        assert_eq!(TopicAliases::reserve(&mut pools, 0).max(), 0);
        assert_eq!(TopicAliases::reserve(&mut pools, 5).max(), 5);
        assert_eq!(TopicAliases::reserve(&mut pools, 5).max(), 0);
    }
}
