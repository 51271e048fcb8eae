//! Topic names and topic filters (§4.7), and shared subscriptions (§4.8.2).

use super::reason::{PacketError, ReasonCode};

/// Checks a topic name: it has at least one character and no wildcard (§4.7.1, MQTT-4.7.3-1).
///
/// # Errors
/// 0x90, Topic Name invalid.
pub fn check_topic_name(topic: &str) -> Result<(), PacketError> {
    let refused = |text| Err(PacketError::new(ReasonCode::TopicNameInvalid, text));
    match topic {
        "" => refused("an empty topic name"),
        _ if topic.contains(['+', '#']) => refused("a topic name with a wildcard"),
        _ => Ok(()),
    }
}

/// A topic filter, and the group that shares the subscription.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TopicFilter<'a> {
    /// The share name of a shared subscription (`$share/GROUP/FILTER`); `None` for others.
    pub group: Option<&'a str>,
    /// The filter, without `$share` and the group.
    pub filter: &'a str,
}

impl<'a> TopicFilter<'a> {
    /// Parses the filter of a subscription. Clients of MQTT 3.1.1 can use shared subscriptions, too, although that
    /// version does not define them.
    ///
    /// # Errors
    /// 0x8F, Topic Filter invalid.
    pub fn parse(text: &'a str) -> Result<Self, PacketError> {
        let refused = |text| Err(PacketError::new(ReasonCode::TopicFilterInvalid, text));
        let (group, filter) = match text.strip_prefix("$share/") {
            None => (None, text),
            Some(shared) => match shared.split_once('/') {
                Some((group, filter)) if !group.is_empty() && !group.contains(['+', '#']) => {
                    (Some(group), filter)
                }
                _ => return refused("a shared subscription without a group and a filter"),
            },
        };
        if filter.is_empty() {
            return refused("an empty topic filter");
        }
        let mut levels = filter.split('/').peekable();
        while let Some(level) = levels.next() {
            let is_wildcard = level.contains(['+', '#']);
            if is_wildcard && level.len() > 1 {
                return refused("a wildcard that is not a whole level of the topic filter");
            }
            if level == "#" && levels.peek().is_some() {
                return refused("a # that is not the last level of the topic filter");
            }
        }
        Ok(Self { group, filter })
    }
}

/// Returns whether a valid topic filter matches a valid topic name.
///
/// A filter that begins with a wildcard does not match a topic that begins with `$` (MQTT-4.7.2-1). `a/#` matches `a`,
/// too (§4.7.1.2).
pub fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let (mut wanted, mut levels) = (filter.split('/'), topic.split('/'));
    loop {
        match (wanted.next(), levels.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(wanted), Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of §4.7.1 and §4.7.2.
    #[test]
    fn filters_match_as_in_the_specification() {
        let player = "sport/tennis/player1";
        for (filter, topics) in [
            (
                "sport/tennis/player1/#",
                &[player, "sport/tennis/player1/ranking", "sport/tennis/player1/score/wimbledon"][..],
            ),
            ("sport/#", &["sport", player]),
            ("#", &["sport", "/", "/finance", player]),
            ("sport/tennis/+", &[player, "sport/tennis/"]),
            ("sport/+", &["sport/"]),
            ("+/+", &["/finance", "a/b"]),
            ("/+", &["/finance"]),
            ("$SYS/#", &["$SYS", "$SYS/broker/load"]),
            ("$SYS/monitor/+", &["$SYS/monitor/Clients"]),
            ("ACCOUNTS", &["ACCOUNTS"]),
            ("a//b", &["a//b"]),
            ("a/+/b", &["a//b"]),
            ("a/*/b", &["a/*/b"]),
        ] {
            assert_eq!(TopicFilter::parse(filter), Ok(TopicFilter { group: None, filter }));
            for topic in topics {
                assert_eq!(check_topic_name(topic), Ok(()));
                assert!(matches(filter, topic), "{filter} {topic}");
            }
        }
        for (filter, topic) in [
            ("sport/tennis/+", "sport/tennis/player1/ranking"),
            ("sport/+", "sport"),
            ("+", "/finance"),
            ("#", "$SYS/broker"),
            ("+/broker", "$SYS/broker"),
            ("ACCOUNTS", "Accounts"),
            ("a/*/b", "a/x/b"),
            ("a", "a/"),
            ("a/b", "a"),
            ("sport/#", "sports"),
        ] {
            assert!(!matches(filter, topic), "{filter} {topic}");
        }
    }

    #[test]
    fn invalid_filters_and_names_are_refused() {
        for filter in [
            "",
            "sport/tennis#",
            "sport/tennis/#/ranking",
            "sport+",
            "sport/+x/a",
            "##",
            "+#",
            "$share/",
            "$share/group",
            "$share//a",
            "$share/group/",
            "$share/gr+up/a",
            "$share/gr#up/a",
            "$share/group/a#",
        ] {
            let refused = TopicFilter::parse(filter).expect_err(filter);
            assert_eq!(refused.reason, ReasonCode::TopicFilterInvalid, "{filter}");
        }
        for topic in ["", "a/+", "#", "a#b"] {
            assert_eq!(check_topic_name(topic).expect_err(topic).reason, ReasonCode::TopicNameInvalid);
        }
    }

    #[test]
    fn a_shared_subscription_has_a_group_and_a_filter() {
        let shared = |group, filter| Ok(TopicFilter { group: Some(group), filter });
        assert_eq!(
            TopicFilter::parse("$share/consumer1/sport/tennis/+"),
            shared("consumer1", "sport/tennis/+")
        );
        assert_eq!(TopicFilter::parse("$share/g//a"), shared("g", "/a"));
        // Not a shared subscription, but an ordinary topic.
        let filter = "$share";
        assert_eq!(TopicFilter::parse(filter), Ok(TopicFilter { group: None, filter }));
    }
}
