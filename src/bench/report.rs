//! The results: figures with a distribution of times, shown as a table with a line to share, or as JSON.

use std::env::consts::ARCH;
use std::fs;
use std::thread;
use std::time::Duration;

use leveret_core::version::build_version;

use super::options::{PROGRAM, Workload};
use super::run::Outcome;

/// The heading of the column of workloads.
const CHECKED: &str = "every message checked";
const COLUMN_WIDTH: usize = 12;
/// Linux counts CPU time in 10 ms: less than this would be too inexact.
const CPU_TIME_MIN: Duration = Duration::from_millis(50);
/// A bucket is the exponent and the first 5 bits of the fraction of a floating-point number.
const BUCKET_SHIFT: u32 = f32::MANTISSA_DIGITS - 1 - 5;

/// Counts times in nanoseconds, by bucket.
#[derive(Clone, Debug, Default)]
pub(crate) struct Histogram(Vec<u64>);

impl Histogram {
    /// Counts a time.
    #[inline]
    pub(crate) fn record(&mut self, ns: u64) {
        let bucket = ((ns as f32).to_bits() >> BUCKET_SHIFT) as usize;
        if bucket >= self.0.len() {
            self.0.resize(bucket + 1, 0);
        }
        self.0[bucket] += 1;
    }

    /// Adds the counts of another histogram.
    pub(crate) fn add(&mut self, other: &Self) {
        self.0.resize(self.0.len().max(other.0.len()), 0);
        self.0.iter_mut().zip(&other.0).for_each(|(count, more)| *count += more);
    }

    /// Returns the time in µs that is not exceeded by this share of all times; `None` without any. It is at most 1/32
    /// too high.
    fn quantile(&self, share: f64) -> Option<f64> {
        let count: u64 = self.0.iter().sum();
        let rank = ((count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let found = self.0.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        found.map(|bucket| f64::from(f32::from_bits((bucket as u32 + 1) << BUCKET_SHIFT)) / 1e3)
    }
}

/// A figure: its key in JSON, its heading in the table or nothing, its value if it is known, and how it is
/// shown in the table.
type Figure = (&'static str, &'static str, Option<f64>, fn(f64) -> String);

impl Outcome {
    fn figures(&self) -> [Figure; 11] {
        // Without consumers, the rate is that of sending.
        let tally = if self.received.count > 0 { &self.received } else { &self.sent };
        let rate = tally.count as f64 / tally.ended.as_secs_f64().max(1e-9);
        let cpu = self.broker_cpu.filter(|cpu| *cpu >= CPU_TIME_MIN);
        let (latency, confirm) = (&self.received.times, &self.sent.times);
        let count = self.sent.count as f64;
        let per_cpu = cpu.map(|cpu| count / cpu.as_secs_f64());
        let bytes = self.broker_bytes.map(|bytes| bytes as f64);
        [
            ("msg_per_s", "msg/s", Some(rate), grouped),
            ("latency_p50_us", "latency p50", latency.quantile(0.5), time),
            ("latency_p99_us", "latency p99", latency.quantile(0.99), time),
            ("latency_p99.9_us", "", latency.quantile(0.999), time),
            ("confirm_p50_us", "confirm p50", confirm.quantile(0.5), time),
            ("confirm_p99_us", "confirm p99", confirm.quantile(0.99), time),
            ("msg_per_broker_cpu_s", "CPU/msg", per_cpu, |rate| format!("{:.2} µs", 1e6 / rate)),
            ("broker_peak_bytes", "memory", bytes, |bytes| format!("{:.1} MB", bytes / 1e6)),
            ("published", "", Some(count), grouped),
            ("publish_s", "", Some(self.sent.ended.as_secs_f64()), grouped),
            ("delivered", "", Some(self.received.count as f64), grouped),
        ]
    }
}

/// Returns the result of a workload as one line of JSON, without figures that are not known.
pub(crate) fn json(workload: &Workload, outcome: &Outcome) -> String {
    let mut line = format!("{{\"workload\":\"{workload}\"");
    for (key, _, value, _) in outcome.figures() {
        line += &value.map_or(String::new(), |value| format!(",\"{key}\":{value}"));
    }
    line + "}\n"
}

/// Adds the cells of a workload to the line to share, and returns its row of the table. The first row is below the
/// head of the table.
pub(crate) fn row(workload: &Workload, outcome: &Outcome, line_to_share: &mut String) -> String {
    let (mut head, mut row, mut shared) = (String::new(), String::new(), Vec::new());
    for (_, heading, value, show) in outcome.figures().into_iter().filter(|figure| !figure.1.is_empty()) {
        let cell = value.map_or("-".to_string(), show);
        head += &format!("{heading:>COLUMN_WIDTH$}");
        row += &format!("{cell:>COLUMN_WIDTH$}");
        shared.extend(value.map(|_| format!("{cell} {heading}")));
    }
    row += &format!("  {workload}\n");
    if line_to_share.is_empty() {
        let (machine, broker) = (in_cell(&machine()), in_cell(&outcome.broker));
        *line_to_share = format!("to share: | {machine} | {broker} | {PROGRAM} {} |", build_version());
        row = format!("{head}  {CHECKED}\n{row}");
    }
    *line_to_share += &format!(" {workload}: {} |", shared.join(", "));
    row
}

/// Returns the model of this machine, if the device tree names it, its processors and its kernel.
fn machine() -> String {
    let model = fs::read_to_string("/proc/device-tree/model").unwrap_or_default();
    let separator = if model.is_empty() { "" } else { ", " };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{}{separator}{cores} × {ARCH}, Linux {}", model.trim_end_matches('\0'), kernel.trim_end())
}

/// Replaces characters that would end the cell of a table.
fn in_cell(text: &str) -> String {
    text.replace(|c: char| c.is_control() || c == '|', "/")
}

fn time(us: f64) -> String {
    match us {
        ..1e3 => format!("{us:.0} µs"),
        ..1e6 => format!("{:.2} ms", us / 1e3),
        _ => format!("{:.2} s", us / 1e6),
    }
}

/// Returns a number without decimals, with commas between thousands.
fn grouped(number: f64) -> String {
    let mut text = format!("{number:.0}");
    for at in (1..text.len()).rev().filter(|at| (text.len() - at) % 3 == 0).collect::<Vec<_>>() {
        text.insert(at, ',');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{self, Command};

    fn example(line: &str) -> (Workload, Outcome) {
        let seconds = Duration::from_secs;
        let mut outcome = Outcome { broker: "A|B 1.2".to_string(), ..Outcome::default() };
        (outcome.sent.count, outcome.sent.ended) = (2_000_000, seconds(1));
        (outcome.received.count, outcome.received.ended) = (2_000_000, seconds(2));
        outcome.received.times.record(1_500_000);
        (outcome.broker_cpu, outcome.broker_bytes) = (Some(seconds(3)), Some(12_345_678));
        let parsed = options::parse(line.split_whitespace().map(Into::into)).expect(line);
        let Command::Measure(options) = parsed else { panic!("{line}") };
        (options.workloads[0].clone(), outcome)
    }

    #[test]
    fn a_table_and_a_line_to_share() {
        let (workload, outcome) = example("--size 20");
        let mut shared = String::new();
        let text = super::row(&workload, &outcome, &mut shared);
        let row = text.lines().nth(1).expect("a row below the head");
        let columns: Vec<&str> = row.split("  ").map(str::trim).filter(|column| !column.is_empty()).collect();
        assert_eq!(
            columns,
            ["1,000,000", "1.51 ms", "1.51 ms", "-", "-", "1.50 µs", "12.3 MB", "20 B, ack auto"]
        );
        assert_eq!(super::row(&workload, &outcome, &mut shared).lines().count(), 1);
        let figures =
            "1,000,000 msg/s, 1.51 ms latency p50, 1.51 ms latency p99, 1.50 µs CPU/msg, 12.3 MB memory";
        for part in [" × ", "| A/B 1.2 | leveret-bench 0.", &format!("| 20 B, ack auto: {figures} |")] {
            assert!(shared.contains(part), "{shared}");
        }
    }

    #[test]
    fn a_line_of_json() {
        let (workload, outcome) = example("--size 20");
        let json = super::json(&workload, &outcome);
        let start = "{\"workload\":\"20 B, ack auto\",\"msg_per_s\":1000000,\"latency_p50_us\":15";
        assert!(json.starts_with(start) && json.ends_with("}\n"), "{json}");
        assert!(json.contains(",\"msg_per_broker_cpu_s\":666666.66"), "{json}");
        assert!(!json.contains("confirm"), "{json}");
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!([0.4, 999.0, 1000.0, 1_234_567.8].map(grouped), ["0", "999", "1,000", "1,234,568"]);
        assert_eq!([0.9, 45.0, 1500.0, 2e6].map(time), ["1 µs", "45 µs", "1.50 ms", "2.00 s"]);
    }

    #[test]
    fn quantiles_are_close() {
        let mut all = Histogram::default();
        assert_eq!(all.quantile(0.5), None);
        all.record(1_000_000);
        (1..1000).for_each(|us| all.record(us * 1000));
        let mut more = Histogram::default();
        more.add(&all);
        for (share, exact) in [(0.001, 1.0), (0.263, 263.0), (0.99, 990.0), (1.0, 1000.0)] {
            let found = more.quantile(share).expect("times");
            assert!((exact..=exact * 33.0 / 32.0).contains(&found), "{share}: {found}");
        }
        all.record(0);
        all.record(u64::MAX);
    }
}
