//! What things cost in memory with a configuration, asked of the rooms that make them.

use super::resolver::LOOKUP_STACK_BYTES;
use super::socket::Socket;
use crate::config::Config;
use crate::config::transports::ClientCertificates;
use crate::limits::{CONTROL_CLIENTS_MAX, LimitsError, MANAGEMENT_CLIENTS_MOST, MemoryTable, RecordSizes};
use crate::{admin, broker, engine, flight, mem, session, store, tls};

/// What each thing that peers can make costs with this configuration, and what the rooms need once, for the
/// memory table.
pub fn record_sizes(config: &Config) -> RecordSizes {
    let limits = &config.limits;
    let output = limits.output_buffer_bytes as usize;
    // What is larger than any segment is refused by the rules of `Limits`; until then no sum may wrap.
    let [frame, segment, commit] = [limits.frame_max, limits.segment_bytes, limits.commit_bytes_max]
        .map(|bytes| bytes.min(store::SEGMENT_BYTES_MAX) as usize);
    let if_link = |bytes| if config.has_tls_bridge() { bytes } else { 0 };
    let if_tls = |bytes| if config.listen_tls.is_empty() { 0 } else { bytes };
    let shows_certificate = config.tls.client_certificates != ClientCertificates::None;
    let chain = if shows_certificate { tls::CLIENT_CHAIN_BYTES_MAX } else { 0 };
    let connections = limits.tls_connections_max.max(1) as usize;
    let window = config.bridges.iter().map(|bridge| bridge.window).max().unwrap_or(0).into();
    let reserved = engine::tls_reserved_bytes(connections);
    RecordSizes {
        scratch_bytes: broker::buffer_bytes(frame)
            + session::WritePlan::bytes(output)
            + if config.management.is_empty() { 0 } else { admin::tokens::TOKENS_BYTES },
        store_bytes: store::buffer_bytes(segment, commit, frame),
        tls_session_bytes: if_tls(tls::SESSION_BYTES + chain + reserved),
        tls_handshake_bytes: if_tls(tls::HANDSHAKE_BYTES),
        tls_link_bytes: if_link(tls::LINK_BYTES + engine::tls_reserved_bytes(1)),
        tls_record_bytes: if_tls(engine::tls_scratch_bytes(limits))
            .max(if_link(engine::tls_scratch_bytes(limits))),
        tls_crl_bytes: if_tls(if config.tls.crls.is_empty() { 0 } else { tls::CRL_BYTES }),
        connection_bytes: engine::peer_bytes::<Socket>() + broker::CONNECTION_BYTES,
        bridge_bytes: engine::bridge_bytes::<Socket>(limits.frame_max as usize, window)
            + 3 * broker::CONNECTION_BYTES
            + 3 * broker::CHANNEL_BYTES
            + LOOKUP_STACK_BYTES,
        channel_bytes: session::Pools::channel_record_bytes() + broker::CHANNEL_BYTES,
        consumer_bytes: broker::CONSUMER_BYTES,
        queue_bytes: broker::QUEUE_BYTES,
        exchange_bytes: broker::EXCHANGE_BYTES,
        binding_bytes: broker::BINDING_BYTES,
        vhost_bytes: broker::VHOST_BYTES,
        user_bytes: broker::USER_BYTES,
        permission_bytes: broker::PERMISSION_BYTES,
        policy_bytes: broker::POLICY_BYTES,
        login_bytes: engine::LOGIN_BYTES,
        newcomers_bytes: engine::newcomers_bytes::<Socket>(),
        unacknowledged_bytes: broker::DELIVERY_BYTES,
        control_bytes: admin::admin_session::ADMIN_SESSION_BYTES
            + engine::peer_bytes::<Socket>() * (CONTROL_CLIENTS_MAX + MANAGEMENT_CLIENTS_MOST)
                / CONTROL_CLIENTS_MAX,
        samples_bytes: match config.management.len() {
            0 => 0,
            _ => admin::samples::Samples::bytes(limits.queues_max as usize),
        },
        flight_bytes: if config.flight_recorder.is_some() { flight::FILE_BYTES } else { 0 },
        management_bytes: if config.management.is_empty() && config.metrics.is_empty() {
            0
        } else {
            admin::admin_session::ADMIN_SESSION_BYTES + engine::LOGIN_BYTES
        },
    }
}

/// Makes the limits follow from the memory, and finds out whether the system gives it: a pool that it does
/// not give would end the process in the middle of its start.
///
/// # Errors
/// The key to change.
pub fn fit(config: &mut Config) -> Result<MemoryTable, LimitsError> {
    let table = config.fit(record_sizes)?;
    if mem::would_be_given(table.lines.iter().map(crate::limits::MemoryLine::bytes)) {
        return Ok(table);
    }
    Err(LimitsError::NotGiven { sum: table.bytes(), memory_limit: config.memory_limit_bytes })
}
