//! Lines in the log that a peer can cause, and how many of them there may be.
//!
//! A log lies on a card that wears, or goes over a link that is paid by the byte; so what a peer does is
//! logged by a budget, and what goes beyond is counted and told later.
//!
//! ```text
//! warn(source, kind) ─→ bucket of (source, kind) ─→ bucket of all ─→ the log
//!                            │ empty                   │ empty
//!                            ▼                         ▼
//!                       counted by kind ──────→ one report line every REPORT_MS, and one at the end
//! ```
//!
//! Connections that come and go are no trouble: they have a bucket of all for themselves, so that they leave
//! no warning out, and are reported more seldom.
//!
//! What is no line of the log is recorded all the same, where a flight recorder is kept ([`RECORDED_ONLY`]):
//! by a budget of its own, for that is memory, which does not wear, but a flood is not to fill it.
//!
//! Always true: every line asked for is written or counted, and every count is told; there is a deadline only
//! while something is to be told, so an idle broker sleeps; the table has a fixed size, and the bucket that
//! makes place is the fullest one, which loses least by being forgotten. An IPv6 source is its first 64
//! bits, for nobody has fewer.

use core::fmt;
use core::net::{IpAddr, Ipv6Addr};

use heapless::Vec;
use log::Level;

use crate::time::{Deadline, Now};
use crate::token_bucket::{NS_PER_MS, TokenBucket};

/// Lines about one source and kind at once.
const SOURCE_BURST: u64 = 5;
/// After that, one in so many milliseconds.
const SOURCE_REFILL_MS: u64 = 60_000;
/// Lines about all sources together at once.
const TOTAL_BURST: u64 = 60;
/// After that, one in so many milliseconds.
const TOTAL_REFILL_MS: u64 = 5_000;
/// What was left out is told in one line after so many milliseconds.
const REPORT_MS: u64 = 30_000;
/// The same of what is no trouble: a program that connects every second is to cost a card next to nothing.
const NEWS_REPORT_MS: u64 = 600_000;
/// Events that are recorded beside the lines, at once.
const RECORDED_BURST: u64 = 64;
/// After that, one in so many milliseconds.
const RECORDED_REFILL_MS: u64 = 10_000;
/// The target of what is for the flight recorder and no line of the log.
pub const RECORDED_ONLY: &str = "recorded";
/// Buckets remembered.
const BUCKETS_MAX: usize = 128;

/// Who caused a line, and whose budget it is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogSource {
    /// A peer of the network.
    Address(IpAddr),
    /// A program of this machine, by its user's id.
    User(u32),
    /// A bridge, by its number.
    Bridge(u64),
    /// A peer whose address is not known.
    Anybody,
}

impl LogSource {
    /// What sources are told apart by.
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
            Self::Anybody => f.write_str("somebody"),
        }
    }
}

/// What a line is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogKind {
    /// A peer that speaks something else than it should.
    Opening,
    /// A TLS handshake that failed.
    TlsHandshake,
    /// A login that was refused, or must wait.
    Login,
    /// A connection that was closed for its peer's mistake.
    Connection,
    /// A channel that was closed for its peer's mistake.
    Channel,
    /// A connection that was closed because time was up.
    Timeout,
    /// Something that there was no room for.
    Shortage,
    /// A client that may not use the control socket.
    Control,
    /// A bridge that is up, or is not.
    Bridge,
    /// A connection that was opened, or is over: no trouble.
    Visit,
}

impl LogKind {
    const ALL: [Self; 10] = [
        Self::Opening,
        Self::TlsHandshake,
        Self::Login,
        Self::Connection,
        Self::Channel,
        Self::Timeout,
        Self::Shortage,
        Self::Control,
        Self::Bridge,
        Self::Visit,
    ];

    /// What many of them are called in a report.
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
            Self::Visit => "connections opened or over",
        }
    }

    /// When what was left out of it is told, in milliseconds.
    const fn report_ms(self) -> u64 {
        match self {
            Self::Visit => NEWS_REPORT_MS,
            _ => REPORT_MS,
        }
    }
}

/// The bucket with a token less; `None` when it has none. It holds `burst` and gets one each `refill_ms`.
fn taken(mut bucket: TokenBucket, now: Now, burst: u64, refill_ms: u64) -> Option<TokenBucket> {
    let cost_ns = refill_ms * NS_PER_MS;
    bucket.try_take(now, cost_ns, burst * cost_ns).then_some(bucket)
}

#[derive(Debug)]
struct Entry {
    source: LogSource,
    kind: LogKind,
    bucket: TokenBucket,
    /// Lines left out since the last report.
    left_out: u64,
}

/// The budget of all lines that peers cause.
#[derive(Debug)]
pub struct LogLimiter {
    entries: Vec<Entry, BUCKETS_MAX>,
    /// Of all that is trouble.
    total: TokenBucket,
    /// Of all visits.
    visits: TokenBucket,
    /// Of all that is recorded and no line.
    recorded: TokenBucket,
    /// Lines left out since the last report, by kind.
    left_out: [u64; LogKind::ALL.len()],
    report_due: Deadline,
}

impl Default for LogLimiter {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            total: TokenBucket::default(),
            visits: TokenBucket::default(),
            recorded: TokenBucket::default(),
            left_out: [0; LogKind::ALL.len()],
            report_due: Deadline::NEVER,
        }
    }
}

impl LogLimiter {
    /// Logs a warning that `source` caused, or counts it.
    pub fn warn(&mut self, now: Now, source: LogSource, kind: LogKind, text: fmt::Arguments<'_>) {
        self.log(now, Level::Warn, source, kind, text);
    }

    /// The same at any level that is logged at all.
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

    /// Records what is no line of the log, if anything is recorded.
    pub fn record(&mut self, now: Now, level: Level, text: fmt::Arguments<'_>) {
        if log::log_enabled!(target: RECORDED_ONLY, level)
            && let Some(recorded) = taken(self.recorded, now, RECORDED_BURST, RECORDED_REFILL_MS)
        {
            self.recorded = recorded;
            log::log!(target: RECORDED_ONLY, level, "{text}");
        }
    }

    /// When [`Self::report_due`] wants to be called.
    pub const fn deadline(&self) -> Deadline {
        self.report_due
    }

    /// Tells what was left out, if it is time.
    pub fn report_due(&mut self, now: Now) {
        if self.report_due.is_due(now) {
            self.report();
        }
    }

    /// Tells what was left out, because nothing comes after.
    pub fn report(&mut self) {
        if self.report_due == Deadline::NEVER {
            return;
        }
        let is_news =
            LogKind::ALL.iter().all(|kind| *kind == LogKind::Visit || self.left_out[*kind as usize] == 0);
        log::log!(if is_news { Level::Info } else { Level::Warn }, "{}", Report(self));
        self.left_out = [0; LogKind::ALL.len()];
        self.entries.iter_mut().for_each(|entry| entry.left_out = 0);
        self.report_due = Deadline::NEVER;
    }

    fn may_log(&mut self, now: Now, source: LogSource, kind: LogKind) -> bool {
        let is_visit = kind == LogKind::Visit;
        let all = if is_visit { self.visits } else { self.total };
        let total = taken(all, now, TOTAL_BURST, TOTAL_REFILL_MS);
        let entry = self.entry(source.key(), kind);
        let own = taken(entry.bucket, now, SOURCE_BURST, SOURCE_REFILL_MS);
        if let (Some(own), Some(total)) = (own, total) {
            entry.bucket = own;
            *(if is_visit { &mut self.visits } else { &mut self.total }) = total;
            return true;
        }
        entry.left_out += 1;
        self.left_out[kind as usize] += 1;
        self.report_due = self.report_due.earlier(now.after_ms(kind.report_ms()));
        false
    }

    fn entry(&mut self, source: LogSource, kind: LogKind) -> &mut Entry {
        let found = self.entries.iter().position(|entry| entry.source == source && entry.kind == kind);
        let at = found.unwrap_or_else(|| {
            let fresh = Entry { source, kind, bucket: TokenBucket::default(), left_out: 0 };
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

    /// Who caused most of what was left out of a kind.
    fn worst(&self, kind: LogKind) -> Option<LogSource> {
        let entries = self.entries.iter().filter(|entry| entry.kind == kind && entry.left_out > 0);
        entries.max_by_key(|entry| entry.left_out).map(|entry| entry.source)
    }
}

/// The line that says what was left out.
struct Report<'l>(&'l LogLimiter);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not logged one by one:")?;
        let mut separator = " ";
        for kind in LogKind::ALL {
            let count = self.0.left_out[kind as usize];
            if count == 0 {
                continue;
            }
            write!(f, "{separator}{count} {}", kind.plural())?;
            if let Some(source) = self.0.worst(kind) {
                write!(f, " (most by {source})")?;
            }
            separator = ", ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u32) -> LogSource {
        LogSource::Address(IpAddr::from(number.to_be_bytes()))
    }

    /// How many of `count` lines get through at once.
    fn logged(limiter: &mut LogLimiter, now: Now, source: LogSource, kind: LogKind, count: u64) -> u64 {
        (0..count).filter(|_| limiter.may_log(now, source, kind)).count() as u64
    }

    #[test]
    fn a_source_has_a_budget_of_each_kind_and_what_goes_beyond_is_told() {
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
        assert_eq!(limiter.left_out.iter().sum::<u64>(), 100, "it is not time yet");
        limiter.report_due(Now::from_ms(1_000 + REPORT_MS));
        assert_eq!((limiter.left_out.iter().sum::<u64>(), limiter.deadline()), (0, Deadline::NEVER));
        let later = Now::from_ms(1_000 + 2 * SOURCE_REFILL_MS);
        assert_eq!(logged(&mut limiter, later, peer(1), LogKind::Channel, 100), 2, "one for each interval");
    }

    #[test]
    fn many_sources_together_have_a_budget_too_and_a_table_of_its_size() {
        let mut limiter = LogLimiter::default();
        let (mut lines, hour_ms) = (0, 3_600_000);
        for ms in (0..hour_ms).step_by(20) {
            lines += logged(&mut limiter, Now::from_ms(ms), peer(ms as u32), LogKind::Opening, 1);
        }
        assert_eq!(lines, TOTAL_BURST + hour_ms / TOTAL_REFILL_MS - 1);
        assert_eq!(lines + limiter.left_out.iter().sum::<u64>(), hour_ms / 20, "not one is lost sight of");
        assert_eq!(limiter.entries.len(), BUCKETS_MAX);
    }

    #[test]
    fn one_source_cannot_use_up_what_all_have() {
        let (mut limiter, mut lines) = (LogLimiter::default(), 0);
        for ms in (0..600_000).step_by(1000) {
            for kind in LogKind::ALL {
                logged(&mut limiter, Now::from_ms(ms), peer(1), kind, 3);
            }
            let others = peer(2 + ms as u32);
            lines += logged(&mut limiter, Now::from_ms(ms), others, LogKind::Login, 1);
        }
        assert!(lines > 40, "{lines} of others in ten minutes");
    }

    #[test]
    fn who_comes_and_goes_leaves_no_warning_out_and_is_told_seldom() {
        let (mut limiter, now) = (LogLimiter::default(), Now::from_ms(1_000));
        for number in 0..1_000 {
            logged(&mut limiter, now, peer(number), LogKind::Visit, 2);
        }
        assert_eq!(limiter.deadline(), now.after_ms(NEWS_REPORT_MS));
        assert_eq!(logged(&mut limiter, now, peer(1), LogKind::Login, 7), SOURCE_BURST);
        assert_eq!(limiter.deadline(), now.after_ms(REPORT_MS), "a refusal is not told so late");
    }

    #[test]
    fn a_network_of_ipv6_is_one_source_and_a_mapped_address_is_its_own() {
        let of = |text: &str| LogSource::Address(text.parse().unwrap()).key();
        assert_eq!(of("2001:db8:1:2::7"), of("2001:db8:1:2:3:4:5:6"));
        assert_ne!(of("2001:db8:1:2::7"), of("2001:db8:1:3::7"));
        assert_eq!(of("::ffff:10.0.0.7"), of("10.0.0.7"));
    }

    #[test]
    fn the_longest_report_is_a_line() {
        let mut limiter = LogLimiter { left_out: [u64::MAX; LogKind::ALL.len()], ..LogLimiter::default() };
        for kind in LogKind::ALL {
            let source = LogSource::Address(IpAddr::from([0xfd; 16]));
            limiter.entry(source, kind).left_out = u64::MAX;
        }
        assert!(Report(&limiter).to_string().len() < 1_000);
    }
}
