//! The real event loop: the built broker, or the loop in this process, and clients over real sockets.

mod cases;
mod idle;
mod left_out;
mod less_memory;
mod memory;
mod orphans;
mod passing_by;
mod tls_crowd;
mod waiting;
