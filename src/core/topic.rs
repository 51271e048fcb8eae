//! The mapping between topics of MQTT and routing keys of AMQP.

use crate::mem::Name;

/// Returns a topic, a topic filter or a routing key with `/` and `.` exchanged: the routing key of a topic, and the topic
/// of a routing key. Returns `None` for a text of more than 255 bytes.
///
/// RabbitMQ maps only `/` to `.`, and back `.` to `/`. Here a dot of a topic is a `/` in the routing key, so that every
/// topic is the same after both mappings.
pub fn exchange_separators(text: &str) -> Option<Name> {
    let mut exchanged = Name::new();
    text.chars().try_for_each(|character| exchanged.push(exchange_separator(character))).ok()?;
    Some(exchanged)
}

const fn exchange_separator(character: char) -> char {
    match character {
        '/' => '.',
        '.' => '/',
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::exchange_separators;

    #[test]
    fn every_topic_is_the_same_after_both_mappings() {
        for topic in ["a", "a/b", "a.b/c", "/a//b.", "spBv1.0/group/NBIRTH/node", "ä/é"] {
            let key = exchange_separators(topic).unwrap();
            assert_eq!(exchange_separators(&key).unwrap(), topic);
        }
        assert_eq!(exchange_separators("a.b/c").unwrap(), "a/b.c");
        assert_eq!(exchange_separators(&"/".repeat(255)).unwrap().len(), 255);
        assert_eq!(exchange_separators(&"/".repeat(256)), None);
    }
}
