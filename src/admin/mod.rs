//! OWNS THE OPERATOR'S VIEW: what the broker tells those who run it.

pub mod systemd;
