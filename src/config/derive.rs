//! Derives all limits that are no keys from `memory_limit`, and the keys that nothing sets.
//!
//! ```text
//! memory_limit ──→ buffers, index, connections, largest message ──→ keys of profile and file applied
//!                                                                            │
//!              maxima of the pools ←── memory that they share ←── fixed part ┘
//! ```
//!
//! # Invariants
//! - More memory makes no derived limit smaller. Where larger buffers begin, the pools can have a little less to share. Below 24
//!   MB the largest message can be a little smaller there, too, because half of that memory is its limit.
//! - A profile's key that does not fit into less memory than the profile has is lowered. A key that the file or the flags set is
//!   never changed: if it does not fit, the start fails and names it.
//! - The same configuration gives the same limits.

use super::settings::{Config, ExplicitLimits, FRAME_MAX, LimitsLayer};
use super::units::Bytes;
use leveret_core::limits::{
    BRIDGES_MAX, CONNECT_BYTES_MAX, Limits, LimitsError, MANAGEMENT_CLIENTS_UPPER_BOUND, MemoryTable,
    RecordSizes, SHARED_BYTES_MIN,
};
use leveret_core::mem::PAGE_BYTES;

/// A function that returns the sizes in memory of all types of records, given a configuration.
/// [`Config::derive_limits`] uses it.
pub type SizesOf = fn(&Config) -> RecordSizes;

/// Maximum of a derived `message_size_max` in bytes: RabbitMQ 3.10's default.
const MESSAGE_BYTES_MAX: u64 = 128 << 20;
/// Minimum of a derived `message_size_max` in bytes.
const MESSAGE_BYTES_MIN: u64 = 64 << 10;
/// Minimum size of the input buffer with TLS in bytes, because of the size of TLS records.
const TLS_INPUT_BUFFER_BYTES_MIN: u64 = 40 << 10;
/// Minimum size of the input buffer with MQTT in bytes, so that the largest CONNECT fits.
const MQTT_INPUT_BUFFER_BYTES_MIN: u64 = CONNECT_BYTES_MAX as u64 / 2 * 3;
/// Maximum size of the input and output buffers in bytes. Larger ones are no faster.
const BUFFER_BYTES_MAX: u64 = 256 << 10;
/// Minimum of a derived `frame_max` in bytes.
const FRAME_BYTES_MIN: u32 = 8 << 10;
/// The unit of sizes in bytes.
const PAGE: u64 = PAGE_BYTES as u64;

/// The limits that `memory_limit` alone determines, with no profile and no file.
///
/// With these divisors, the profiles of the boards keep about the buffers with which they were measured.
struct FromMemory(u64);

impl FromMemory {
    /// Returns a divisor's part of the memory in whole pages, within a range.
    fn part(&self, divisor: u64, least: u64, most: u64) -> u32 {
        ((self.0 / divisor).clamp(least, most) / PAGE * PAGE) as u32
    }

    fn count(&self, bytes_each: u64, least: u64, most: u64) -> u32 {
        (self.0 / bytes_each).clamp(least, most) as u32
    }

    fn apply_to(&self, limits: &mut Limits) {
        limits.socket_budget_bytes = self.0;
        // The smallest kernel buffers of a connection take 16 KiB, and nearly half of the budget is for larger ones.
        limits.connections_max = self.count(30_000, 8, 1 << 14);
        limits.handshakes_max = self.count(512 << 10, 8, 512);
        limits.tls_handshakes_max = self.count(8_000_000, 2, 32);
        limits.management_clients_max = self.count(8_000_000, 2, MANAGEMENT_CLIENTS_UPPER_BOUND as u64);
        limits.bridges_max = BRIDGES_MAX;
        // 16 MiB with 128 MB.
        let message_bytes = self.0 / 1_000_000 * (128 << 10);
        limits.message_size_max =
            (message_bytes.clamp(MESSAGE_BYTES_MIN, MESSAGE_BYTES_MAX) / PAGE * PAGE) as u32;
        limits.unsent_bytes_max = self.part(256, 32 << 10, 1 << 28);
        limits.index_bytes_max = self.part(30, 64 << 10, 1 << 28);
        limits.commit_bytes_max = self.part(256, 0, 512 << 10);
        limits.mqtt_session_messages_max = self.count(6_400, 1_000, 10_000);
        limits.mqtt_session_bytes_max = self.part(128, 64 << 10, 1 << 26);
    }
}

/// The memory that the pools share, and the addresses that they may reserve.
#[derive(Clone, Copy)]
struct Shared {
    bytes: u64,
    address_bytes: u64,
}

impl Config {
    /// Sets all limits to the largest values that `memory_limit` allows, and those that the profile, the file or the flags
    /// name to these. All pools together reserve at most `address_bytes` bytes of addresses. Returns the memory table.
    ///
    /// # Errors
    /// The limits contradict each other, or the fixed part leaves too little memory to the pools. The error names the key to
    /// change.
    pub fn derive_limits(
        &mut self,
        sizes_of: SizesOf,
        address_bytes: u64,
    ) -> Result<MemoryTable, LimitsError> {
        let memory = self.memory_limit_bytes;
        self.limits = self.limits_with(memory, &self.explicit_limits, sizes_of, address_bytes);
        if let Some(disk_limit) = self.store.disk_limit_bytes {
            self.limits.check_disk(disk_limit)?;
        }
        let sizes = sizes_of(self);
        let shared_bytes = self.limits.memory_table(&sizes, memory).shared_bytes();
        let is_too_long = self.limits.assembly_bytes_max > assembly_bytes_max(shared_bytes);
        if is_too_long && shared_bytes >= SHARED_BYTES_MIN {
            let must = "smaller, or memory_limit larger: all messages that are incomplete at a time have half of the memory \
                        that the pools share (`leveret check` shows it)";
            return Err(LimitsError::Contradiction { key: "message_size_max", must });
        }
        let checked = self.limits.check(&sizes, memory);
        checked.map_err(|error| match error {
            LimitsError::SumTooLarge { sum, memory_limit, .. } => {
                self.explain_excess(sizes_of, sum, memory_limit)
            }
            other => other,
        })
    }

    /// Returns the line of `frame_max` and the lines of `[limits]`, as in a configuration file. A comment marks values that
    /// neither the profile nor the file sets.
    pub(super) fn limits_to_toml(&self) -> (String, Vec<String>) {
        let lines = |limits: &Limits| {
            let frame_max = format!("{FRAME_MAX} = {}", Bytes(limits.frame_max));
            core::iter::once(frame_max).chain(LimitsLayer::to_toml(limits))
        };
        let mut as_set = self.limits.clone();
        self.profile.limits.apply_to(&mut as_set);
        let mut commented = lines(&self.limits).zip(lines(&as_set)).map(|(line, of_profile)| {
            let key = line.split(" = ").next().unwrap_or_default();
            let is_set = self.explicit_limits.has(key) || self.profile.limits.has(key) && line == of_profile;
            match is_set || !DERIVED.contains(&key) {
                true => line,
                false => format!("{line}  # derived from memory_limit"),
            }
        });
        (commented.next().unwrap_or_default(), commented.collect())
    }

    /// Returns whether `key` is a limit that neither the file nor the flags set, so that it is derived.
    pub fn is_limit_derived(&self, key: &str) -> bool {
        let is_limit = key == FRAME_MAX || LimitsLayer::KEYS.contains(&key);
        is_limit && !self.explicit_limits.has(key)
    }

    /// Returns the least `memory_limit` with which this configuration starts, in bytes; `None` if none is enough.
    pub fn least_memory(&self, sizes_of: SizesOf) -> Option<u64> {
        self.least_memory_with(&self.explicit_limits, sizes_of)
    }

    fn least_memory_with(&self, explicit_limits: &ExplicitLimits, sizes_of: SizesOf) -> Option<u64> {
        let fits = |memory: u64| {
            let limits = self.limits_with(memory, explicit_limits, sizes_of, u64::MAX);
            let assembly = limits.assembly_bytes_max;
            let left = memory.saturating_sub(self.fixed_bytes_with(limits, sizes_of));
            left >= SHARED_BYTES_MIN && assembly <= assembly_bytes_max(left)
        };
        let (mut low, mut high) = (0, 1 << 40);
        if !fits(high) {
            return None;
        }
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            *(if fits(middle) { &mut high } else { &mut low }) = middle;
        }
        Some(high)
    }

    /// Returns the limits with this `memory_limit`.
    ///
    /// Some tables of the fixed part grow with the maxima of the pools. So the limits are computed twice: first as if nothing
    /// but the pools needed memory.
    fn limits_with(
        &self,
        memory: u64,
        explicit_limits: &ExplicitLimits,
        sizes_of: SizesOf,
        address_bytes: u64,
    ) -> Limits {
        let of = |shared: &Shared| self.limits_at(memory, explicit_limits, &sizes_of(self), shared);
        let mut shared = Shared { bytes: memory, address_bytes };
        let fixed = self.fixed_bytes_with(of(&shared), sizes_of);
        shared.bytes = memory.saturating_sub(fixed).max(SHARED_BYTES_MIN);
        of(&shared)
    }

    fn limits_at(
        &self,
        memory: u64,
        explicit_limits: &ExplicitLimits,
        sizes: &RecordSizes,
        shared: &Shared,
    ) -> Limits {
        let mut limits = Limits {
            heartbeat_s: self.limits.heartbeat_s,
            channel_max: self.limits.channel_max,
            ..Limits::default()
        };
        let derived = FromMemory(memory);
        derived.apply_to(&mut limits);
        self.apply_profile_to(&mut limits, memory);
        explicit_limits.apply_to(&mut limits);
        limits.set_shared(sizes, shared.bytes, shared.address_bytes);
        limits.mqtt_session_bytes_max =
            limits.mqtt_session_bytes_max.min(u32::try_from(limits.body_bytes_max).unwrap_or(u32::MAX));
        self.derive_buffers(&mut limits, explicit_limits, &derived);
        derive_message_size(&mut limits, explicit_limits, shared.bytes);
        limits
    }

    /// Applies the profile's keys. With less memory than the profile has, sizes are lowered in proportion.
    fn apply_profile_to(&self, limits: &mut Limits, memory: u64) {
        self.profile.limits.apply_to(limits);
        let own = self.profile.memory_limit_bytes.max(1);
        if memory >= own {
            return;
        }
        let less = |value: u32| (u128::from(value) * u128::from(memory) / u128::from(own)) as u32;
        let halvings = (own / memory.max(1)).max(1).ilog2();
        let page = PAGE as u32;
        limits.frame_max = (limits.frame_max >> halvings).max(limits.frame_max.min(FRAME_BYTES_MIN));
        // Values that the profile does not set follow from the memory already.
        if self.profile.limits.has("commit_bytes_max") {
            limits.commit_bytes_max = less(limits.commit_bytes_max) / page * page;
        }
        if self.profile.limits.has("message_size_max") {
            let least = limits.message_size_max.min(MESSAGE_BYTES_MIN as u32);
            limits.message_size_max = (less(limits.message_size_max) / page * page).max(least);
        }
        // Segments are not lowered: the best size depends on the flash card.
    }

    /// Sets the buffers, whose sizes also depend on the largest frame.
    fn derive_buffers(&self, limits: &mut Limits, explicit_limits: &ExplicitLimits, derived: &FromMemory) {
        let frame = u64::from(limits.frame_max);
        // A frame must fit into half of the input buffer.
        let least = match (self.serves_mqtt(), self.serves_tls()) {
            (true, _) => MQTT_INPUT_BUFFER_BYTES_MIN,
            (false, true) => TLS_INPUT_BUFFER_BYTES_MIN,
            (false, false) => 16 << 10,
        };
        let least = least.max(2 * frame);
        limits.input_buffer_bytes = derived.part(1_000, least, BUFFER_BYTES_MAX.max(least));
        // Larger than one read, so that data received in a turn is sent in the same turn and need not be written first.
        limits.output_buffer_bytes = derived.part(1_000, 64 << 10, BUFFER_BYTES_MAX);
        let backlog_min = (2 * u64::from(limits.input_buffer_bytes)).max(128 << 10);
        limits.input_backlog_bytes_max = derived.part(192, backlog_min, (1 << 28).max(backlog_min));
        if !explicit_limits.has("commit_bytes_max") {
            let least = Limits::commit_bytes_min(limits.frame_max);
            limits.commit_bytes_max = limits.commit_bytes_max.max(least);
        }
        if !explicit_limits.has("segment_bytes") {
            limits.segment_bytes = limits.segment_bytes.max(3 * limits.commit_bytes_max.min(1 << 28));
        }
    }

    /// Returns the bytes of everything that has a fixed size with these limits.
    fn fixed_bytes_with(&self, limits: Limits, sizes_of: SizesOf) -> u64 {
        let config = Self { limits, ..self.clone() };
        config.limits.memory_table(&sizes_of(&config), 0).fixed_bytes()
    }

    /// Returns the error for a fixed part that leaves too little of `memory_limit`. If that is because of limits that the file
    /// or the flags set, it names the one that needs most memory.
    fn explain_excess(&self, sizes_of: SizesOf, sum: u64, memory_limit: u64) -> LimitsError {
        let least_with = |explicit_limits: &ExplicitLimits| {
            self.least_memory_with(explicit_limits, sizes_of).unwrap_or(u64::MAX)
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

/// The keys whose values follow from `memory_limit` if nothing sets them.
const DERIVED: [&str; 4] =
    ["connections_max", "message_size_max", "mqtt_session_messages_max", "commit_bytes_max"];

/// Derives `assembly_bytes_max`, the memory for messages that are not complete yet, and lowers a `message_size_max` that does
/// not fit into it, unless it is explicit.
fn derive_message_size(limits: &mut Limits, explicit_limits: &ExplicitLimits, shared_bytes: u64) {
    let frame = u64::from(limits.frame_max);
    let most = assembly_bytes_max(shared_bytes);
    if !explicit_limits.has("message_size_max") {
        let fits = most.saturating_sub(frame) / PAGE * PAGE;
        let least = limits.message_size_max.min(MESSAGE_BYTES_MIN as u32);
        limits.message_size_max =
            limits.message_size_max.min(u32::try_from(fits).unwrap_or(u32::MAX)).max(least);
    }
    let size = u64::from(limits.message_size_max);
    limits.assembly_bytes_max = (size + size / 4).min(most).max(size + frame);
    // A sixteenth of the memory for bodies is reserved for other purposes.
    let bodies_min = (limits.assembly_bytes_max.div_ceil(15) * 16).next_multiple_of(PAGE);
    limits.body_bytes_max = limits.body_bytes_max.max(bodies_min);
}

/// Returns the most bytes that all incomplete messages may have, if the pools share this memory. The rest is for the floors of
/// other classes, the virtual host of a new store, and the reserves. With more, the largest message could wait for ever
/// although no other message is there.
const fn assembly_bytes_max(shared_bytes: u64) -> u64 {
    (shared_bytes / 2).saturating_sub(256 << 10)
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

    /// A fixed sequence of pseudo-random numbers.
    struct Chance(u64);

    impl Chance {
        fn below(&mut self, end: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % end
        }
    }

    /// Configures some keys with an eighth to three times of their default.
    fn set_some(config: &mut Config, chance: &mut Chance) {
        let mut text = String::from("[limits]\n");
        let kept =
            [("connections_max", 1_000), ("message_size_max", 4 << 20), ("commit_bytes_max", 512 << 10)];
        for (key, own) in kept {
            if chance.below(3) == 0 {
                let value = own * (1 + chance.below(24)) / 8 / 4096 * 4096;
                text += &format!("{key} = {}\n", value.max(4096));
            }
        }
        let layer = Layer::parse("leveret.toml", &text).unwrap();
        config.explicit_limits.add(&layer);
    }

    /// Returns the values that must not shrink with more than `memory` bytes.
    fn amounts(limits: &Limits, memory: u64) -> Vec<u64> {
        let buffers = [limits.frame_max, limits.input_buffer_bytes, limits.output_buffer_bytes];
        let sizes = [limits.commit_bytes_max, limits.index_bytes_max, limits.unsent_bytes_max];
        let counts = [limits.connections_max, limits.handshakes_max, limits.tls_handshakes_max];
        let sessions = [limits.mqtt_session_messages_max];
        let all = buffers.into_iter().chain(sizes).chain(counts).chain(sessions).map(u64::from);
        let largest = [limits.message_size_max.into(), limits.assembly_bytes_max];
        all.chain(largest.into_iter().filter(|_| memory > 24_000_000)).collect()
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
                Err(LimitsError::Contradiction { .. } | LimitsError::Disk { .. }) if !is_alone => {
                    refused += 1;
                    continue;
                }
                Err(other) => panic!("{board}, {limit}: {other}\n{}", config.to_toml()),
            };
            derived += 1;
            assert_eq!(table.bytes(), limit, "{board}");
            let shared = table.shared_bytes();
            assert!(shared >= SHARED_BYTES_MIN, "{board}, {limit}: {shared}");
            assert!(!is_alone || shared >= limit / 5 || limit < 24_000_000, "{board}, {limit}: {shared}");
            let before = amounts(&config.limits, limit);
            config.memory_limit_bytes += chance.below(limit / 4) + 1;
            // A larger frame may not fit into an explicit commit.
            if let Err(error) = config.derive_limits(about, u64::MAX) {
                assert!(!is_alone, "{board}: {error}");
                continue;
            }
            let shrunk =
                amounts(&config.limits, limit).iter().zip(&before).position(|(after, before)| after < before);
            assert_eq!(
                shrunk,
                None,
                "{board}, {limit} and {}: {}",
                config.memory_limit_bytes,
                config.to_toml()
            );
        }
        assert!(derived > 1_300 && refused > 20, "{derived} were derived, {refused} were refused");
    }
}
