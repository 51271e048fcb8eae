//! Policies of the simulated queues, which an operator changes and deletes.
//!
//! ```text
//! w1   how long messages wait there: a user policy, an operator policy, or both
//! j2   where its dead letters go; the policy is changed, but never deleted
//! w2   how long messages wait there and where they go then: both or neither
//! ```
//!
//! A policy must hold after each start as before it. Otherwise messages wait forever or are dropped.
//!
//! # Invariants
//! - An answered change is there at every later start.
//! - An unanswered change may be there completely or not at all.
//! - No policy expires messages of a queue without a dead-letter target.

use std::collections::BTreeMap;

use leveret_core::definition::{Definition, Policy, PolicyKind};

use super::deaths::{is_waiting, other_of};
use super::ledger::Key;
use super::plan::VHOSTS;
use super::topology;
use leveret_test_support::random::Random;

/// Message TTLs that policies set, in milliseconds.
const WAITS_MS: [i64; 4] = [30, 120, 400, 1_500];

/// Key of a policy: virtual host, name (that of its queue), and whether it is an operator policy.
type Place = (String, String, bool);

/// The content of each policy.
pub type Said = BTreeMap<Place, Text>;

/// The content of one policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Text {
    pattern: String,
    apply_to: String,
    priority: i32,
    wait_ms: Option<i64>,
    /// Exchange and routing key of dead letters.
    letters: Option<(String, String)>,
}

/// Returns the policy in a definition from the disk.
pub fn found(definition: &Definition<'_>) -> Option<(Place, Text)> {
    let Definition::Policy(Policy { vhost, kind, name, pattern, apply_to, priority, definition }) =
        definition
    else {
        return None;
    };
    let said = leveret_amqp::Table::trusted(definition);
    let text = |name| said.get(name).and_then(|value| value.as_str()).map(str::to_string);
    let text = Text {
        pattern: pattern.to_string(),
        apply_to: apply_to.name().to_string(),
        priority: *priority,
        wait_ms: said.get("message-ttl").and_then(|value| value.as_integer()),
        letters: text("dead-letter-exchange").zip(text("dead-letter-routing-key")),
    };
    Some(((vhost.to_string(), name.to_string(), *kind == PolicyKind::Operator), text))
}

/// A change that an operator requests: the new content, or `None` to delete the policy.
pub struct Wanted(Place, Option<Text>);

/// The knowledge of an operator about the policies, over all lives.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    known: Said,
    /// The state after the unanswered request, if it happens.
    asked: Option<Said>,
}

impl Policies {
    /// Resets the state after a start that found these policies. Returns what is wrong.
    pub fn begin(&mut self, found: &Said, may_change: bool) -> Option<String> {
        let asked = self.asked.take();
        let is_possible = may_change || *found == self.known || asked.as_ref() == Some(found);
        let complaint = format!("policies are {found:?}, and were {:?} or {asked:?}", self.known);
        self.known = found.clone();
        (!is_possible).then_some(complaint)
    }

    /// Returns a random change of a policy for this pair of queues, if the pair has policies.
    pub fn think_of(&self, chain: usize, random: &mut Random) -> Option<Wanted> {
        let vhost = random.one_of(&VHOSTS);
        let (queue, is_operator_policy) = match chain {
            2 => ("w1", random.once_in(3)),
            3 => (random.one_of(&["j2", "w2"]), false),
            _ => return None,
        };
        let place = (vhost.to_string(), queue.to_string(), is_operator_policy);
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

    /// Notes a request, and returns its method, path and body.
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

    /// Notes the answer to the current request.
    pub fn settle(&mut self, has_happened: bool) {
        if let Some(asked) = self.asked.take().filter(|_| has_happened) {
            self.known = asked;
        }
    }

    /// Returns whether a queue certainly has a policy, whether or not the current request happens.
    pub fn is_sure(&self, (vhost, queue): &Key) -> bool {
        let has = |said: &Said| said.keys().any(|(of, name, _)| of == vhost && name == queue);
        has(&self.known) && self.asked.as_ref().is_none_or(has)
    }

    /// Returns whether messages of a queue certainly expire.
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
