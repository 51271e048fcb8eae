//! Limits that follow from `memory_limit`, in the proportions of the profile.
//!
//! ```text
//! profile's limits ──scaled by s──→ configured limits applied ──→ memory table ──→ sum ≤ memory_limit
//!                         └──────────── the largest s for which that holds ◄───────────┘
//! ```
//!
//! # Invariants
//! - With the profile's own `memory_limit` the result is the profile's limits.
//! - More memory never makes a pool smaller.
//! - A configured limit stays as it is. It can make other pools smaller but never larger.
//! - The same configuration gives the same limits.

use super::settings::Config;
use super::settings::LimitsLayer;
use super::settings::{BRIDGES_MAX, ByHand, FRAME_MAX};
use super::units::Bytes;
use leveret_core::limits::{Limits, LimitsError, MemoryTable, RecordSizes};
use leveret_core::mem::PAGE_BYTES;

/// A function that returns the sizes of all records for a configuration, for [`Config::fit`].
pub type SizesOf = fn(&Config) -> RecordSizes;

/// A scale of 1: the profile's own limits. Scales are integers, so that every machine rounds alike.
const ONE: u64 = 1 << 16;
/// Maximum scale: some hundred gigabytes for the smallest profile.
const SCALE_MAX: u64 = ONE << 16;

/// Maximum of a derived `message_size_max`: RabbitMQ 3.10's default.
const MESSAGE_BYTES_MAX: u64 = 128 << 20;
/// Buffers are not halved below this size in bytes, and frames not below half of it.
const BUFFER_BYTES_MIN: u32 = 16 << 10;
/// Size in bytes that a TLS record needs of the input buffer and of the input backlog.
const TLS_BUFFER_BYTES: u32 = 40 << 10;
const TLS_STASH_BYTES: u64 = 128 << 10;
/// Minimum of a derived `message_size_max` in bytes.
const MESSAGE_BYTES_MIN: u64 = 64 << 10;
/// Bodies are stored in whole pages of memory.
const PAGE: u64 = PAGE_BYTES as u64;

/// A pool that scales with the memory.
struct Pool {
    /// Useful minimum, and maximum that the identifiers allow. A profile with a value outside widens the range.
    range: core::ops::RangeInclusive<u64>,
    /// The size is rounded to a multiple of this.
    step: u64,
    get: fn(&Limits) -> u64,
    set: fn(&mut Limits, u64),
}

macro_rules! pools {
    ($($key:ident: $min:expr, $max:expr, $step:expr;)*) => {
        [$(Pool {
            range: $min..=$max,
            step: $step,
            get: |limits| limits.$key.into(),
            set: |limits, value| limits.$key = value as _,
        }),*]
    };
}

const POOLS: [Pool; 24] = pools! {
    connections_max: 8, 1 << 14, 1;
    handshakes_max: 4, 1 << 12, 1;
    tls_connections_max: 4, 1 << 12, 1;
    tls_handshakes_max: 2, 64, 1;
    channels_max: 32, 1 << 19, 1;
    consumers_max: 32, 1 << 19, 1;
    queues_max: 32, 1 << 19, 1;
    exchanges_max: 16, 1 << 17, 1;
    bindings_max: 64, 1 << 21, 1;
    names_bytes_max: 16 << 10, 1 << 28, 1 << 10;
    vhosts_max: 2, 1 << 10, 1;
    users_max: 4, 1 << 12, 1;
    permissions_max: 8, 1 << 14, 1;
    policies_max: 4, 1 << 10, 1;
    parameters_max: 4, 1 << 10, 1;
    patterns_bytes_max: 16 << 10, 1 << 26, 1 << 10;
    messages_max: 512, 1 << 27, 1;
    body_bytes_max: 512 << 10, 1 << 40, PAGE;
    queue_entries_max: 1024, 1 << 28, 1;
    unacknowledged_max: 256, 1 << 24, 1;
    stash_bytes_max: 32 << 10, 1 << 28, 4 << 10;
    unsent_bytes_max: 32 << 10, 1 << 28, 4 << 10;
    index_bytes_max: 64 << 10, 1 << 28, 4 << 10;
    management_clients_max: 2, 8, 1;
};

impl Pool {
    fn scaled(&self, profile: &Limits, scale: u64) -> u64 {
        let own = (self.get)(profile);
        let range = (*self.range.start()).min(own)..=(*self.range.end()).max(own);
        scaled(own, scale, self.step).clamp(*range.start(), *range.end())
    }
}

/// Scales a size in whole steps. A size that is not a multiple of the step stays as it is at a scale of 1.
fn scaled(own: u64, scale: u64, step: u64) -> u64 {
    if scale == ONE {
        return own;
    }
    let wide = u128::from(own) * u128::from(scale) / u128::from(ONE);
    u64::try_from(wide).unwrap_or(u64::MAX) / step * step
}

/// Returns the limits for a scale of the profile, with the configured ones applied.
fn limits_at(profile: &Limits, by_hand: &ByHand, scale: u64, with_tls: bool) -> Limits {
    let mut limits = profile.clone();
    for pool in &POOLS {
        (pool.set)(&mut limits, pool.scaled(profile, scale));
    }
    derive_buffers(&mut limits, profile, by_hand, scale, with_tls);
    derive_message_size(&mut limits, profile, by_hand, scale);
    by_hand.lay_over(&mut limits);
    limits
}

/// Halves buffers and frames with the memory. They never grow, because larger ones are no faster.
fn derive_buffers(limits: &mut Limits, profile: &Limits, by_hand: &ByHand, scale: u64, with_tls: bool) {
    let halvings = (ONE / scale.max(1)).max(1).ilog2();
    let halved = |own: u32, least: u32| (own >> halvings).max(own.min(least));
    limits.frame_max = by_hand.frame_max.unwrap_or_else(|| halved(profile.frame_max, BUFFER_BYTES_MIN / 2));
    limits.output_buffer_bytes = halved(profile.output_buffer_bytes, BUFFER_BYTES_MIN);
    let tls_bytes = if with_tls { TLS_BUFFER_BYTES } else { 0 };
    limits.input_buffer_bytes = halved(profile.input_buffer_bytes, BUFFER_BYTES_MIN)
        .max(limits.frame_max.saturating_mul(2))
        .max(tls_bytes);
    let mut said = limits.clone();
    by_hand.lay_over(&mut said);
    let tls_stash = if with_tls { TLS_STASH_BYTES } else { 0 };
    let stash = u64::from(limits.stash_bytes_max).max(2 * u64::from(said.input_buffer_bytes)).max(tls_stash);
    limits.stash_bytes_max = u32::try_from(stash).unwrap_or(u32::MAX);
    let least = Limits::commit_bytes_min(limits.frame_max);
    limits.commit_bytes_max = (halved(profile.commit_bytes_max, 0) / 4096 * 4096).max(least);
    // Segments are not scaled: their size depends on the card, and an existing store keeps its own.
    limits.segment_bytes = said.segment_bytes.max(3 * limits.commit_bytes_max.min(1 << 28));
}

/// Derives the maximum size of messages and the pool of incomplete ones from the pool of bodies. The pool of
/// bodies grows if these are configured larger.
fn derive_message_size(limits: &mut Limits, profile: &Limits, by_hand: &ByHand, scale: u64) {
    let said = {
        let mut said = limits.clone();
        by_hand.lay_over(&mut said);
        said
    };
    // The frame size of this scale is not used: a message might become smaller where frames become larger.
    let frame = u64::from(by_hand.frame_max.unwrap_or(profile.frame_max));
    let message_by_hand = by_hand.has("message_size_max").then(|| u64::from(said.message_size_max));
    let least_assembly =
        message_by_hand.unwrap_or(MESSAGE_BYTES_MIN.min(profile.message_size_max.into())) + frame;
    let wanted = if by_hand.has("assembly_bytes_max") { said.assembly_bytes_max } else { least_assembly };
    // A sixteenth of the pool is reserved, and `wanted` must remain.
    let least_body = (wanted.div_ceil(15) * 16).next_multiple_of(PAGE);
    limits.body_bytes_max = limits.body_bytes_max.max(least_body);
    let body = if by_hand.has("body_bytes_max") { said.body_bytes_max } else { limits.body_bytes_max };
    let assembly = scaled(profile.assembly_bytes_max, scale, PAGE);
    limits.assembly_bytes_max = assembly.min(body / 16 * 15).max(least_assembly);
    let assembly = if by_hand.has("assembly_bytes_max") { wanted } else { limits.assembly_bytes_max };
    let own = u64::from(profile.message_size_max);
    let size = scaled(own, scale, PAGE).min(MESSAGE_BYTES_MAX.max(own));
    let least = MESSAGE_BYTES_MIN.min(own);
    limits.message_size_max = size.max(least).min(assembly.saturating_sub(frame)).max(PAGE) as u32;
}

impl Config {
    /// Makes the pools that were not configured as large as `memory_limit` allows. Returns the memory table. If not
    /// even the smallest pools fit, the configuration contains the smallest ones.
    ///
    /// # Errors
    /// The key to change.
    pub fn fit(&mut self, sizes_of: SizesOf) -> Result<MemoryTable, LimitsError> {
        let scale = self.largest_scale(sizes_of);
        self.limits = self.limits_at(&self.by_hand, scale);
        if let Some(disk_limit) = self.store.disk_limit_bytes {
            self.limits.check_disk(disk_limit)?;
        }
        if self.bridges.len() > self.limits.bridges_max as usize {
            let must = "at least as many as there are [[bridge]]; without it there is room for those";
            return Err(LimitsError::Contradiction { key: BRIDGES_MAX, must });
        }
        let verdict = self.limits.check(&sizes_of(self), self.memory_limit_bytes);
        verdict.map_err(|error| match error {
            LimitsError::SumTooLarge { sum, memory_limit, .. } => self.explain(sizes_of, sum, memory_limit),
            other => other,
        })
    }

    /// Returns the lines of `[limits]` and `frame_max`. Derived values are marked.
    pub(super) fn shown_limits(&self) -> (String, Vec<String>) {
        let lines = |limits: &Limits| {
            let frame_max = format!("{FRAME_MAX} = {}", Bytes(limits.frame_max));
            core::iter::once(frame_max).chain(LimitsLayer::shown(limits))
        };
        let mut marked = lines(&self.limits).zip(lines(&self.profile.limits)).map(|(line, own)| {
            let key = line.split(" = ").next().unwrap_or_default();
            let why =
                if key == BRIDGES_MAX { "one for each [[bridge]]" } else { "derived from memory_limit" };
            let is_derived = line != own && !self.by_hand.has(key);
            if is_derived { format!("{line}  # {why}") } else { line }
        });
        (marked.next().unwrap_or_default(), marked.collect())
    }

    /// Returns whether a limit was not configured, so that it follows from the profile and the memory.
    pub fn limit_follows(&self, key: &str) -> bool {
        let is_limit = key == FRAME_MAX || LimitsLayer::KEYS.contains(&key);
        is_limit && !self.by_hand.has(key)
    }

    fn limits_at(&self, by_hand: &ByHand, scale: u64) -> Limits {
        let with_tls = self.serves_tls() || self.has_tls_bridge();
        let mut limits = limits_at(&self.profile.limits, by_hand, scale, with_tls);
        // Limits that cost no memory are not compared.
        limits.heartbeat_s = self.limits.heartbeat_s;
        limits.channel_max = self.limits.channel_max;
        if !by_hand.has(BRIDGES_MAX) {
            limits.bridges_max = self.bridges.len() as u32;
        }
        limits
    }

    /// Returns the memory needed with these limits.
    fn sum_with(&self, limits: Limits, sizes_of: SizesOf) -> u64 {
        let config = Self { limits, ..self.clone() };
        config.limits.memory_table(&sizes_of(&config)).bytes()
    }

    /// Returns the largest scale that fits. Without TLS, the broker uses the same part of the memory as the profile
    /// does, because the rest is reserved for TLS. TLS or configured limits may need more than that, and then the
    /// scale is smaller.
    fn largest_scale(&self, sizes_of: SizesOf) -> u64 {
        let nothing = ByHand::default();
        let by_hand = nothing.clone();
        let (listen_tls, management_tls, bridges) = (Vec::new(), Vec::new(), Vec::new());
        let plain = Self { listen_tls, management_tls, bridges, by_hand, ..self.clone() };
        let (own, limit) = (self.profile.memory_limit_bytes.max(1), self.memory_limit_bytes);
        let used = plain.sum_with(plain.limits_at(&nothing, ONE), sizes_of).min(own);
        let share = u128::from(limit) * u128::from(used) / u128::from(own);
        let share = u64::try_from(share).unwrap_or(limit);
        // The profile's numbers are kept where a few more entries would cost nothing.
        let most = if limit > own { SCALE_MAX } else { ONE };
        let usual =
            largest(most, |scale| plain.sum_with(plain.limits_at(&nothing, scale), sizes_of) <= share);
        largest(usual, |scale| self.sum_with(self.limits_at(&self.by_hand, scale), sizes_of) <= limit)
    }

    /// Explains why even the smallest pools are too large: because of the most expensive configured limit, or of the
    /// memory.
    fn explain(&self, sizes_of: SizesOf, sum: u64, memory_limit: u64) -> LimitsError {
        let least_with = |by_hand: &ByHand| self.sum_with(self.limits_at(by_hand, 0), sizes_of);
        let least = least_with(&ByHand::default());
        if least > memory_limit {
            return LimitsError::LimitTooSmall { memory_limit, least };
        }
        let keys = LimitsLayer::KEYS.iter().copied().chain([FRAME_MAX]);
        let by_hand = keys.filter(|key| self.by_hand.has(key));
        let key = by_hand.min_by_key(|key| least_with(&self.by_hand.without(key)));
        LimitsError::SumTooLarge { sum, memory_limit, key: key.unwrap_or("memory_limit") }
    }
}

/// Returns the largest number up to `most` that fits, provided that all numbers below one that fits do; 0 if none
/// does.
fn largest(most: u64, fits: impl Fn(u64) -> bool) -> u64 {
    if fits(most) {
        return most;
    }
    let (mut low, mut high) = (0, most);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle) { low = middle } else { high = middle }
    }
    low
}

#[cfg(test)]
mod tests {
    use leveret_broker as broker;
    use leveret_storage as store;

    use super::super::Layer;
    use super::super::board::BOARDS;
    use super::super::transports::TlsAddress;
    use super::*;

    const GIGABYTE: u64 = 1_000_000_000;

    /// Approximate sizes of records on 64-bit machines. `daemon/sizes.rs` tests every profile with the real sizes.
    fn about(config: &Config) -> RecordSizes {
        let limits = &config.limits;
        let [frame, segment, commit] = [limits.frame_max, limits.segment_bytes, limits.commit_bytes_max]
            .map(|bytes| bytes.min(store::SEGMENT_BYTES_MAX) as usize);
        let if_tls = |bytes| if config.listen_tls.is_empty() { 0 } else { bytes };
        RecordSizes {
            tls_session_bytes: if_tls(52_036),
            tls_handshake_bytes: if_tls(38_917),
            tls_record_bytes: if_tls(65_536),
            connection_bytes: 1_439,
            bridge_bytes: 818_808,
            channel_bytes: 874,
            consumer_bytes: broker::CONSUMER_BYTES,
            queue_bytes: broker::QUEUE_BYTES,
            empty_queue_index_bytes: store::EMPTY_QUEUE_BYTES,
            definition_bytes: store::DEFINITION_BYTES,
            exchange_bytes: broker::EXCHANGE_BYTES,
            binding_bytes: broker::BINDING_BYTES,
            vhost_bytes: broker::VHOST_BYTES,
            user_bytes: broker::USER_BYTES,
            permission_bytes: broker::PERMISSION_BYTES,
            policy_bytes: broker::POLICY_BYTES,
            parameter_bytes: broker::PARAMETER_BYTES,
            login_bytes: 1_076,
            admission_bytes: 14_848,
            unacknowledged_bytes: broker::DELIVERY_BYTES,
            scratch_bytes: broker::buffer_bytes(frame, limits.messages_max as usize)
                + limits.output_buffer_bytes as usize,
            store_bytes: store::buffer_bytes(segment, commit, frame),
            control_bytes: 133_694,
            tls_link_bytes: 0,
            tls_crl_bytes: 0,
            management_bytes: 0,
            samples_bytes: 0,
            json_bytes: leveret_json::READING_BYTES,
            flight_bytes: 0,
        }
    }

    fn gathered(board: &str, memory_limit: Option<u64>, with_tls: bool) -> Config {
        let listen_tls = with_tls.then(|| vec!["127.0.0.1".parse::<TlsAddress>().unwrap()]);
        let memory_limit = memory_limit.map(Bytes);
        let flags = Layer { board: Some(board.into()), listen_tls, memory_limit, ..Layer::default() };
        Config::gather(None, flags).unwrap()
    }

    /// One client of the management API with an incomplete request must not block all others.
    #[test]
    fn two_clients_of_the_management_api_are_served_on_every_board() {
        for board in &BOARDS {
            let management = Some(vec!["127.0.0.1:15672".parse().unwrap()]);
            let flags = Layer { board: Some(board.name.into()), management, ..Layer::default() };
            let mut config = Config::gather(None, flags).unwrap();
            config.fit(about).unwrap();
            assert!(config.limits.management_clients_max >= 2, "{}", board.name);
        }
    }

    /// A fixed sequence of pseudo-random numbers.
    struct Chance(u64);

    impl Chance {
        fn below(&mut self, end: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % end
        }
    }

    /// Configures some pools with an eighth to three times of their size in the profile.
    fn set_some(config: &mut Config, chance: &mut Chance) {
        let mut text = String::from("[limits]\n");
        for line in LimitsLayer::shown(&config.profile.limits) {
            let (key, _) = line.split_once(" = ").unwrap();
            let Some(pool) = NAMED.iter().position(|name| *name == key) else { continue };
            if chance.below(6) == 0 {
                let own = (POOLS[pool].get)(&config.profile.limits);
                let value = (own * (1 + chance.below(24)) / 8).max(*POOLS[pool].range.start());
                text += &format!("{key} = {value}\n");
            }
        }
        let layer = Layer::parse("leveret.toml", &text).unwrap();
        config.by_hand.add(&layer);
    }

    /// The pools in an order in which they can be configured without contradiction.
    const NAMED: [&str; 19] = [
        "connections_max",
        "handshakes_max",
        "tls_connections_max",
        "tls_handshakes_max",
        "channels_max",
        "consumers_max",
        "queues_max",
        "exchanges_max",
        "bindings_max",
        "names_bytes_max",
        "vhosts_max",
        "users_max",
        "permissions_max",
        "policies_max",
        "parameters_max",
        "patterns_bytes_max",
        "messages_max",
        "body_bytes_max",
        "queue_entries_max",
    ];

    /// Returns the values that must not shrink with more memory.
    fn amounts(limits: &Limits) -> Vec<u64> {
        let buffers = [limits.frame_max, limits.input_buffer_bytes, limits.output_buffer_bytes];
        let sizes = [limits.message_size_max, limits.commit_bytes_max].into_iter().chain(buffers);
        let pools = POOLS.iter().map(|pool| (pool.get)(limits));
        pools.chain(sizes.map(u64::from)).chain([limits.assembly_bytes_max]).collect()
    }

    #[test]
    fn the_sum_is_within_every_limit_and_uses_it_and_more_memory_shrinks_nothing() {
        let mut chance = Chance(7);
        let (mut fitted, mut refused) = (0, 0);
        for turn in 0..2_500 {
            let board = BOARDS[turn % BOARDS.len()].name;
            let mut config = gathered(board, None, chance.below(2) == 0);
            let is_alone = chance.below(3) == 0;
            if !is_alone {
                set_some(&mut config, &mut chance);
            }
            // As many small numbers as large ones.
            let most = 10_u64.pow(7 + chance.below(3) as u32);
            config.memory_limit_bytes = (10_000_000 + chance.below(most)).min(8 * GIGABYTE);
            let limit = config.memory_limit_bytes;
            let table = match config.fit(about) {
                Ok(table) => table,
                Err(LimitsError::LimitTooSmall { .. }) => continue,
                Err(LimitsError::SumTooLarge { key, .. }) => {
                    assert!(config.by_hand.has(key), "{board}, {limit}: {key} was not set by hand");
                    refused += 1;
                    continue;
                }
                Err(other) => panic!("{board}, {limit}: {other}\n{}", config.shown()),
            };
            fitted += 1;
            let is_small = u64::from(config.limits.message_size_max) < MESSAGE_BYTES_MIN;
            assert!(!is_alone || !is_small, "{board}, {limit}: {}", config.limits.message_size_max);
            assert!(table.bytes() <= limit, "{board}, {limit}: {}", table.bytes());
            assert!(!is_alone || table.bytes() >= limit / 10 * 9, "{board}, {limit}: {}", table.bytes());
            for pool in &POOLS {
                let (least, own) = (*pool.range.start(), (pool.get)(&config.profile.limits));
                assert!((pool.get)(&config.limits) >= least.min(own), "{board}, {limit}: {}", config.shown());
            }
            let before = amounts(&config.limits);
            config.memory_limit_bytes += chance.below(limit / 4) + 1;
            config.fit(about).unwrap();
            let shrunk =
                amounts(&config.limits).iter().zip(&before).position(|(after, before)| after < before);
            assert_eq!(
                shrunk,
                None,
                "{board}, {limit} and {}: {}",
                config.memory_limit_bytes,
                config.shown()
            );
        }
        assert!(fitted > 1_500 && refused > 20, "{fitted} fitted, {refused} were refused");
    }
}
