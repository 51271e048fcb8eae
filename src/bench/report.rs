//! What was measured, for a person and for a program.
//!
//! Always true: both tell the same numbers; what was not measured is left out.

use std::env::consts::ARCH;
use std::fmt::Write;
use std::fs;
use std::thread;
use std::time::Duration;

use super::histogram::Histogram;
use super::options::Options;
use super::process::CpuTime;
use super::relay::Relayed;
use super::stage::Outcome;
use crate::config::board::Machine;
use crate::tool::json::{self, Object};

/// Everything there is to tell.
#[derive(Debug)]
pub(super) struct Report<'a> {
    pub(super) options: &'a Options,
    /// What it was measured on, as [`machine`] says it.
    pub(super) machine: String,
    pub(super) outcome: Option<Outcome>,
    pub(super) broker_peak_bytes: Option<u64>,
    pub(super) relay: Option<Relayed>,
}

/// How much went through in how much time, and what it cost whoever passed it on.
#[derive(Clone, Copy, Debug)]
struct Flow {
    count: u64,
    time: Duration,
    cpu: Option<CpuTime>,
}

impl Flow {
    fn per_second(self) -> f64 {
        ratio(self.count as f64, self.time.as_secs_f64())
    }

    fn per_cpu_second(self) -> Option<f64> {
        // Below a few ticks of the kernel's clock this would be noise.
        let cpu = self.cpu?.total().as_secs_f64();
        (cpu >= 0.05).then(|| ratio(self.count as f64, cpu))
    }
}

impl Report<'_> {
    /// As a block of text.
    pub(super) fn text(&self) -> String {
        let mut text = format!("{}\n", self.title());
        if let Some(outcome) = &self.outcome {
            self.append_outcome(&mut text, outcome);
        }
        if let Some(relay) = &self.relay {
            self.append_relay(&mut text, relay);
        }
        if let Some(outcome) = &self.outcome {
            line(&mut text, "to share", &self.row(self.main_flow(outcome)));
        }
        text
    }

    /// A row of the guide's table of figures from real boards.
    fn row(&self, flow: Flow) -> String {
        let not_known = || "-".to_string();
        let each = flow.per_cpu_second().map_or_else(not_known, |rate| format!("{:.0} ns", 1e9 / rate));
        let most =
            self.broker_peak_bytes.map_or_else(not_known, |bytes| format!("{:.1} MB", bytes as f64 / 1e6));
        format!(
            "| {} | {} | {} | {} | {each} | {most} |",
            self.machine,
            env!("CARGO_PKG_VERSION"),
            self.title(),
            grouped(flow.per_second())
        )
    }

    fn title(&self) -> String {
        let options = self.options;
        let many = |count: u64, what: &str| match count {
            1 => format!("1 {what}"),
            _ => format!("{count} {what}s"),
        };
        let mut title = format!(
            "{} B, {}, {}, {}, ack {}",
            options.size,
            many(options.publishers.into(), "publisher"),
            many(options.consumers.into(), "consumer"),
            many(options.queues.into(), "queue"),
            options.ack.name()
        );
        if let Some(kind) = options.exchange {
            let _ = write!(
                title,
                ", {} exchange with {} more",
                kind.name(),
                many(options.bindings.into(), "binding")
            );
        }
        if let Some(width) = options.confirms {
            let _ = write!(title, ", {width} in flight");
        }
        if options.persistent {
            title.push_str(", persistent");
        }
        if let Some(rate) = options.rate {
            let _ = write!(title, ", at {} msg/s", grouped(rate as f64));
        }
        title
    }

    fn append_outcome(&self, text: &mut String, outcome: &Outcome) {
        let (published, delivered) = self.flows(outcome);
        line(text, "published", &self.speed(published));
        if self.options.consumers > 0 {
            line(text, "delivered", &self.speed(delivered));
            if self.options.is_numbered() {
                line(text, "checked", "every message: number, order, length and content");
            } else {
                line(text, "checked", "every message: length and content; --size 8 or more checks the order");
            }
        }
        let main = self.main_flow(outcome);
        match main.cpu {
            Some(cpu) => line(text, "broker CPU", &cost(cpu, main)),
            None => line(text, "broker CPU", "not known; --broker-pid says which process it is"),
        }
        if let Some(bytes) = self.broker_peak_bytes {
            line(text, "broker memory", &format!("{:.1} MB at most", bytes as f64 / 1e6));
        }
        if let Some(cpu) = outcome.client_cpu {
            line(text, "bench CPU", &format!("{:.2} s", cpu.total().as_secs_f64()));
        }
        if outcome.latency.count() > 0 {
            line(text, "latency", &quantiles(&outcome.latency));
        }
        if outcome.confirm_times.count() > 0 {
            line(text, "confirmed in", &quantiles(&outcome.confirm_times));
        }
    }

    fn append_relay(&self, text: &mut String, relay: &Relayed) {
        let flow = relay_flow(relay);
        line(text, "bare relay", &self.speed(flow));
        line(text, "relay CPU", &cost(relay.cpu, flow));
        if let Some((wall, cpu)) = self.share_of_relay() {
            let cpu = cpu.map(|cpu| format!(", {cpu:.2} of it per CPU-second")).unwrap_or_default();
            line(text, "the broker", &format!("{wall:.2} of the bare relay{cpu}"));
        }
    }

    /// What the broker does of what the relay does: by the clock, and per CPU-second.
    fn share_of_relay(&self) -> Option<(f64, Option<f64>)> {
        let relay = relay_flow(self.relay.as_ref()?);
        let broker = self.main_flow(self.outcome.as_ref()?);
        let by_cpu = broker.per_cpu_second().zip(relay.per_cpu_second());
        Some((ratio(broker.per_second(), relay.per_second()), by_cpu.map(|(a, b)| ratio(a, b))))
    }

    fn flows(&self, outcome: &Outcome) -> (Flow, Flow) {
        let flow = |count, time| Flow { count, time, cpu: outcome.broker_cpu };
        (flow(outcome.published, outcome.publish_time), flow(outcome.delivered, outcome.delivery_time))
    }

    /// What a run is judged by: what came out, or what went in when nothing was to come out.
    fn main_flow(&self, outcome: &Outcome) -> Flow {
        let (published, delivered) = self.flows(outcome);
        if self.options.consumers == 0 { published } else { delivered }
    }

    fn speed(&self, flow: Flow) -> String {
        format!(
            "{} messages in {:.3} s, {} msg/s, {:.1} MB/s",
            grouped(flow.count as f64),
            flow.time.as_secs_f64(),
            grouped(flow.per_second()),
            flow.per_second() * self.options.size as f64 / 1e6
        )
    }

    /// As one line of JSON.
    pub(super) fn json(&self) -> String {
        let mut line = Vec::new();
        json::write_to(&mut line, |json| {
            let mut object = Object::open(json);
            self.put_options(&mut object);
            self.put_results(&mut object);
            object.close();
        })
        .expect("memory takes everything");
        line.push(b'\n');
        String::from_utf8(line).expect("JSON is text")
    }

    fn put_options(&self, json: &mut Object<'_, '_>) {
        let options = self.options;
        number(json, "size", options.size as f64);
        number(json, "publishers", options.publishers.into());
        number(json, "consumers", options.consumers.into());
        number(json, "queues", options.queues.into());
        json.text("ack", options.ack.name());
        json.text("exchange", options.exchange.map_or("default", |kind| kind.name()));
        number(json, "bindings", options.bindings.into());
        number(json, "prefetch", options.prefetch.into());
        optional(json, "confirms", options.confirms.map(f64::from));
        json.truth("persistent", options.persistent);
        optional(json, "rate", options.rate.map(|rate| rate as f64));
        if let Some(count) = options.volume.messages {
            number(json, "messages", count as f64);
        }
        if let Some(time) = options.volume.time() {
            number(json, "seconds", time.as_secs_f64());
        }
    }

    fn put_results(&self, json: &mut Object<'_, '_>) {
        if let Some(outcome) = &self.outcome {
            self.put_outcome(json, outcome);
        }
        if let Some(relay) = &self.relay {
            let flow = relay_flow(relay);
            number(json, "relay_msg_per_s", flow.per_second());
            number(json, "relay_cpu_s", relay.cpu.total().as_secs_f64());
            optional(json, "of_relay", self.share_of_relay().map(|(wall, _)| wall));
            optional(json, "of_relay_per_cpu_s", self.share_of_relay().and_then(|(_, cpu)| cpu));
        }
    }

    fn put_outcome(&self, json: &mut Object<'_, '_>, outcome: &Outcome) {
        let main = self.main_flow(outcome);
        number(json, "published", outcome.published as f64);
        number(json, "publish_s", outcome.publish_time.as_secs_f64());
        number(json, "delivered", outcome.delivered as f64);
        number(json, "delivery_s", outcome.delivery_time.as_secs_f64());
        number(json, "msg_per_s", main.per_second());
        optional(json, "broker_cpu_user_s", main.cpu.map(|cpu| cpu.user.as_secs_f64()));
        optional(json, "broker_cpu_system_s", main.cpu.map(|cpu| cpu.system.as_secs_f64()));
        optional(json, "msg_per_broker_cpu_s", main.per_cpu_second());
        optional(json, "broker_peak_bytes", self.broker_peak_bytes.map(|bytes| bytes as f64));
        optional(json, "bench_cpu_s", outcome.client_cpu.map(|cpu| cpu.total().as_secs_f64()));
        for (name, times) in [("latency", &outcome.latency), ("confirm", &outcome.confirm_times)] {
            if times.count() > 0 {
                for (quantile, share) in QUANTILES {
                    number(json, &format!("{name}_{quantile}_us"), times.quantile(share) as f64 / 1e3);
                }
                number(json, &format!("{name}_max_us"), times.max() as f64 / 1e3);
            }
        }
    }
}

/// The machine this runs on: its model where the device tree names one, its processors and its kernel.
pub(super) fn machine() -> String {
    let model = Machine::look().model.unwrap_or_else(|| "a machine without a device tree".to_string());
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    in_table(&format!("{model}, {cores} × {}, Linux {}", ARCH, kernel.trim_end()))
}

/// A text as a cell of a table, which neither its ends nor its lines are broken by.
fn in_table(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || c == '|' { '/' } else { c }).collect()
}

const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)];

const fn relay_flow(relay: &Relayed) -> Flow {
    Flow { count: relay.count, time: relay.time, cpu: Some(relay.cpu) }
}

fn line(text: &mut String, name: &str, what: &str) {
    // Writing into a String cannot fail.
    let _ = writeln!(text, "  {name:<14} {what}");
}

fn cost(cpu: CpuTime, flow: Flow) -> String {
    let (user, system) = (cpu.user.as_secs_f64(), cpu.system.as_secs_f64());
    let mut text = format!("{:.2} s ({user:.2} user, {system:.2} system)", user + system);
    if let Some(rate) = flow.per_cpu_second() {
        let _ = write!(text, ", {} msg/s per CPU-second, {:.0} ns a message", grouped(rate), 1e9 / rate);
    }
    text
}

fn quantiles(times: &Histogram) -> String {
    let mut text = String::new();
    for (name, share) in QUANTILES {
        let _ = write!(text, "{name} {}, ", time(times.quantile(share)));
    }
    text + &format!("max {}", time(times.max()))
}

fn time(ns: u64) -> String {
    match ns {
        0..1_000_000 => format!("{:.0} µs", ns as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} ms", ns as f64 / 1e6),
        _ => format!("{:.2} s", ns as f64 / 1e9),
    }
}

/// A number without decimals, its thousands apart.
fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Zero when there is nothing to divide by.
fn ratio(of: f64, by: f64) -> f64 {
    if by > 0.0 { of / by } else { 0.0 }
}

/// A number: six decimals are a millionth of a second; whole numbers need none.
fn number(json: &mut Object<'_, '_>, name: &str, number: f64) {
    let decimals = if number.fract() == 0.0 { 0 } else { 6 };
    json.field(name).shown_raw(format_args!("{number:.decimals$}"));
}

fn optional(json: &mut Object<'_, '_>, name: &str, of: Option<f64>) {
    if let Some(of) = of {
        number(json, name, of);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(options: &Options) -> Report<'_> {
        let seconds = Duration::from_secs;
        let outcome = Outcome {
            published: 2_000_000,
            publish_time: seconds(1),
            delivered: 2_000_000,
            delivery_time: seconds(2),
            broker_cpu: Some(CpuTime { user: seconds(1), system: seconds(1) }),
            ..Outcome::default()
        };
        let cpu = CpuTime { user: Duration::ZERO, system: seconds(1) };
        let relay = Relayed { count: 4_000_000, time: seconds(2), cpu };
        let machine = in_table("Pi|4\n, 4 × arm, Linux 6.1");
        let broker_peak_bytes = Some(12_345_678);
        Report { options, machine, outcome: Some(outcome), broker_peak_bytes, relay: Some(relay) }
    }

    #[test]
    fn for_a_person() {
        let text = report(&Options::default()).text();
        for part in [
            "16 B, 1 publisher, 1 consumer, 1 queue, ack auto\n",
            "delivered      2,000,000 messages in 2.000 s, 1,000,000 msg/s, 16.0 MB/s\n",
            "broker CPU     2.00 s (1.00 user, 1.00 system), 1,000,000 msg/s per CPU-second, 1000 ns",
            "broker memory  12.3 MB at most\n",
            "the broker     0.50 of the bare relay, 0.25 of it per CPU-second\n",
            concat!(
                "to share       | Pi/4/, 4 × arm, Linux 6.1 | ",
                env!("CARGO_PKG_VERSION"),
                " | 16 B, 1 publisher, 1 consumer, 1 queue, ack auto | 1,000,000 | 1000 ns | 12.3 MB |\n"
            ),
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn for_a_program() {
        let json = report(&Options::default()).json();
        assert!(json.starts_with("{\"size\":16,") && json.ends_with("}\n"), "{json}");
        for part in ["\"msg_per_s\":1000000,", "\"of_relay\":0.500000,", "\"persistent\":false,"] {
            assert!(json.contains(part), "{json}");
        }
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!([0.4, 999.0, 1000.0, 1_234_567.8].map(grouped), ["0", "999", "1,000", "1,234,568"]);
        assert_eq!([900, 45_000, 1_500_000, 2_000_000_000].map(time), ["1 µs", "45 µs", "1.50 ms", "2.00 s"]);
    }
}
