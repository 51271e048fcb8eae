//! OWNS THE OPERATOR'S VIEW. What is told to whoever runs the broker, and what he may change.
//!
//! | file | what it holds |
//! |------|---------------|
//! | `http` | requests out of bytes, answers into bytes |
//! | `admin_session` | one client of the operator's interface, without its socket |
//! | `answer` | how a request is answered |
//! | `api` | what each request means |
//! | `listing`, `columns` | rows of what there is, written while the client takes them |
//! | `gate` | who comes in over the network: names, pages, logins |
//! | `management` | RabbitMQ's management API for those, as far as their tags go |
//! | `pages` | the web page's files |
//! | `access` | users, virtual hosts, permissions |
//! | `bridges` | links of bridges |
//! | `definitions` | everything that is defined, out of files and into them |
//! | `json` | JSON into a buffer that is full at some point |
//! | `request_context` | what a request is answered from |
//! | `systemd` | telling systemd how it goes |
//!
//! Paths and field names are those of RabbitMQ's management API where it has them.
//!
//! Always true: no socket and no clock; what one client can make the broker hold is bounded, and so is what
//! it can make it do in one turn.

mod access;
pub mod admin_session;
pub mod answer;
pub mod api;
pub mod bridges;
pub mod columns;
pub mod definitions;
mod gate;
pub mod http;
pub mod json;
pub mod listing;
mod management;
mod pages;
pub mod request_context;
pub mod systemd;
