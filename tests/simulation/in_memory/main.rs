//! The engine with simulated clients in one process, under a clock that jumps. This tests cases that need
//! exact control of sockets and time.
//!
//! | file      | subject |
//! |-----------|---------|
//! | `alarms`  | each cause that blocks publishers, and its alarm |
//! | `time`    | heartbeats, half-open peers, idleness |
//! | `bytes`   | fragments, frames out of place, a peer lost at every byte |
//! | `random_runs` | random runs of several connections |
//! | `memory`  | full pools: blocked and refused clients, and the absence of deadlocks |
//! | `bridge`  | a bridge whose upstream is an in-memory line |
//! | `bridge_crossed` | crossing frames and partial writes of a bridge |
//! | `bridge_day` | the daily byte budget of a bridge |
//! | `bridge_fetch` | fetching without local capacity, without progress, or from a hostile upstream |
//! | `bridge_line` | a bridge on a slow line: urgent and large messages |
//! | `bridge_rest` | a bridge that connects on demand |
//! | `bridge_strict` | random runs of a forwarding bridge with an upstream that checks every frame |
//! | `bridge_strict_fetch` | random runs of a fetching bridge, whose upstream keeps account of its deliveries |
//! | `bridge_strict_link` | the connection of that upstream |
//! | `bridge_wait` | waiting rules after refused messages |
//! | `admission` | logins while other connections are silent, slow or send wrong passwords |
//! | `lost_clients` | clients that are gone, or wait, and keep others out; what happens to their messages |
//! | `fleet` | computed reconnections of ten thousand devices |
//! | `management` | clients of the management API |
//! | `management_changes` | changes by the management API |
//! | `management_metrics` | readers of metrics without a login |
//! | `management_move` | moving and copying messages, and the routes that the management API shows |
//! | `management_fields` | fields of the management API's answers |
//! | `management_rights` | permissions of the management API, and attacks on it |
//! | `management_uploads` | requests whose body is longer than a request buffer |
//! | `own_publishes` | what the broker itself publishes, and queues that nobody reads |
//! | `operators` | clients of the control socket |
//! | `mqtt`    | MQTT clients: packets, subscriptions, slow and faulty clients |
//! | `mqtt_limits` | MQTT: messages, lists of filters and packets that are large or wrong |
//! | `mqtt_retained` | MQTT: retained messages that are too large for one definition of the log |
//! | `mqtt_slow` | MQTT clients that take their messages more slowly than they arrive, or are away |
//! | `mqtt_statements` | statements of the MQTT specifications that no other test shows |
//! | `mqtt_system_topics` | `$SYS` topics |
//! | `mqtt_websocket` | MQTT over WebSocket |
//! | `shovels` | shovels defined by parameters |
//! | `mass`    | single commands that cause much work |
//!
//! No test here waits in real time. A simulation that is stuck comes to rest without the expected result, and an
//! assertion fails.

mod admission;
mod alarms;
mod bridge;
mod bridge_crossed;
mod bridge_day;
mod bridge_fetch;
mod bridge_line;
mod bridge_rest;
mod bridge_strict;
mod bridge_strict_fetch;
mod bridge_strict_link;
mod bridge_wait;
mod bytes;
mod fleet;
mod lost_clients;
mod management;
mod management_changes;
mod management_fields;
mod management_metrics;
mod management_move;
mod management_rights;
mod management_status;
mod management_uploads;
mod mass;
mod memory;
mod mqtt;
mod mqtt_limits;
mod mqtt_operators;
mod mqtt_properties;
mod mqtt_retained;
mod mqtt_slow;
mod mqtt_statements;
mod mqtt_subscriptions;
mod mqtt_system_topics;
mod mqtt_websocket;
mod mqtt_wills;
mod operators;
mod own_publishes;
mod random_runs;
mod shovels;
mod time;
