//! The real event loop: the built broker, or the loop in this process, and clients over real sockets.

#[path = "../../support/home/mod.rs"]
mod home;
#[path = "../../support/sockets/mod.rs"]
mod sockets;
#[path = "../../simulation/world/mod.rs"]
mod world;

mod cases;
mod idle;
mod left_out;
mod less_memory;
mod memory;
mod orphans;
mod passing_by;
mod tls_crowd;
mod waiting;
