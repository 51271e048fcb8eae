//! Bindings of headers exchanges by their pairs: from a header to the bindings that ask for it.
//!
//! ```text
//! exchange, name, value ─hash→ bucket ─ hook ─ hook ─ hook
//!                                        │ binding, where its pair begins in its arguments
//! binding ─ hook ─ hook                  `any`: one for each pair; `all`: one, for one of its pairs
//! ```
//!
//! So bindings that have nothing in common with a message are not looked at. Of a binding's pairs that are
//! all required, the hook goes to the one that the fewest others ask for.
//!
//! Always true: a binding has hooks from its being bound to its end; there is room for as many hooks as all
//! bindings together may have, for each counts as one of `bindings_max`.

use core::hash::{BuildHasher, Hash, Hasher};

use foldhash::quality::FixedState;

use leveret_amqp::field::{Table, Value};
use leveret_core::command::ExchangeId;
use leveret_core::mem::{Links, List, Slab};

use super::headers::{self, Rule};

/// One pair of a binding, in the bucket of its hash.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hook {
    pub(super) binding: u32,
    /// The hash of the binding's exchange and of the pair.
    pub(super) hash: u32,
    /// Where the pair begins in the binding's arguments.
    pub(super) at: u32,
    /// The binding's `x-match` is `any`: this pair is enough.
    pub(super) any: bool,
    /// The next hook of the same binding.
    pub(super) next: Option<u32>,
    links: Links,
}

/// The hooks of all bindings.
#[derive(Debug)]
pub(super) struct Pairs {
    hooks: Slab<Hook>,
    buckets: Box<[List]>,
    hasher: FixedState,
}

impl Pairs {
    /// Bytes of memory that one hook takes.
    pub(super) const BYTES_EACH: usize = Slab::<Hook>::record_bytes() + size_of::<List>();

    pub(super) fn with_capacity(bindings_max: usize, seed: u64) -> Self {
        Self {
            hooks: Slab::with_capacity(bindings_max),
            buckets: List::table(bindings_max.max(1)),
            hasher: FixedState::with_seed(seed),
        }
    }

    /// Makes a binding's hooks; gives the first, and how many there are.
    pub(super) fn insert(
        &mut self,
        exchange: ExchangeId,
        binding: usize,
        arguments: Table<'_>,
    ) -> (Option<u32>, u32) {
        let rule = Rule::of(arguments);
        if !rule.any {
            let hashed = |(at, name, wanted): (usize, &[u8], Value<'_>)| {
                (at as u32, self.hash(exchange, name, wanted))
            };
            let pairs = rule.pairs(arguments).map(hashed);
            let lonely = pairs.min_by_key(|&(_, hash)| self.buckets[self.bucket(hash)].len());
            let first = lonely.map(|pair| self.insert_hook(binding, pair, false, None));
            return (first, u32::from(first.is_some()));
        }
        let (mut first, mut count) = (None, 0);
        for (at, name, wanted) in rule.pairs(arguments) {
            let pair = (at as u32, self.hash(exchange, name, wanted));
            first = Some(self.insert_hook(binding, pair, true, first));
            count += 1;
        }
        (first, count)
    }

    fn insert_hook(&mut self, binding: usize, (at, hash): (u32, u32), any: bool, next: Option<u32>) -> u32 {
        let bucket = self.bucket(hash);
        let hook = Hook { binding: binding as u32, hash, at, any, next, links: Links::default() };
        let index = self.hooks.insert(hook).expect("each was counted as a binding");
        self.buckets[bucket].push_back(&mut self.hooks, index, |hook| &mut hook.links);
        index as u32
    }

    /// Removes all hooks of a binding; says how many there were.
    pub(super) fn remove(&mut self, first: Option<u32>) -> u32 {
        let (mut next, mut count) = (first, 0);
        while let Some(index) = next {
            let index = index as usize;
            let bucket = self.bucket(self.hooks[index].hash);
            self.buckets[bucket].remove(&mut self.hooks, index, |hook| &mut hook.links);
            next = self.hooks.remove(index).next;
            count += 1;
        }
        count
    }

    /// The hash that a pair is found by. A void value stands for the mere presence of the name.
    pub(super) fn hash(&self, exchange: ExchangeId, name: &[u8], wanted: Value<'_>) -> u32 {
        let mut state = self.hasher.build_hasher();
        (exchange, name).hash(&mut state);
        headers::feed(wanted, &mut state);
        state.finish() as u32
    }

    /// The first hook in the bucket of this hash.
    pub(super) fn first(&self, hash: u32) -> Option<usize> {
        self.buckets[self.bucket(hash)].front()
    }

    /// The hook behind another one in its bucket.
    pub(super) fn after(&self, index: usize) -> Option<usize> {
        List::after(&self.hooks, index, |hook| &hook.links)
    }

    pub(super) fn hook(&self, index: usize) -> Hook {
        self.hooks[index]
    }

    fn bucket(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.buckets.len() as u64) >> 32) as usize
    }

    /// Bytes that no hook uses and the system holds memory for, about.
    pub(super) const fn idle_bytes(&self) -> usize {
        self.hooks.idle_bytes()
    }

    /// Gives idle memory back to the system.
    pub(super) fn trim(&mut self) {
        self.hooks.trim();
    }
}
