//! OWNS WHAT AN OPERATOR ASKS. What is told to whoever runs the broker, and what he may change.
//!
//! Who asks is an operator: root, or the broker's own user, by the control socket, which `leveretctl` speaks to; or
//! a user of the broker, by the management API, which is RabbitMQ's, on the network. Both have their requests
//! looked up in one table ([`table`]), in which metrics and the page are rows as well. A new request is a row there
//! and the function that it names.
//!
//! | file | what it holds |
//! |------|---------------|
//! | `http` | requests out of bytes, answers into bytes |
//! | `operator_session` | one client, by whichever way it comes, without its socket |
//! | `answer` | how a request is answered |
//! | `table` | THE TABLE: everything that can be asked, by whom, and what answers |
//! | `call` | a request with who asks and the names in its path |
//! | `lists` | lists, and the one thing of a list |
//! | `listing`, `columns`, `access_columns`, `binding_columns` | rows of what there is, written while the client takes them |
//! | `filter`, `ordering` | which rows are wanted, and in which order |
//! | `gate` | who comes in over the network: names, pages, logins |
//! | `control` | what only the control socket is asked |
//! | `management` | what only the management API is asked |
//! | `management_node` | what it tells of the node |
//! | `management_parts` | what several answers have |
//! | `alarms` | what an operator should see to |
//! | `pages` | the web page's files |
//! | `metrics`, `exposition` | metrics for Prometheus; rows of them, written while the client takes them |
//! | `actions` | what users do in a virtual host: declare, bind, publish, delete |
//! | `queue_get`, `looking`, `shown_message` | messages taken, or only looked at; a message as JSON |
//! | `access` | users, virtual hosts, permissions, logins |
//! | `policies`, `policy_columns` | policies and operator policies; their columns |
//! | `health` | whether this broker can be used, for probes |
//! | `bridges`, `dates` | links of bridges; a time in words |
//! | `parameters`, `parameter_columns` | runtime parameters, and shovels among them |
//! | `orphan_columns` | messages without a queue, as columns |
//! | `outage` | how long the upstream of a bridge may be away |
//! | `import` | definitions that are sent |
//! | `publishing`, `split` | publishes, however long; a payload out of its JSON |
//! | `spool`, `multipart` | where a long body is kept; a file out of a form |
//! | `definitions` | everything that is defined, out of files and into them |
//! | `json` | JSON into a buffer that is full at some point |
//! | `request_context` | what a request is answered from |
//! | `samples` | what was counted in the last minutes: rates, histories |
//! | `tokens` | logins of the web page |
//! | `wear` | how long the card lasts |
//! | `systemd` | telling systemd how it goes |
//!
//! Paths and field names are those of RabbitMQ's management API where it has them.
//!
//! Always true: no socket and no clock; what one client can make the broker hold is bounded, and so is what
//! it can make it do in one turn.

#![warn(clippy::unwrap_used)]

mod access;
mod actions;
mod alarms;
pub mod bridges;
pub mod columns;
mod control;
pub mod definition_columns;
pub mod definitions;
mod gate;
pub mod http;
mod import;
pub mod json;
pub mod listing;
mod management;
mod messages;
pub mod metrics;
mod node;
pub mod operator_session;
mod parameters;
mod policies;
mod publishing;
pub mod request;
pub mod request_context;
pub mod samples;
mod table;
mod uploads;
pub mod wear;
pub mod web_page;

// The rooms below, by the names that everybody has for them.
