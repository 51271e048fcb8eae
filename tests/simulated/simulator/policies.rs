//! Policies: what an operator says of queues beside their arguments, changes, and takes away again.
//!
//! ```text
//! w1      how long messages wait there, a user's policy or the operator's, or both
//! j2      where its dead letters go; it is changed, and never taken away once it is there
//! w2      how long messages wait there, and where they go then: all of it or nothing
//! ```
//!
//! Why it exists: what a policy says has to hold after each start as before it, or messages wait for ever, or
//! go nowhere.
//!
//! Always true: a change that was answered is there at every start from then on; one that was not may be there
//! wholly or not at all; no policy lets a queue give up messages without saying where they go.

use std::collections::BTreeMap;

use leveret_core::journal::Definition;

use super::deaths::{is_waiting, other_of};
use super::ledger::Key;
use super::plan::VHOSTS;
use super::topology;
use super::world::sim_disk::Random;

/// For how long messages wait where a policy says so, in milliseconds.
const WAITS_MS: [i64; 4] = [30, 120, 400, 1_500];

/// A policy: its virtual host, its name, which is that of its queue, and whether it is the operator's.
type Place = (String, String, bool);

/// What each policy says.
pub type Said = BTreeMap<Place, Text>;

/// What one policy says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Text {
    pattern: String,
    apply_to: String,
    priority: i32,
    wait_ms: Option<i64>,
    /// The exchange and the routing key of its dead letters.
    letters: Option<(String, String)>,
}

/// A policy that is on the disk.
pub fn found(definition: &Definition<'_>) -> Option<(Place, Text)> {
    let Definition::Policy { vhost, name, is_operators, pattern, apply_to, priority, definition } =
        definition
    else {
        return None;
    };
    let said = leveret_amqp::Table::trusted(definition);
    let text = |name| said.get(name).and_then(|value| value.as_str()).map(str::to_string);
    let text = Text {
        pattern: pattern.to_string(),
        apply_to: apply_to.to_string(),
        priority: *priority,
        wait_ms: said.get("message-ttl").and_then(|value| value.as_integer()),
        letters: text("dead-letter-exchange").zip(text("dead-letter-routing-key")),
    };
    Some(((vhost.to_string(), name.to_string(), *is_operators), text))
}

/// A change that an operator thinks of: what the policy is to say, `None` if it is to go.
pub struct Wanted(Place, Option<Text>);

/// What an operator knows of them, over all lives.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    known: Said,
    /// What they are when the request without an answer has happened.
    asked: Option<Said>,
}

impl Policies {
    /// After a start that has found these; what is wrong.
    pub fn begin(&mut self, found: &Said, may_change: bool) -> Option<String> {
        let asked = self.asked.take();
        let is_possible = may_change || *found == self.known || asked.as_ref() == Some(found);
        let complaint = format!("policies are {found:?}, and were {:?} or {asked:?}", self.known);
        self.known = found.clone();
        (!is_possible).then_some(complaint)
    }

    /// A change of the policies of this pair of queues that follows from chance, if it has any.
    pub fn think_of(&self, chain: usize, random: &mut Random) -> Option<Wanted> {
        let vhost = random.one_of(&VHOSTS);
        let (queue, is_operators) = match chain {
            2 => ("w1", random.once_in(3)),
            3 => (random.one_of(&["j2", "w2"]), false),
            _ => return None,
        };
        let place = (vhost.to_string(), queue.to_string(), is_operators);
        if is_waiting(queue) && self.known.contains_key(&place) && random.once_in(3) {
            return Some(Wanted(place, None));
        }
        let other = other_of(queue).filter(|_| topology::is_policed(queue));
        let text = Text {
            pattern: format!("^{queue}$"),
            apply_to: random.one_of(&["queues", "all"]).to_string(),
            priority: random.below(4) as i32,
            wait_ms: is_waiting(queue).then(|| random.one_of(&WAITS_MS)),
            letters: other.map(|other| (String::new(), other.to_string())),
        };
        Some(Wanted(place, Some(text)))
    }

    /// It is asked for: the verb, the path and the body of the request.
    pub fn ask(&mut self, Wanted(place, text): Wanted) -> (&'static str, String, String) {
        let kind = if place.2 { "operator-policies" } else { "policies" };
        let path = format!("{kind}/{}/{}", place.0.replace('/', "%2F"), place.1);
        let mut said = self.known.clone();
        let body = text.as_ref().map(Text::body);
        match text {
            Some(text) => drop(said.insert(place, text)),
            None => drop(said.remove(&place)),
        }
        self.asked = Some(said);
        (if body.is_some() { "PUT" } else { "DELETE" }, path, body.unwrap_or_default())
    }

    /// The request under way has its answer.
    pub fn settle(&mut self, has_happened: bool) {
        if let Some(asked) = self.asked.take().filter(|_| has_happened) {
            self.known = asked;
        }
    }

    /// Whether a queue surely has a policy, now and after whatever was asked for.
    pub fn is_sure(&self, (vhost, queue): &Key) -> bool {
        let has = |said: &Said| said.keys().any(|(of, name, _)| of == vhost && name == queue);
        has(&self.known) && self.asked.as_ref().is_none_or(has)
    }

    /// Whether messages surely leave a queue by themselves after a while.
    pub fn has_end_of_waiting(&self, key: &Key) -> bool {
        is_waiting(&key.1) && (key.1 == "w0" || self.is_sure(key))
    }
}

impl Text {
    fn body(&self) -> String {
        let mut keys: Vec<String> = self.wait_ms.iter().map(|ms| format!("\"message-ttl\":{ms}")).collect();
        if let Some((exchange, key)) = &self.letters {
            keys.push(format!("\"dead-letter-exchange\":\"{exchange}\""));
            keys.push(format!("\"dead-letter-routing-key\":\"{key}\""));
        }
        let (pattern, apply_to, priority) = (&self.pattern, &self.apply_to, self.priority);
        let definition = keys.join(",");
        format!(
            "{{\"pattern\":\"{pattern}\",\"apply-to\":\"{apply_to}\",\"priority\":{priority},\
             \"definition\":{{{definition}}}}}"
        )
    }
}
