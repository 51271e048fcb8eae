//! Who was told of in the log lately, so that one peer in a loop does not fill it, nor wear the card it is
//! on.
//!
//! Always true: one line per address and interval; what was left out is counted and said with the next line;
//! the table has a fixed size, and whoever was told of longest ago makes place.

use core::fmt;
use std::net::IpAddr;

use heapless::Vec;

use crate::time::{Deadline, Now};

use super::socket::PeerAddress;

/// One line per address in this time.
const INTERVAL_MS: u64 = 10_000;
/// Addresses remembered.
const ADDRESSES: usize = 32;

/// The table.
#[derive(Debug, Default)]
pub(super) struct Told {
    entries: Vec<Entry, ADDRESSES>,
}

#[derive(Debug)]
struct Entry {
    address: IpAddr,
    again: Deadline,
    silent: u32,
}

/// How many lines were left out, to be put behind the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LeftOut(u32);

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            count => write!(f, " ({count} more of the kind were not logged)"),
        }
    }
}

impl Told {
    /// Whether to log something about `peer` now.
    pub(super) fn may_tell(&mut self, peer: PeerAddress, now: Now) -> Option<LeftOut> {
        let address = peer.place();
        let again = now.after_ms(INTERVAL_MS);
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.address == address) {
            if !entry.again.is_due(now) {
                entry.silent += 1;
                return None;
            }
            entry.again = again;
            return Some(LeftOut(core::mem::take(&mut entry.silent)));
        }
        let entry = Entry { address, again, silent: 0 };
        if let Err(entry) = self.entries.push(entry)
            && let Some(oldest) = self.entries.iter_mut().min_by_key(|entry| entry.again)
        {
            *oldest = entry;
        }
        Some(LeftOut(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u8) -> PeerAddress {
        PeerAddress::Network(([10, 0, 0, number], 7).into())
    }

    #[test]
    fn one_line_per_address_and_interval_and_the_rest_is_counted() {
        let mut told = Told::default();
        let start = Now::from_ms(1_000);
        assert_eq!(told.may_tell(peer(1), start), Some(LeftOut(0)));
        for _ in 0..5 {
            assert_eq!(told.may_tell(peer(1), start), None);
        }
        assert_eq!(told.may_tell(peer(2), start), Some(LeftOut(0)), "another is another matter");
        let later = Now::from_ms(1_000 + INTERVAL_MS);
        let left_out = told.may_tell(peer(1), later);
        assert_eq!(left_out.map(|left| left.to_string()).unwrap_or_default().split(' ').nth(1), Some("(5"));
        assert_eq!(told.may_tell(peer(1), later), None);
    }

    #[test]
    fn a_crowd_of_addresses_takes_no_more_room() {
        let mut told = Told::default();
        for number in 0..=255 {
            assert!(told.may_tell(peer(number), Now::from_ms(number.into())).is_some());
        }
        assert_eq!(told.entries.len(), ADDRESSES);
        assert!(told.may_tell(peer(255), Now::from_ms(255)).is_none(), "the last ones are still known");
    }
}
