//! Derives limits from `memory_limit`. Limits that reserve memory are multiplied by a scale, in the proportions of the profile.
//! All pools share the memory that is left beside these limits and the program. The limit of such a pool is what that
//! memory could hold. The pool reaches its limit only if no other class had a floor, so usually the memory stops it before.
//!
//! ```text
//! profile's limits ──scaled by s──→ explicit limits applied ──→ memory table ──→ fixed part ≤ memory_limit − a fifth
//!                         └────── the largest s with which the fixed part is small enough ◄─┘
//! memory_limit − fixed part ──→ limits of the pools that share memory
//! ```
//!
//! # Invariants
//! - With the profile's own `memory_limit` the scaled limits are the profile's.
//! - More memory never makes a scaled limit smaller. Where larger buffers begin, the pools can have a little less to share.
//! - An explicit limit (set by the file or the flags) of a pool that shares memory is lowered to what fits. Another one is not
//!   changed. It can make other limits smaller but not larger.
//! - The same configuration gives the same limits.

use super::settings::Config;
use super::settings::LimitsLayer;
use super::settings::{BRIDGES_MAX, ExplicitLimits, FRAME_MAX, MQTT_SESSION_BYTES_MAX};
use super::units::Bytes;
use leveret_core::limits::{Limits, LimitsError, MemoryTable, RecordSizes, SHARED_BYTES_MIN};
use leveret_core::mem::PAGE_BYTES;

/// A function that returns the sizes in memory of all types of records, given a configuration.
/// [`Config::derive_limits`] uses it.
pub type SizesOf = fn(&Config) -> RecordSizes;

/// The scale 1, with which limits are the profile's own. Scales are integers (fixed-point numbers), so that all machines
/// round in the same way.
const ONE: u64 = 1 << 16;
/// Maximum scale: 65,536. With it, even the smallest profile reaches hundreds of gigabytes.
const SCALE_MAX: u64 = ONE << 16;

/// Maximum of a derived `message_size_max` in bytes: RabbitMQ 3.10's default.
const MESSAGE_BYTES_MAX: u64 = 128 << 20;
/// Minimum size of a derived buffer in bytes. The minimum of a derived `frame_max` is half of it.
const BUFFER_BYTES_MIN: u32 = 16 << 10;
/// Minimum size of the input buffer with TLS in bytes, because of the size of TLS records.
const TLS_INPUT_BUFFER_BYTES_MIN: u32 = 40 << 10;
/// Minimum of a derived `input_backlog_bytes_max` with TLS in bytes, because of the size of TLS records.
const TLS_INPUT_BACKLOG_BYTES_MIN: u64 = 128 << 10;
/// Minimum of a derived `message_size_max` in bytes.
const MESSAGE_BYTES_MIN: u64 = 64 << 10;
/// The unit in which memory for bodies is reserved, in bytes.
const PAGE: u64 = PAGE_BYTES as u64;
/// The scale leaves at least this part of `memory_limit` to the pools that share memory.
const SHARED_DIVISOR: u64 = 5;

/// A limit that is scaled with `memory_limit`.
struct Pool {
    /// The minimum that is useful, and the maximum that identifiers allow. If the profile's own value is outside, the
    /// range is extended to it.
    range: core::ops::RangeInclusive<u64>,
    /// A scaled value is rounded down to a multiple of this.
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

const POOLS: [Pool; 8] = pools! {
    connections_max: 8, 1 << 14, 1;
    handshakes_max: 4, 1 << 12, 1;
    tls_handshakes_max: 2, 64, 1;
    unsent_bytes_max: 32 << 10, 1 << 28, 4 << 10;
    index_bytes_max: 64 << 10, 1 << 28, 4 << 10;
    input_backlog_bytes_max: 32 << 10, 1 << 28, 4 << 10;
    management_clients_max: 2, 8, 1;
    // It reserves no memory, but is a part of `body_bytes_max`.
    mqtt_session_bytes_max: 64 << 10, 1 << 26, 4 << 10;
};

impl Pool {
    /// Returns the value of this pool at `scale`.
    fn scaled(&self, profile: &Limits, scale: u64) -> u64 {
        let own = (self.get)(profile);
        let range = (*self.range.start()).min(own)..=(*self.range.end()).max(own);
        scaled(own, scale, self.step).clamp(*range.start(), *range.end())
    }
}

/// Multiplies the profile's own value by a scale, and rounds down to whole steps. With the scale 1 the value is not
/// rounded.
fn scaled(own: u64, scale: u64, step: u64) -> u64 {
    if scale == ONE {
        return own;
    }
    let wide = u128::from(own) * u128::from(scale) / u128::from(ONE);
    u64::try_from(wide).unwrap_or(u64::MAX) / step * step
}

/// The inputs for the limits of pools that share memory.
#[derive(Clone, Copy)]
struct Shared {
    sizes: RecordSizes,
    /// The memory that they share.
    bytes: u64,
    /// The addresses that they may reserve.
    address_bytes: u64,
}

/// Returns the profile's limits at `scale`, overridden by the explicit ones.
fn limits_at(
    profile: &Limits,
    explicit_limits: &ExplicitLimits,
    scale: u64,
    with_tls: bool,
    shared: &Shared,
) -> Limits {
    let mut limits = profile.clone();
    for pool in &POOLS {
        (pool.set)(&mut limits, pool.scaled(profile, scale));
    }
    limits.set_shared(&shared.sizes, shared.bytes, shared.address_bytes);
    let most = limits.clone();
    derive_buffers(&mut limits, profile, explicit_limits, scale, with_tls);
    derive_message_size(&mut limits, profile, explicit_limits, scale);
    explicit_limits.apply_to(&mut limits);
    limits.lower_shared(&most);
    if !explicit_limits.has("tls_connections_max") {
        limits.tls_connections_max = limits.connections_max;
    }
    if !explicit_limits.has(MQTT_SESSION_BYTES_MAX) {
        let bodies = u32::try_from(limits.body_bytes_max).unwrap_or(u32::MAX);
        limits.mqtt_session_bytes_max = limits.mqtt_session_bytes_max.min(bodies);
    }
    limits
}

/// Halves buffers and the maximum frame size each time that the memory is halved. They never become larger than in the
/// profile, because larger ones are no faster.
fn derive_buffers(
    limits: &mut Limits,
    profile: &Limits,
    explicit_limits: &ExplicitLimits,
    scale: u64,
    with_tls: bool,
) {
    let halvings = (ONE / scale.max(1)).max(1).ilog2();
    let halved = |own: u32, minimum: u32| (own >> halvings).max(own.min(minimum));
    limits.frame_max =
        explicit_limits.frame_max.unwrap_or_else(|| halved(profile.frame_max, BUFFER_BYTES_MIN / 2));
    limits.output_buffer_bytes = halved(profile.output_buffer_bytes, BUFFER_BYTES_MIN);
    let tls_bytes = if with_tls { TLS_INPUT_BUFFER_BYTES_MIN } else { 0 };
    limits.input_buffer_bytes = halved(profile.input_buffer_bytes, BUFFER_BYTES_MIN)
        .max(limits.frame_max.saturating_mul(2))
        .max(tls_bytes);
    let mut with_explicit = limits.clone();
    explicit_limits.apply_to(&mut with_explicit);
    let tls_backlog_bytes = if with_tls { TLS_INPUT_BACKLOG_BYTES_MIN } else { 0 };
    let backlog_bytes = u64::from(limits.input_backlog_bytes_max)
        .max(2 * u64::from(with_explicit.input_buffer_bytes))
        .max(tls_backlog_bytes);
    limits.input_backlog_bytes_max = u32::try_from(backlog_bytes).unwrap_or(u32::MAX);
    let minimum = Limits::commit_bytes_min(limits.frame_max);
    limits.commit_bytes_max = (halved(profile.commit_bytes_max, 0) / 4096 * 4096).max(minimum);
    // Segments are not scaled: the best size depends on the flash card, and an existing store keeps its segment size.
    limits.segment_bytes = with_explicit.segment_bytes.max(3 * limits.commit_bytes_max.min(1 << 28));
}

/// Derives `message_size_max` and `assembly_bytes_max`, the memory for messages that are not complete yet, from
/// `body_bytes_max`. If explicit values of the two need a larger `body_bytes_max`, it is raised.
fn derive_message_size(limits: &mut Limits, profile: &Limits, explicit_limits: &ExplicitLimits, scale: u64) {
    let with_explicit = {
        let mut with_explicit = limits.clone();
        explicit_limits.apply_to(&mut with_explicit);
        with_explicit
    };
    // Uses the profile's frame size and not the scaled one: that can grow with the memory, and more memory must not make
    // `message_size_max` smaller.
    let frame = u64::from(explicit_limits.frame_max.unwrap_or(profile.frame_max));
    let explicit_message =
        explicit_limits.has("message_size_max").then(|| u64::from(with_explicit.message_size_max));
    let assembly_min =
        explicit_message.unwrap_or(MESSAGE_BYTES_MIN.min(profile.message_size_max.into())) + frame;
    let required_assembly = if explicit_limits.has("assembly_bytes_max") {
        with_explicit.assembly_bytes_max
    } else {
        assembly_min
    };
    // One sixteenth of `body_bytes_max` is reserved for other purposes, so 15/16 must be enough.
    let body_min = (required_assembly.div_ceil(15) * 16).next_multiple_of(PAGE);
    let most = limits.body_bytes_max;
    limits.body_bytes_max = most.max(body_min);
    let body = if explicit_limits.has("body_bytes_max") {
        with_explicit.body_bytes_max.min(most)
    } else {
        limits.body_bytes_max
    };
    let assembly = scaled(profile.assembly_bytes_max, scale, PAGE);
    limits.assembly_bytes_max = assembly.min(body / 16 * 15).max(assembly_min);
    let assembly =
        if explicit_limits.has("assembly_bytes_max") { required_assembly } else { limits.assembly_bytes_max };
    let own = u64::from(profile.message_size_max);
    let size = scaled(own, scale, PAGE).min(MESSAGE_BYTES_MAX.max(own));
    let minimum = MESSAGE_BYTES_MIN.min(own);
    limits.message_size_max = size.max(minimum).min(assembly.saturating_sub(frame)).max(PAGE) as u32;
}

impl Config {
    /// Sets all limits that are not explicit to the largest values that `memory_limit` allows. All pools together reserve at
    /// most `address_bytes` bytes of addresses. Returns the memory table.
    ///
    /// # Errors
    /// The limits contradict each other, or `memory_limit` leaves too little memory to the pools even with the smallest other
    /// limits. The error names the key to change. The configuration then has the smallest limits.
    pub fn derive_limits(
        &mut self,
        sizes_of: SizesOf,
        address_bytes: u64,
    ) -> Result<MemoryTable, LimitsError> {
        let scale = self.largest_scale(sizes_of, address_bytes);
        let (limits, shared) = self.limits_and_shared(scale, sizes_of, address_bytes);
        self.limits = limits;
        if let Some(disk_limit) = self.store.disk_limit_bytes {
            self.limits.check_disk(disk_limit)?;
        }
        if self.bridges.len() > self.limits.bridges_max as usize {
            let must = "at least the number of [[bridge]] sections; without the key, it is that number";
            return Err(LimitsError::Contradiction { key: BRIDGES_MAX, must });
        }
        let sizes = sizes_of(self);
        let shared_bytes = self.limits.memory_table(&sizes, self.memory_limit_bytes).shared_bytes();
        let is_too_long = self.limits.assembly_bytes_max > assembly_bytes_max(shared_bytes);
        if is_too_long && shared_bytes >= SHARED_BYTES_MIN {
            let must = "larger for such long messages: all that are incomplete at a time (assembly_bytes_max) have \
                        half of the memory that the pools share (`leveret check` shows it)";
            return Err(LimitsError::Contradiction { key: "memory_limit", must });
        }
        let checked = self.limits.check(&sizes, self.memory_limit_bytes);
        checked.map_err(|error| match error {
            LimitsError::SumTooLarge { sum, memory_limit, .. } => {
                self.explain_excess(sizes_of, sum, memory_limit, &shared)
            }
            other => other,
        })
    }

    /// Returns the line of `frame_max` and the lines of `[limits]`, as in a configuration file. A comment marks derived
    /// values.
    pub(super) fn limits_to_toml(&self) -> (String, Vec<String>) {
        let lines = |limits: &Limits| {
            let frame_max = format!("{FRAME_MAX} = {}", Bytes(limits.frame_max));
            core::iter::once(frame_max).chain(LimitsLayer::to_toml(limits))
        };
        let mut as_set = self.limits.clone();
        self.explicit_limits.apply_to(&mut as_set);
        let others = lines(&self.profile.limits).zip(lines(&as_set));
        let mut commented = lines(&self.limits).zip(others).map(|(line, (own, set))| {
            let key = line.split(" = ").next().unwrap_or_default();
            let why = match self.explicit_limits.has(key) {
                true if line != set => "lowered, because memory_limit leaves no memory for more",
                false if line != own && key == BRIDGES_MAX => "one for each [[bridge]]",
                false if line != own => "derived from memory_limit",
                true | false => return line,
            };
            format!("{line}  # {why}")
        });
        (commented.next().unwrap_or_default(), commented.collect())
    }

    /// Returns whether `key` is a limit that neither the file nor the flags set, so that it is derived.
    pub fn is_limit_derived(&self, key: &str) -> bool {
        let is_limit = key == FRAME_MAX || LimitsLayer::KEYS.contains(&key);
        is_limit && !self.explicit_limits.has(key)
    }

    /// Returns the limits of this configuration at `scale`, overridden by `explicit_limits`.
    fn limits_at(&self, explicit_limits: &ExplicitLimits, scale: u64, shared: &Shared) -> Limits {
        let with_tls = self.serves_tls() || self.may_need_upstream_tls();
        let mut limits = limits_at(&self.profile.limits, explicit_limits, scale, with_tls, shared);
        // These limits reserve no memory, so they are not scaled.
        limits.heartbeat_s = self.limits.heartbeat_s;
        limits.channel_max = self.limits.channel_max;
        if !explicit_limits.has(BRIDGES_MAX) {
            limits.bridges_max = self.bridges.len() as u32;
        }
        limits
    }

    /// Returns the limits at `scale`, and the memory that pools share with them.
    ///
    /// Some tables of the fixed part grow with the limits of pools that share memory. So the limits are computed twice: first
    /// as if nothing but the pools needed memory.
    fn limits_and_shared(&self, scale: u64, sizes_of: SizesOf, address_bytes: u64) -> (Limits, Shared) {
        let mut shared = Shared { sizes: sizes_of(self), bytes: self.memory_limit_bytes, address_bytes };
        let limits = self.limits_at(&self.explicit_limits, scale, &shared);
        let fixed = self.fixed_bytes_with(limits, sizes_of);
        shared.bytes = self.memory_limit_bytes.saturating_sub(fixed).max(SHARED_BYTES_MIN);
        (self.limits_at(&self.explicit_limits, scale, &shared), shared)
    }

    /// Returns the bytes of everything that has a fixed size with these limits.
    fn fixed_bytes_with(&self, limits: Limits, sizes_of: SizesOf) -> u64 {
        let config = Self { limits, ..self.clone() };
        config.limits.memory_table(&sizes_of(&config), 0).fixed_bytes()
    }

    /// Returns the largest scale, up to the ratio of `memory_limit` to that of the profile, with which the pools that share
    /// memory have enough, also for the largest message.
    fn largest_scale(&self, sizes_of: SizesOf, address_bytes: u64) -> u64 {
        let (own, limit) = (self.profile.memory_limit_bytes.max(1), self.memory_limit_bytes);
        let ratio = u128::from(limit) * u128::from(ONE) / u128::from(own);
        let scale_max = u64::try_from(ratio).unwrap_or(SCALE_MAX).min(SCALE_MAX);
        let left = limit.saturating_sub((limit / SHARED_DIVISOR).max(SHARED_BYTES_MIN));
        largest(scale_max, |scale| {
            let (limits, _) = self.limits_and_shared(scale, sizes_of, address_bytes);
            let assembly = limits.assembly_bytes_max;
            let fixed = self.fixed_bytes_with(limits, sizes_of);
            fixed <= left && assembly <= assembly_bytes_max(limit - fixed)
        })
    }

    /// Returns the error for limits of which even the smallest ones leave too little of `memory_limit`. If that is because of
    /// explicit limits, it names the one that needs most memory.
    fn explain_excess(&self, sizes_of: SizesOf, sum: u64, memory_limit: u64, shared: &Shared) -> LimitsError {
        let least_with = |explicit_limits: &ExplicitLimits| {
            let limits = self.limits_at(explicit_limits, 0, shared);
            self.fixed_bytes_with(limits, sizes_of).saturating_add(SHARED_BYTES_MIN)
        };
        let least = least_with(&ExplicitLimits::default());
        if least > memory_limit {
            return LimitsError::LimitTooSmall { memory_limit, least };
        }
        let keys = LimitsLayer::KEYS.iter().copied().chain([FRAME_MAX]);
        let explicit_limits = keys.filter(|key| self.explicit_limits.has(key));
        let key = explicit_limits.min_by_key(|key| least_with(&self.explicit_limits.without(key)));
        LimitsError::SumTooLarge { sum, memory_limit, key: key.unwrap_or("memory_limit") }
    }
}

/// Returns the most bytes that all incomplete messages may have, if the pools share this memory. The rest is for the floors of
/// other classes, the virtual host of a new store, and the reserves. With more, the largest message could wait for ever
/// although no other message is there.
const fn assembly_bytes_max(shared_bytes: u64) -> u64 {
    (shared_bytes / 2).saturating_sub(256 << 10)
}

/// Returns the largest number up to `end` for which `fits` returns `true`; 0 if there is none. `fits` must return `true`
/// for all smaller numbers, too.
fn largest(end: u64, fits: impl Fn(u64) -> bool) -> u64 {
    if fits(end) {
        return end;
    }
    let (mut low, mut high) = (0, end);
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
        let if_tls = |bytes| if config.serves_clients_with_tls() { bytes } else { 0 };
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
            session_bytes: broker::SESSION_BYTES,
            retained_bytes: broker::RETAINED_BYTES,
            login_bytes: 1_076,
            admission_bytes: 14_848,
            unacknowledged_bytes: broker::DELIVERY_BYTES,
            scratch_bytes: broker::buffer_bytes(limits) + limits.output_buffer_bytes as usize,
            store_bytes: store::buffer_bytes(segment, commit, frame),
            pending_write_bytes: store::PendingWrites::bytes(
                limits.messages_max as usize,
                limits.input_buffer_bytes as usize,
            ),
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
            config.derive_limits(about, u64::MAX).unwrap();
            assert!(config.limits.management_clients_max >= 2, "{}", board.name);
        }
    }

    #[test]
    fn a_session_of_mqtt_holds_at_most_the_bodies_that_there_is_memory_for() {
        let derived = |text: &str| {
            let mut config = Config::gather(None, Layer::parse("leveret.toml", text).unwrap()).unwrap();
            config.derive_limits(about, u64::MAX).map(|_| config.limits.mqtt_session_bytes_max)
        };
        let small = "[limits]\nbody_bytes_max = \"768KiB\"\n";
        assert_eq!(derived(small), Ok(768 << 10));
        let explicit = derived(&format!("{small}mqtt_session_bytes_max = \"1MiB\"\n"));
        assert_eq!(explicit.unwrap_err().key(), "mqtt_session_bytes_max");
        assert_eq!(derived("[limits]\nmqtt_session_bytes_max = \"2MiB\"\n"), Ok(2 << 20));
        let less = derived("memory_limit = \"40MB\"").unwrap();
        assert!((128 << 10..512 << 10).contains(&less), "{less}");
        let more = derived("memory_limit = \"512MB\"").unwrap();
        assert!((4 << 20..8 << 20).contains(&more), "{more}");
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
        for line in LimitsLayer::to_toml(&config.profile.limits) {
            let (key, _) = line.split_once(" = ").unwrap();
            let Some(pool) = NAMED.iter().position(|name| *name == key) else { continue };
            if chance.below(6) == 0 {
                let own = (POOLS[pool].get)(&config.profile.limits);
                let value = (own * (1 + chance.below(24)) / 8).max(*POOLS[pool].range.start());
                text += &format!("{key} = {value}\n");
            }
        }
        let layer = Layer::parse("leveret.toml", &text).unwrap();
        config.explicit_limits.add(&layer);
    }

    /// The first of [`POOLS`], which can be configured without contradiction.
    const NAMED: [&str; 5] =
        ["connections_max", "handshakes_max", "tls_handshakes_max", "unsent_bytes_max", "index_bytes_max"];

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
        let (mut derived, mut refused) = (0, 0);
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
            let table = match config.derive_limits(about, u64::MAX) {
                Ok(table) => table,
                Err(LimitsError::LimitTooSmall { .. }) => continue,
                Err(LimitsError::SumTooLarge { key, .. }) => {
                    assert!(
                        config.explicit_limits.has(key),
                        "{board}, {limit}: {key} is not an explicit limit"
                    );
                    refused += 1;
                    continue;
                }
                Err(other) => panic!("{board}, {limit}: {other}\n{}", config.to_toml()),
            };
            derived += 1;
            let is_small = u64::from(config.limits.message_size_max) < MESSAGE_BYTES_MIN;
            assert!(!is_alone || !is_small, "{board}, {limit}: {}", config.limits.message_size_max);
            assert_eq!(table.bytes(), limit, "{board}");
            let shared = table.shared_bytes();
            assert!(shared >= SHARED_BYTES_MIN, "{board}, {limit}: {shared}");
            assert!(
                !is_alone || shared >= limit / SHARED_DIVISOR || limit < 24_000_000,
                "{board}, {limit}: {shared}"
            );
            for pool in &POOLS {
                let (least, own) = (*pool.range.start(), (pool.get)(&config.profile.limits));
                assert!(
                    (pool.get)(&config.limits) >= least.min(own),
                    "{board}, {limit}: {}",
                    config.to_toml()
                );
            }
            let before = amounts(&config.limits);
            config.memory_limit_bytes += chance.below(limit / 4) + 1;
            config.derive_limits(about, u64::MAX).unwrap();
            let shrunk =
                amounts(&config.limits).iter().zip(&before).position(|(after, before)| after < before);
            assert_eq!(
                shrunk,
                None,
                "{board}, {limit} and {}: {}",
                config.memory_limit_bytes,
                config.to_toml()
            );
        }
        assert!(derived > 1_500 && refused > 20, "{derived} were derived, {refused} were refused");
    }
}
