//! The memory of each type of record, given a configuration. The packages that define the records provide the sizes.

use super::socket::Socket;
use leveret_config::Config;
use leveret_config::transports::ClientCertificates;
use leveret_core::limits::{
    CONTROL_CLIENTS_MAX, LimitsError, MANAGEMENT_CLIENTS_UPPER_BOUND, MemoryLine, MemoryTable, RecordSizes,
};
use leveret_core::{flight, mem};

/// Returns the sizes of all records and of fixed buffers, for the memory table.
pub fn record_sizes(config: &Config) -> RecordSizes {
    let limits = &config.limits;
    // Larger values are refused later, by `Limits::check`. Here they are reduced so that no sum overflows
    // before.
    let [frame, segment, commit] = [limits.frame_max, limits.segment_bytes, limits.commit_bytes_max]
        .map(|bytes| bytes.min(leveret_storage::SEGMENT_BYTES_MAX) as usize);
    let if_tls = |bytes| if config.serves_clients_with_tls() { bytes } else { 0 };
    let if_mqtt = |bytes| if config.serves_mqtt() { bytes } else { 0 };
    let if_websocket = |bytes| if config.mqtt_websocket { bytes } else { 0 };
    let serves_http = config.serves_management() || !config.metrics.is_empty();
    let if_http = |bytes| if serves_http { bytes } else { 0 };
    let if_serving = |bytes| if config.serves_tls() { bytes } else { 0 };
    let shows_certificate = config.tls.client_certificates != ClientCertificates::None;
    let chain = if shows_certificate { leveret_tls::CLIENT_CHAIN_BYTES_MAX } else { 0 };
    let reserved = leveret_server::tls_reserved_bytes(1);
    let client = leveret_management::operator_session::NETWORK_SESSION_BYTES + leveret_server::LOGIN_BYTES;
    RecordSizes {
        scratch_bytes: leveret_broker::buffer_bytes(limits)
            + leveret_connection::Pools::table_bytes(limits)
            // The longest answer of MQTT, whose codes are collected before they are stored as a packet.
            + if_mqtt(2 * frame)
            // The AMQP properties of one MQTT message.
            + if_mqtt(frame)
            + if config.serves_management() {
                leveret_management::web_page::TOKENS_BYTES + leveret_queues::MESSAGE_KEYS_BYTES
            } else {
                0
            }
            + if_http(leveret_management::compression::COMPRESSION_BYTES),
        store_bytes: leveret_storage::buffer_bytes(segment, commit, frame),
        pending_write_bytes: leveret_storage::PendingWrites::bytes(
            limits.messages_max as usize,
            limits.input_buffer_bytes as usize,
        ),
        tls_session_bytes: if_tls(leveret_tls::SESSION_BYTES + chain + reserved),
        tls_handshake_bytes: if_tls(leveret_tls::HANDSHAKE_BYTES),
        // Upstreams may use TLS even if no listener does.
        tls_record_bytes: leveret_server::tls_scratch_bytes(limits),
        tls_crl_bytes: if_serving(if config.tls.crls.is_empty() { 0 } else { leveret_tls::CRL_BYTES }),
        connection_bytes: leveret_server::peer_bytes::<Socket>()
            + if_mqtt(leveret_connection::MQTT_HEAP_BYTES)
            + if_websocket(leveret_server::WEBSOCKET_BYTES),
        channel_bytes: leveret_connection::Pools::channel_record_bytes() + leveret_broker::CHANNEL_BYTES,
        consumer_bytes: leveret_broker::CONSUMER_BYTES,
        queue_bytes: leveret_broker::QUEUE_BYTES,
        empty_queue_index_bytes: leveret_storage::EMPTY_QUEUE_BYTES,
        definition_bytes: leveret_storage::DEFINITION_BYTES,
        exchange_bytes: leveret_broker::EXCHANGE_BYTES,
        binding_bytes: leveret_broker::BINDING_BYTES,
        vhost_bytes: leveret_broker::VHOST_BYTES,
        user_bytes: leveret_broker::USER_BYTES,
        permission_bytes: leveret_broker::PERMISSION_BYTES,
        policy_bytes: leveret_broker::POLICY_BYTES,
        parameter_bytes: leveret_broker::PARAMETER_BYTES,
        session_bytes: leveret_broker::SESSION_BYTES,
        retained_bytes: leveret_broker::RETAINED_BYTES,
        login_bytes: leveret_server::LOGIN_BYTES,
        admission_bytes: leveret_server::admission_bytes::<Socket>(),
        unacknowledged_bytes: leveret_broker::DELIVERY_BYTES,
        control_bytes: leveret_management::operator_session::OPERATOR_SESSION_BYTES
            + leveret_server::peer_bytes::<Socket>() * (CONTROL_CLIENTS_MAX + MANAGEMENT_CLIENTS_UPPER_BOUND)
                / CONTROL_CLIENTS_MAX,
        samples_bytes: match config.serves_management() {
            false => 0,
            true => leveret_management::samples::Samples::TOTALS_BYTES,
        },
        json_bytes: leveret_json::READING_BYTES,
        flight_bytes: if config.flight_recorder.is_some() { flight::FILE_BYTES } else { 0 },
        management_bytes: match (serves_http, config.management_tls.len()) {
            (false, _) => 0,
            (true, 0) => client,
            (true, _) => {
                let reserved =
                    leveret_server::tls_reserved_bytes(limits.management_clients_max.max(1) as usize);
                client + leveret_tls::SESSION_BYTES.max(leveret_tls::HANDSHAKE_BYTES) + chain + reserved
            }
        },
    }
}

/// Derives the limits from `memory_limit`, and checks that the system provides that memory. Returns the memory table.
/// Without the check, a pool that cannot be allocated would end the process during its start.
///
/// # Errors
/// The limits do not fit or contradict each other, or the system does not provide the memory. The error names the key to
/// change.
pub fn derive_limits(config: &mut Config) -> Result<MemoryTable, LimitsError> {
    let mut address_bytes = ADDRESS_BYTES_MAX;
    loop {
        let table = config.derive_limits(record_sizes, address_bytes)?;
        if !mem::can_be_mapped(table.lines.iter().map(MemoryLine::bytes)) {
            let sum = table.bytes();
            return Err(LimitsError::MemoryRefused { sum, memory_limit: config.memory_limit_bytes });
        }
        let (limits, sizes) = (&config.limits, record_sizes(config));
        let reserved = limits.shared_address_bytes(&sizes);
        let each = limits.connection_bytes(&sizes) + sizes.tls_session_bytes;
        let of_connections = u64::from(limits.connection_places()) * each as u64;
        if mem::can_be_reserved(reserved.saturating_add(of_connections + ADDRESS_BYTES_SPARE)) {
            return Ok(table);
        }
        // The system limits the addresses of this process (`ulimit -v`). Smaller pools need fewer.
        address_bytes = address_bytes.min(reserved) / 2;
        if address_bytes < table.shared_bytes() {
            let sum = reserved;
            return Err(LimitsError::MemoryRefused { sum, memory_limit: config.memory_limit_bytes });
        }
    }
}

/// The most addresses that all pools together reserve: on a 32-bit machine, a process has two to three gigabytes of them.
pub(super) const ADDRESS_BYTES_MAX: u64 = if usize::BITS < 64 { 1 << 30 } else { u64::MAX };
/// Addresses for everything besides the pools and the connections: buffers, stacks and libraries.
const ADDRESS_BYTES_SPARE: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use leveret_config::Layer;
    use leveret_config::board::BOARDS;
    use leveret_core::limits::Limits;
    use leveret_core::mem::{Memory, MessageFlags, Messages, Share};

    /// Returns a configuration with this text, without the web page that a start by hand has.
    fn said(text: &str) -> Config {
        let text = format!("management = []\n{text}");
        Config::gather(None, Layer::parse("leveret.toml", &text).unwrap()).unwrap()
    }

    fn gathered(board: &str, memory_limit: Option<u64>, with_tls: bool) -> Config {
        let limit = memory_limit.map_or_else(String::new, |bytes| format!("memory_limit = {bytes}\n"));
        let listen = if with_tls { "listen_tls = [\"127.0.0.1\"]\n" } else { "" };
        said(&format!("board = \"{board}\"\n{limit}{listen}"))
    }

    /// Returns the smallest memory limit that a broker with this configuration starts with.
    fn least(mut config: Config) -> u64 {
        config.memory_limit_bytes = 1;
        match config.derive_limits(record_sizes, u64::MAX) {
            Err(LimitsError::LimitTooSmall { least, .. }) => least,
            other => panic!("{other:?}"),
        }
    }

    /// The keys whose values follow from the memory are comments in generic.toml, with their values.
    #[test]
    fn with_its_own_memory_limit_a_profile_is_what_it_says() {
        let generic = include_str!("../../boards/generic.toml");
        for (board, with_tls) in BOARDS.iter().flat_map(|board| [(board, false), (board, true)]) {
            let mut config = gathered(board.name, None, with_tls);
            config.derive_limits(record_sizes, u64::MAX).unwrap();
            let shown = config.to_toml();
            for line in shown.lines().filter(|line| line.contains("derived")) {
                let (key, _) = line.split_once(" = ").unwrap();
                let setting = line.split_once("  # ").map_or(line, |(setting, _)| setting);
                let wanted = if board.name == "generic" { setting.to_string() } else { format!("{key} = ") };
                assert!(generic.contains(&format!("\n# {wanted}")), "{}: {wanted}", board.name);
            }
            let keys = board.text.lines().filter(|line| line.contains(" = ")).count();
            assert!(board.name == "generic" || keys <= 12, "{}: {keys} keys", board.name);
        }
    }

    /// The largest message comes in while nothing else uses memory, also the largest one that the configuration may name.
    #[test]
    fn the_largest_message_of_every_configuration_fits_into_the_memory() {
        let configured = |text: &str| {
            let mut config = said(text);
            config
                .derive_limits(record_sizes, u64::MAX)
                .map(|table| (config.limits.clone(), table.shared_bytes()))
        };
        let mut texts: Vec<String> =
            BOARDS.iter().map(|board| format!("board = \"{}\"\n", board.name)).collect();
        let limits =
            [("router-64", "16MB"), ("router-64", "14MB"), ("pi-zero-w", "40MB"), ("generic", "1GB")];
        for megabytes in (16..40).chain([100, 300]) {
            texts.push(format!("board = \"generic\"\nmemory_limit = \"{megabytes}MB\"\n"));
        }
        for (board, memory_limit) in limits {
            let with = |kib: u64| {
                format!(
                    "board = \"{board}\"\nmemory_limit = \"{memory_limit}\"\n[limits]\nmessage_size_max = \"{kib}KiB\"\n"
                )
            };
            let mut kib = 64;
            while configured(&with(kib + kib / 32)).is_ok() {
                kib += kib / 32;
            }
            texts.push(with(kib));
        }
        for text in texts {
            let (limits, shared) = configured(&text).unwrap();
            let memory = Memory::with_bytes(shared);
            let _broker =
                leveret_broker::Broker::in_memory(&limits, &memory, Box::new(|bytes| bytes.fill(7))).unwrap();
            let mut messages = Messages::in_memory(limits.message_limits(), &memory);
            let properties = vec![0; limits.frame_max as usize / 2];
            let message = messages.begin("", b"queue", Share::Ordinary).unwrap();
            let size = limits.message_size_max;
            let reserved =
                messages.reserve_content(message, &properties, MessageFlags::NONE, size, Share::Ordinary);
            assert_eq!(reserved, Ok(()), "{size} bytes with {text}");
        }
    }

    /// The memory table has lines for TLS only with the listeners that need it.
    #[test]
    fn only_listeners_with_tls_take_memory_for_it() {
        let has_tls = |listen: &str| {
            let table = said(&format!("board = \"router-64\"\n{listen}"))
                .derive_limits(record_sizes, u64::MAX)
                .unwrap();
            table.lines.iter().any(|line| line.key == "tls_handshakes")
        };
        assert!(!has_tls("") && !has_tls("mqtt = [\"127.0.0.1\"]\n"));
        assert!(has_tls("listen_tls = [\"127.0.0.1\"]\n") && has_tls("mqtt_tls = [\"127.0.0.1\"]\n"));
        // `said` sets `management = []`.
        let management = "management_tls = [\"127.0.0.1:0\"]\n";
        assert!(!has_tls(management) && has_tls(&format!("{management}mqtt_websocket = true\n")));
    }

    /// What ordinary installations need, by the memory that one of each takes.
    #[test]
    fn the_pools_have_room_for_ordinary_installations() {
        let mut config = gathered("pi-zero-w", None, true);
        let table = config.derive_limits(record_sizes, u64::MAX).unwrap();
        let sizes = record_sizes(&config);
        let (shared, limits) = (table.shared_bytes(), &config.limits);
        assert!(shared > 44_000_000, "{shared}");
        assert!(limits.users_max > 10_000 && limits.queues_max > 20_000 && limits.bindings_max > 40_000);
        // 500 sensors over TLS, each with a user, a session and a subscription.
        let sensor = limits.connection_bytes(&sizes)
            + sizes.tls_session_bytes
            + sizes.user_bytes
            + sizes.permission_bytes
            + sizes.session_bytes
            + sizes.queue_bytes
            + sizes.binding_bytes;
        assert!(500 * sensor as u64 <= shared * 8 / 10, "{sensor} bytes each");
    }

    #[test]
    fn every_profile_has_a_least_memory_that_starts_and_says_it() {
        for (board, with_tls) in BOARDS.iter().flat_map(|board| [(board, false), (board, true)]) {
            let least = least(gathered(board.name, None, with_tls));
            assert!(least < 19_000_000, "{}: {least}", board.name);
            gathered(board.name, Some(least), with_tls).derive_limits(record_sizes, u64::MAX).unwrap();
            let error = gathered(board.name, Some(least - 1), with_tls)
                .derive_limits(record_sizes, u64::MAX)
                .unwrap_err();
            assert!(error.to_string().contains(&format!("write memory_limit = {least} or more")), "{error}");
        }
    }

    /// Clients with a fixed expectation of RabbitMQ's 2,047 channels, such as the tests of amqp091-go, are served by
    /// the default profile whatever else needs memory.
    #[test]
    fn the_default_profile_announces_as_many_channels_as_rabbitmq() {
        assert_eq!(Limits::default().channels_of_a_connection(), 2047);
        let mqtt = "mqtt = [\"127.0.0.1\"]\nmqtt_websocket = true\n";
        let tls = "listen_tls = [\"127.0.0.1\"]\nmqtt_tls = [\"127.0.0.1\"]\n\
                   management_tls = [\"127.0.0.1:0\"]\n";
        let bridge = "[[bridge]]\nname = \"plant\"\nupstream = \"amqps://edge@h\"\n\
                      [[bridge.forward]]\nqueue = \"a\"\nto_queue = \"a\"\n";
        for served in ["", mqtt, tls, &format!("{mqtt}{tls}"), &format!("{mqtt}{tls}{bridge}")] {
            let text = format!("board = \"generic\"\nmanagement = [\"127.0.0.1:0\"]\n{served}");
            let mut config = Config::gather(None, Layer::parse("leveret.toml", &text).unwrap()).unwrap();
            config.derive_limits(record_sizes, u64::MAX).unwrap();
            assert_eq!(config.limits.channels_of_a_connection(), 2047, "{text}");
        }
    }

    #[test]
    fn the_smallest_board_holds_a_bridge_over_tls() {
        let text = "[[bridge]]\nname = \"plant\"\nupstream = \"amqps://edge@h\"\n\
                    [[bridge.forward]]\nqueue = \"a\"\nto_queue = \"a\"\n\
                    [[bridge.fetch]]\nqueue = \"b\"\nto_queue = \"b\"\n";
        let mut config = said(&format!("board = \"router-64\"\n{text}"));
        let table = config.derive_limits(record_sizes, u64::MAX).unwrap();
        assert!(table.shared_bytes() > 3_500_000, "{}", table.shared_bytes());
    }

    #[test]
    fn what_was_set_by_hand_stays_and_is_named_when_it_is_too_much() {
        let text =
            "memory_limit = \"40MB\"\n[limits]\nsegment_bytes = \"64MiB\"\ncommit_bytes_max = \"16MiB\"\n";
        let error = said(text).derive_limits(record_sizes, u64::MAX).unwrap_err().to_string();
        assert!(error.contains("lower commit_bytes_max or raise memory_limit"), "{error}");
        let text = "memory_limit = \"40MB\"\n[limits]\nmessage_size_max = \"30MB\"\n";
        let error = said(text).derive_limits(record_sizes, u64::MAX).unwrap_err().to_string();
        assert!(error.starts_with("message_size_max must be smaller, or memory_limit larger"), "{error}");
    }

    /// The addresses of all pools together are bounded, and each pool keeps a useful part.
    #[test]
    fn pools_reserve_no_more_addresses_than_a_machine_with_32_bits_has() {
        for (memory_limit, address_bytes) in [("64MB", 1 << 30), ("1GB", 1 << 30), ("64MB", 256 << 20)] {
            let mut config = said(&format!("memory_limit = \"{memory_limit}\"\n"));
            config.derive_limits(record_sizes, address_bytes).unwrap();
            let reserved = config.limits.shared_address_bytes(&record_sizes(&config));
            assert!(reserved <= address_bytes, "{memory_limit}: {reserved} of {address_bytes}");
            assert!(config.limits.queues_max > 5_000 && config.limits.users_max > 2_000);
        }
    }

    #[test]
    fn sizes_that_depend_on_each_other_follow_the_one_that_was_set() {
        let limits = |text: &str| {
            let mut config = said(text);
            config.derive_limits(record_sizes, u64::MAX).unwrap_or_else(|error| panic!("{text}: {error}"));
            config.limits
        };
        assert!(limits("frame_max = \"512KiB\"").input_buffer_bytes >= 1 << 20);
        assert_eq!(limits("[limits]\nmessage_size_max = \"30MiB\"").message_size_max, 30 << 20);
        for (memory_limit, megabytes) in [("64MB", 8), ("128MB", 16), ("256MB", 32)] {
            let text = format!("memory_limit = \"{memory_limit}\"");
            assert_eq!(limits(&text).message_size_max, megabytes << 20, "{memory_limit}");
        }
        let large = limits("memory_limit = \"256MB\"");
        assert!(large.message_size_max >= 30 << 20, "{}", large.message_size_max);
        assert_eq!(limits("memory_limit = \"2GB\"").message_size_max, 128 << 20);
    }

    /// The first one is what most users begin with.
    #[test]
    fn every_configuration_in_the_readme_and_the_guide_starts() {
        let texts = [
            include_str!("../../README.md"),
            include_str!("../../systemd/guide/configuration.md"),
            include_str!("../../systemd/guide/install.md"),
        ];
        let blocks: Vec<&str> = texts.iter().flat_map(|text| text.split("```toml\n").skip(1)).collect();
        assert!(blocks.len() >= texts.len());
        for block in blocks {
            let (text, _) = block.split_once("```").unwrap();
            let file = std::env::temp_dir().join(format!("leveret-readme-{}.toml", std::process::id()));
            std::fs::write(&file, text).unwrap();
            let config = Config::gather(Some(&file), Layer::default());
            std::fs::remove_file(&file).unwrap();
            let verdict = config.unwrap().derive_limits(record_sizes, u64::MAX);
            assert!(verdict.is_ok(), "{text}: {}", verdict.unwrap_err());
        }
    }
}
