//! What a run's messages mostly are, where that is not left to chance: so that a search comes to what it is
//! for.
//!
//! Always true: only publishing and consuming go by it; whatever else clients do, they do in every run.

use super::life::Life;
use super::model::{Binding, End};
use super::random::Random;

/// What most messages are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Cargo {
    /// Anything.
    #[default]
    Any,
    /// Ones for several queues, some of which are left alone.
    Copies,
    /// Bodies in pieces; what is beside them goes soon, and some of them stay.
    Pieces,
}

/// A message: its exchange, its routing key and the bytes of its body.
pub(super) type Freight = (&'static str, &'static str, u32);

impl Cargo {
    /// The next message; `None` for any.
    pub(super) fn load(self, random: &mut Random, large_bytes: u32) -> Option<Freight> {
        if self == Self::Any || random.one_in(6) {
            return None;
        }
        let small = 8 + random.below(60) as u32;
        match self {
            Self::Any => None,
            Self::Copies => Some(("amq.fanout", "k0", small + random.below(600) as u32)),
            Self::Pieces => Some(match random.below(12) {
                0 => ("", "d3", 66_000 + random.below(large_bytes.into()) as u32),
                1..4 => ("", "d0", 66_000 + random.below(large_bytes.into()) as u32),
                _ => ("", "d0", small * 20),
            }),
        }
    }

    /// The queue to consume from; `None` for any.
    fn unload(self, random: &mut Random) -> Option<&'static str> {
        if self == Self::Any || random.one_in(12) {
            return None;
        }
        match self {
            Self::Any => None,
            Self::Copies => Some(random.one_of(&["d0", "d1", "l0", "r0"])),
            Self::Pieces => Some("d0"),
        }
    }
}

impl Life<'_> {
    /// What the run's cargo needs, declared by the first client step by step; whether there was a step.
    pub(super) fn rig(&mut self, step: usize, number: u16) -> bool {
        let Some(name) = ["d0", "d1", "d2", "d3"].get(step / 2) else { return false };
        match self.w.plan.hazards.cargo {
            Cargo::Any => return false,
            Cargo::Copies if step % 2 == 1 => {
                let to = self.w.model.queue_names.get(*name).map(|number| End::Queue(*number));
                let source = self.w.model.exchange_names.get("amq.fanout").copied();
                let binding = source.zip(to).map(|(source, to)| Binding { source, to, key: String::new() });
                self.bind_to(0, number, ("amq.fanout".into(), Err((*name).into()), String::new(), binding));
            }
            _ => self.declare_queue(0, number, name),
        }
        true
    }

    /// A queue to consume from that is there, as a rule.
    pub(super) fn some_full_queue(&mut self, at: usize) -> String {
        let cargo = self.w.plan.hazards.cargo;
        match cargo.unload(&mut self.w.random) {
            Some(name) if self.w.model.queue_names.contains_key(name) => name.into(),
            _ => self.some_real_queue(at),
        }
    }
}
