//! Rate limit for log lines that peers can cause.
//!
//! The log is on a flash card that wears out, or is sent over a link that is paid by the byte. So the number
//! of log lines about peers is limited. Suppressed lines are counted, and their number is logged later.
//!
//! ```text
//! warn(source, kind) ─→ bucket of (source, kind) ─→ bucket of all ─→ the log
//!                            │ empty                   │ empty
//!                            ▼                         ▼
//!                       counted by kind ──────→ one report line every REPORT_MS, and one at the end
//! ```
//!
//! Lines about opened and closed connections have a separate bucket for all sources, because they are no
//! warnings and must not suppress any. If they are suppressed, this is reported less often.
//!
//! Suppressed lines are still passed to the flight recorder, if there is one ([`RECORDED_ONLY`]). They have a
//! separate limit: the recorder is in memory that does not wear out, but too many lines would overwrite all
//! others.
//!
//! # Invariants
//! - Every line is either logged or counted, and every count is reported.
//! - There is a deadline only while suppressed lines are to be reported, so an idle broker does not wake up.
//! - The table has a fixed size. When it is full, the bucket with the most tokens is removed, because it
//!   limits the least.
//! - IPv6 sources are distinguished by their first 64 bits, because every peer may have a whole /64 network.

use core::fmt;
use core::net::{IpAddr, Ipv6Addr};

use heapless::Vec;
use log::Level;

use crate::time::{Deadline, Now};
use crate::token_bucket::{NS_PER_MS, TokenBucket};

/// Burst of lines about one source and kind.
const SOURCE_BURST: u64 = 5;
/// After the burst, one line in this many milliseconds.
const SOURCE_REFILL_MS: u64 = 60_000;
/// Time between two lines about what a client repeats whenever it connects, in milliseconds.
const REPEATED_REFILL_MS: u64 = 3_600_000;
/// Burst of lines about all sources together.
const TOTAL_BURST: u64 = 60;
/// After the burst, one line in this many milliseconds.
const TOTAL_REFILL_MS: u64 = 5_000;
/// Time until suppressed lines are reported, in milliseconds.
const REPORT_MS: u64 = 30_000;
/// Like [`REPORT_MS`], for lines about opened and closed connections. It is longer, so that a program that
/// connects every second does not wear out the card.
const CONNECTION_REPORT_MS: u64 = 600_000;
/// Burst of events that are recorded but not logged.
const RECORDED_BURST: u64 = 64;
/// After the burst, one event in this many milliseconds.
const RECORDED_REFILL_MS: u64 = 10_000;
/// The log target of events for the flight recorder only.
pub const RECORDED_ONLY: &str = "recorded";
/// Maximum number of buckets.
const BUCKETS_MAX: usize = 128;

/// The source of a log line. Each source has its own buckets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogSource {
    /// A network peer.
    Address(IpAddr),
    /// A program on the same machine, by its user id.
    User(u32),
    /// A bridge, by its number.
    Bridge(u64),
    /// A peer whose address is unknown.
    Unknown,
}

impl LogSource {
    /// Returns the source whose buckets apply to this one.
    fn key(self) -> Self {
        match self {
            Self::Address(IpAddr::V6(address)) => match address.to_ipv4_mapped() {
                Some(address) => Self::Address(address.into()),
                None => Self::Address(Ipv6Addr::from(u128::from(address) >> 64 << 64).into()),
            },
            other => other,
        }
    }
}

impl fmt::Display for LogSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::User(id) => write!(f, "uid {id}"),
            Self::Bridge(_) => f.write_str("one of them"),
            Self::Unknown => f.write_str("an unknown peer"),
        }
    }
}

/// The subject of a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogKind {
    /// A peer uses another protocol.
    Opening,
    /// A TLS handshake failed.
    TlsHandshake,
    /// A login was refused or must wait.
    Login,
    /// A connection was closed because of its peer's mistake.
    Connection,
    /// A channel was closed because of its peer's mistake.
    Channel,
    /// A connection was closed because of a timeout.
    Timeout,
    /// A request was refused because a limit was reached.
    Shortage,
    /// A client may not use the control socket.
    Control,
    /// A bridge connected or disconnected.
    Bridge,
    /// A connection was opened or closed; not a warning.
    ConnectionLifecycle,
    /// A client was disconnected because of something that it will most likely send again.
    Repeated,
}

impl LogKind {
    const ALL: [Self; 11] = [
        Self::Opening,
        Self::TlsHandshake,
        Self::Login,
        Self::Connection,
        Self::Channel,
        Self::Timeout,
        Self::Shortage,
        Self::Control,
        Self::Bridge,
        Self::ConnectionLifecycle,
        Self::Repeated,
    ];

    /// Returns the plural for the report.
    const fn plural(self) -> &'static str {
        match self {
            Self::Opening => "wrong protocols",
            Self::TlsHandshake => "failed TLS handshakes",
            Self::Login => "refused logins",
            Self::Connection => "closed connections",
            Self::Channel => "closed channels",
            Self::Timeout => "timeouts",
            Self::Shortage => "shortages",
            Self::Control => "refused ctl clients",
            Self::Bridge => "news of bridges",
            Self::ConnectionLifecycle => "connections opened or over",
            Self::Repeated => "repeats",
        }
    }

    /// Returns the time until suppressed lines are reported, in milliseconds.
    const fn report_ms(self) -> u64 {
        match self {
            Self::ConnectionLifecycle => CONNECTION_REPORT_MS,
            Self::Repeated => REPEATED_REFILL_MS,
            _ => REPORT_MS,
        }
    }

    /// Returns the burst of lines about one source, and the milliseconds per line after it.
    const fn source_limit(self) -> (u64, u64) {
        match self {
            Self::Repeated => (1, REPEATED_REFILL_MS),
            _ => (SOURCE_BURST, SOURCE_REFILL_MS),
        }
    }
}

/// The bucket of one source and kind.
#[derive(Debug)]
struct LimitedSource {
    source: LogSource,
    kind: LogKind,
    bucket: TokenBucket,
    /// Lines suppressed since the last report.
    suppressed: u64,
}

/// The rate limit of all lines that peers cause.
#[derive(Debug)]
pub struct LogLimiter {
    entries: Vec<LimitedSource, BUCKETS_MAX>,
    /// Bucket of all lines except connections opened and closed.
    total: TokenBucket,
    /// Bucket of lines about connections opened and closed.
    connections: TokenBucket,
    /// Bucket of events that are recorded but not logged.
    recorded: TokenBucket,
    /// Lines suppressed since the last report, by kind.
    suppressed: [u64; LogKind::ALL.len()],
    report_due: Deadline,
}

impl Default for LogLimiter {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            total: TokenBucket::default(),
            connections: TokenBucket::default(),
            recorded: TokenBucket::default(),
            suppressed: [0; LogKind::ALL.len()],
            report_due: Deadline::NEVER,
        }
    }
}

impl LogLimiter {
    /// Logs a warning that `source` caused, or counts it as suppressed.
    pub fn warn(&mut self, now: Now, source: LogSource, kind: LogKind, text: fmt::Arguments<'_>) {
        self.log(now, Level::Warn, source, kind, text);
    }

    /// Logs a line that `source` caused, at an enabled level, or counts it as suppressed.
    pub fn log(
        &mut self,
        now: Now,
        level: Level,
        source: LogSource,
        kind: LogKind,
        text: fmt::Arguments<'_>,
    ) {
        if log::log_enabled!(level) && self.may_log(now, source, kind) {
            log::log!(level, "{text}");
        } else {
            self.record(now, level, text);
        }
    }

    /// Passes a suppressed line to the flight recorder, if there is one.
    pub fn record(&mut self, now: Now, level: Level, text: fmt::Arguments<'_>) {
        if log::log_enabled!(target: RECORDED_ONLY, level)
            && let Some(recorded) = take_token(self.recorded, now, RECORDED_BURST, RECORDED_REFILL_MS)
        {
            self.recorded = recorded;
            log::log!(target: RECORDED_ONLY, level, "{text}");
        }
    }

    /// Returns when [`Self::report_due`] must be called.
    pub const fn deadline(&self) -> Deadline {
        self.report_due
    }

    /// Reports suppressed lines if the deadline has passed.
    pub fn report_due(&mut self, now: Now) {
        if self.report_due.is_due(now) {
            self.report();
        }
    }

    /// Reports suppressed lines now, because the broker stops.
    pub fn report(&mut self) {
        if self.report_due == Deadline::NEVER {
            return;
        }
        let is_info = LogKind::ALL
            .iter()
            .all(|kind| *kind == LogKind::ConnectionLifecycle || self.suppressed[*kind as usize] == 0);
        log::log!(if is_info { Level::Info } else { Level::Warn }, "{}", Report(self));
        self.suppressed = [0; LogKind::ALL.len()];
        self.entries.iter_mut().for_each(|entry| entry.suppressed = 0);
        self.report_due = Deadline::NEVER;
    }

    /// Returns whether a line may be logged. Counts it as suppressed otherwise.
    fn may_log(&mut self, now: Now, source: LogSource, kind: LogKind) -> bool {
        let is_connection = kind == LogKind::ConnectionLifecycle;
        let all = if is_connection { self.connections } else { self.total };
        let total = take_token(all, now, TOTAL_BURST, TOTAL_REFILL_MS);
        let (burst, refill_ms) = kind.source_limit();
        let entry = self.entry(source.key(), kind);
        let own = take_token(entry.bucket, now, burst, refill_ms);
        if let (Some(own), Some(total)) = (own, total) {
            entry.bucket = own;
            *(if is_connection { &mut self.connections } else { &mut self.total }) = total;
            return true;
        }
        entry.suppressed += 1;
        self.suppressed[kind as usize] += 1;
        self.report_due = self.report_due.earlier(now.after_ms(kind.report_ms()));
        false
    }

    /// Returns the bucket of a source and kind. Creates it if it does not exist; if the table is full, it
    /// replaces the bucket with the most tokens.
    fn entry(&mut self, source: LogSource, kind: LogKind) -> &mut LimitedSource {
        let found = self.entries.iter().position(|entry| entry.source == source && entry.kind == kind);
        let at = found.unwrap_or_else(|| {
            let fresh = LimitedSource { source, kind, bucket: TokenBucket::default(), suppressed: 0 };
            match self.entries.push(fresh) {
                Ok(()) => self.entries.len() - 1,
                Err(fresh) => {
                    let times = self.entries.iter().enumerate();
                    let fullest = times.min_by_key(|(_, entry)| entry.bucket);
                    let at = fullest.map_or(0, |(at, _)| at);
                    self.entries[at] = fresh;
                    at
                }
            }
        });
        &mut self.entries[at]
    }

    /// Returns the source with the most suppressed lines of a kind.
    fn main_source(&self, kind: LogKind) -> Option<LogSource> {
        let entries = self.entries.iter().filter(|entry| entry.kind == kind && entry.suppressed > 0);
        entries.max_by_key(|entry| entry.suppressed).map(|entry| entry.source)
    }
}

/// Formats the line about suppressed lines.
struct Report<'l>(&'l LogLimiter);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not logged one by one:")?;
        let mut separator = " ";
        for kind in LogKind::ALL {
            let count = self.0.suppressed[kind as usize];
            if count == 0 {
                continue;
            }
            write!(f, "{separator}{count} {}", kind.plural())?;
            if let Some(source) = self.0.main_source(kind) {
                write!(f, " (most by {source})")?;
            }
            separator = ", ";
        }
        Ok(())
    }
}

/// Returns the bucket without one token; `None` if it is empty.
///
/// The bucket holds `burst` tokens and gains one every `refill_ms`.
fn take_token(mut bucket: TokenBucket, now: Now, burst: u64, refill_ms: u64) -> Option<TokenBucket> {
    let cost_ns = refill_ms * NS_PER_MS;
    bucket.try_take(now, cost_ns, burst * cost_ns).then_some(bucket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u32) -> LogSource {
        LogSource::Address(IpAddr::from(number.to_be_bytes()))
    }

    /// Returns how many of `count` simultaneous lines are logged.
    fn logged(limiter: &mut LogLimiter, now: Now, source: LogSource, kind: LogKind, count: u64) -> u64 {
        (0..count).filter(|_| limiter.may_log(now, source, kind)).count() as u64
    }

    #[test]
    fn a_source_has_a_budget_per_kind_and_suppressed_lines_are_reported() {
        let mut limiter = LogLimiter::default();
        let start = Now::from_ms(1_000);
        assert_eq!(limiter.deadline(), Deadline::NEVER);
        assert_eq!(logged(&mut limiter, start, peer(1), LogKind::Channel, 100), SOURCE_BURST);
        assert_eq!(logged(&mut limiter, start, peer(1), LogKind::Login, 7), SOURCE_BURST, "another kind");
        assert_eq!(logged(&mut limiter, start, peer(2), LogKind::Channel, 8), SOURCE_BURST, "another peer");
        assert_eq!(limiter.deadline(), start.after_ms(REPORT_MS));
        assert_eq!(
            Report(&limiter).to_string(),
            "not logged one by one: 2 refused logins (most by 0.0.0.1), 98 closed channels (most by 0.0.0.1)"
        );
        limiter.report_due(Now::from_ms(1_000 + REPORT_MS - 1));
        assert_eq!(limiter.suppressed.iter().sum::<u64>(), 100, "the deadline has not passed");
        limiter.report_due(Now::from_ms(1_000 + REPORT_MS));
        assert_eq!((limiter.suppressed.iter().sum::<u64>(), limiter.deadline()), (0, Deadline::NEVER));
        let later = Now::from_ms(1_000 + 2 * SOURCE_REFILL_MS);
        assert_eq!(logged(&mut limiter, later, peer(1), LogKind::Channel, 100), 2, "one for each interval");
    }

    #[test]
    fn all_sources_together_have_a_budget_and_the_table_is_bounded() {
        let mut limiter = LogLimiter::default();
        let (mut lines, hour_ms) = (0, 3_600_000);
        for ms in (0..hour_ms).step_by(20) {
            lines += logged(&mut limiter, Now::from_ms(ms), peer(ms as u32), LogKind::Opening, 1);
        }
        assert_eq!(lines, TOTAL_BURST + hour_ms / TOTAL_REFILL_MS - 1);
        assert_eq!(
            lines + limiter.suppressed.iter().sum::<u64>(),
            hour_ms / 20,
            "every line is logged or counted"
        );
        assert_eq!(limiter.entries.len(), BUCKETS_MAX);
    }

    #[test]
    fn one_source_cannot_use_up_the_common_budget() {
        let (mut limiter, mut lines) = (LogLimiter::default(), 0);
        for ms in (0..600_000).step_by(1000) {
            for kind in LogKind::ALL {
                logged(&mut limiter, Now::from_ms(ms), peer(1), kind, 3);
            }
            let others = peer(2 + ms as u32);
            lines += logged(&mut limiter, Now::from_ms(ms), others, LogKind::Login, 1);
        }
        assert!(lines > 40, "{lines} lines of other sources in ten minutes");
    }

    #[test]
    fn lines_about_connections_suppress_no_warning_and_are_reported_less_often() {
        let (mut limiter, now) = (LogLimiter::default(), Now::from_ms(1_000));
        for number in 0..1_000 {
            logged(&mut limiter, now, peer(number), LogKind::ConnectionLifecycle, 2);
        }
        assert_eq!(limiter.deadline(), now.after_ms(CONNECTION_REPORT_MS));
        assert_eq!(logged(&mut limiter, now, peer(1), LogKind::Login, 7), SOURCE_BURST);
        assert_eq!(limiter.deadline(), now.after_ms(REPORT_MS), "a refused login is reported earlier");
    }

    #[test]
    fn an_ipv6_network_is_one_source_and_a_mapped_address_is_its_ipv4_address() {
        let of = |text: &str| LogSource::Address(text.parse().unwrap()).key();
        assert_eq!(of("2001:db8:1:2::7"), of("2001:db8:1:2:3:4:5:6"));
        assert_ne!(of("2001:db8:1:2::7"), of("2001:db8:1:3::7"));
        assert_eq!(of("::ffff:10.0.0.7"), of("10.0.0.7"));
    }

    #[test]
    fn the_longest_report_has_less_than_1000_bytes() {
        let mut limiter = LogLimiter { suppressed: [u64::MAX; LogKind::ALL.len()], ..LogLimiter::default() };
        for kind in LogKind::ALL {
            let source = LogSource::Address(IpAddr::from([0xfd; 16]));
            limiter.entry(source, kind).suppressed = u64::MAX;
        }
        assert!(Report(&limiter).to_string().len() < 1_000);
    }
}
