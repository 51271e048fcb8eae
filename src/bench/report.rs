//! The results: a table and a line to share, or JSON.

use std::env::consts::ARCH;
use std::fmt::Write;
use std::fs;
use std::thread;
use std::time::Duration;

use super::options::{Options, PROGRAM, Workload};
use super::run::Outcome;

/// Titles of the column of workloads. Messages without a number can come in any order.
const CHECKED: &str = "every message checked";
const CHECKED_BUT_ORDER: &str = "every message checked but its order";
/// Titles of the other columns.
const COLUMNS: [&str; 7] =
    ["msg/s", "latency p50", "latency p99", "confirm p50", "confirm p99", "CPU/msg", "memory"];
const COLUMN_WIDTH: usize = 12;
/// Percentiles in JSON.
const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)];
/// Linux counts CPU time in 10 ms: less than this would be too inexact.
const CPU_TIME_MIN: Duration = Duration::from_millis(50);

impl Outcome {
    /// Returns the rate of received messages, or of sent ones if there is no consumer.
    fn messages_per_second(&self) -> f64 {
        let tally = if self.received.count > 0 { &self.received } else { &self.sent };
        tally.count as f64 / tally.ended.as_secs_f64().max(1e-9)
    }

    /// Returns the CPU time of the broker for a message, in seconds.
    fn cpu_per_message(&self) -> Option<f64> {
        let cpu = self.broker_cpu.filter(|cpu| *cpu >= CPU_TIME_MIN)?;
        Some(cpu.as_secs_f64() / self.sent.count as f64)
    }

    /// Returns the text of each column.
    fn cells(&self) -> [String; COLUMNS.len()] {
        let [latency, confirm] = [&self.received.times, &self.sent.times];
        let time = |quantile: Option<u64>| quantile.map(time);
        let cpu = self.cpu_per_message().map(|seconds| format!("{:.2} µs", seconds * 1e6));
        let memory = self.broker_bytes.map(|bytes| format!("{:.1} MB", bytes as f64 / 1e6));
        [
            Some(grouped(self.messages_per_second())),
            time(latency.quantile(0.5)),
            time(latency.quantile(0.99)),
            time(confirm.quantile(0.5)),
            time(confirm.quantile(0.99)),
            cpu,
            memory,
        ]
        .map(|text| text.unwrap_or_else(|| "-".to_string()))
    }
}

/// Text about the workloads of a command line.
pub(crate) struct Report {
    json: bool,
    name_width: usize,
    /// The line to share so far.
    shared: String,
}

impl Report {
    pub(crate) fn new(options: &Options) -> Self {
        let names = options.workloads.iter().map(|workload| workload.to_string().len());
        let name_width = names.fold(CHECKED_BUT_ORDER.len(), usize::max);
        Self { json: options.json, name_width, shared: String::new() }
    }

    /// Returns the row of a workload, the first one below the head of the table; or its JSON.
    pub(crate) fn add(&mut self, workload: &Workload, outcome: &Outcome) -> String {
        if self.json {
            return json(workload, outcome);
        }
        let mut text = String::new();
        if self.shared.is_empty() {
            text = self.row(if workload.is_numbered() { CHECKED } else { CHECKED_BUT_ORDER }, &COLUMNS);
            let (machine, broker) = (in_cell(&machine()), in_cell(&outcome.broker));
            self.shared =
                format!("to share: | {machine} | {broker} | {PROGRAM} {} |", env!("CARGO_PKG_VERSION"));
        }
        let (name, cells) = (workload.to_string(), outcome.cells());
        text += &self.row(&name, &cells.each_ref().map(|cell| &**cell));
        let known = COLUMNS.iter().zip(cells).filter(|(_, cell)| cell != "-");
        let known: Vec<String> = known.map(|(column, cell)| format!("{cell} {column}")).collect();
        self.shared += &format!(" {name}: {} |", known.join(", "));
        text
    }

    fn row(&self, name: &str, cells: &[&str]) -> String {
        let cells = cells.iter().map(|cell| format!("{cell:>COLUMN_WIDTH$}"));
        format!("{name:width$}{}\n", cells.collect::<String>(), width = self.name_width)
    }

    /// Returns a row of a Markdown table: the machine, the broker and all figures.
    pub(crate) fn line_to_share(&self) -> String {
        if self.json { String::new() } else { format!("{}\n", self.shared) }
    }
}

/// Returns the result of a workload as one line of JSON. What is not known or not set is left out.
fn json(workload: &Workload, outcome: &Outcome) -> String {
    let mut line = format!("{{\"ack\":\"{}\",\"persistent\":{}", workload.ack, workload.persistent);
    let mut put = |name: &str, number: Option<f64>| {
        if let Some(number) = number {
            let decimals = if number.fract() == 0.0 { 0 } else { 6 };
            // Writing to a string cannot fail.
            let _ = write!(line, ",\"{name}\":{number:.decimals$}");
        }
    };
    put("size", Some(workload.size as f64));
    put("publishers", Some(workload.publishers.into()));
    put("consumers", Some(workload.consumers.into()));
    put("queues", Some(workload.queues.into()));
    put("prefetch", Some(workload.prefetch.into()));
    put("confirms", workload.confirms.map(|window| window as f64));
    put("rate", workload.rate.map(|rate| rate as f64));
    put("messages", workload.messages.map(|messages| messages as f64));
    put("seconds", workload.time.map(|time| time.as_secs_f64()));
    put("published", Some(outcome.sent.count as f64));
    put("publish_s", Some(outcome.sent.ended.as_secs_f64()));
    put("delivered", Some(outcome.received.count as f64));
    put("delivery_s", Some(outcome.received.ended.as_secs_f64()));
    put("msg_per_s", Some(outcome.messages_per_second()));
    put("broker_cpu_s", outcome.broker_cpu.map(|cpu| cpu.as_secs_f64()));
    put("msg_per_broker_cpu_s", outcome.cpu_per_message().map(f64::recip));
    put("broker_peak_bytes", outcome.broker_bytes.map(|bytes| bytes as f64));
    for (name, times) in [("latency", &outcome.received.times), ("confirm", &outcome.sent.times)] {
        for (quantile, share) in QUANTILES {
            put(&format!("{name}_{quantile}_us"), times.quantile(share).map(|ns| ns as f64 / 1e3));
        }
    }
    line + "}\n"
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

fn time(ns: u64) -> String {
    match ns {
        0..1_000_000 => format!("{:.0} µs", ns as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} ms", ns as f64 / 1e6),
        _ => format!("{:.2} s", ns as f64 / 1e9),
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

    fn example(line: &str) -> (Options, Outcome) {
        let seconds = Duration::from_secs;
        let mut outcome = Outcome { broker: "A|B 1.2".to_string(), ..Outcome::default() };
        (outcome.sent.count, outcome.sent.ended) = (2_000_000, seconds(1));
        (outcome.received.count, outcome.received.ended) = (2_000_000, seconds(2));
        outcome.received.times.record(1_500_000);
        (outcome.broker_cpu, outcome.broker_bytes) = (Some(seconds(3)), Some(12_345_678));
        let parsed = options::parse(line.split_whitespace().map(Into::into)).expect(line);
        let Command::Measure(options) = parsed else { panic!("{line}") };
        (options, outcome)
    }

    #[test]
    fn a_table_and_a_line_to_share() {
        let (options, outcome) = example("--size 20");
        let mut report = Report::new(&options);
        let text = report.add(&options.workloads[0], &outcome);
        let row = text.lines().nth(1).expect("a row below the head");
        let columns: Vec<&str> = row.split("  ").map(str::trim).filter(|column| !column.is_empty()).collect();
        assert_eq!(
            columns,
            ["20 B, ack auto", "1,000,000", "1.51 ms", "1.51 ms", "-", "-", "1.50 µs", "12.3 MB"]
        );
        assert_eq!(report.add(&options.workloads[0], &outcome).lines().count(), 1);
        let shared = report.line_to_share();
        let figures =
            "1,000,000 msg/s, 1.51 ms latency p50, 1.51 ms latency p99, 1.50 µs CPU/msg, 12.3 MB memory";
        for part in [" × ", "| A/B 1.2 | leveret-bench 0.", &format!("| 20 B, ack auto: {figures} |")] {
            assert!(shared.contains(part), "{shared}");
        }
    }

    #[test]
    fn a_line_of_json() {
        let (options, outcome) = example("--size 20 --json");
        let json = Report::new(&options).add(&options.workloads[0], &outcome);
        assert!(json.starts_with("{\"ack\":\"auto\",") && json.ends_with("}\n"), "{json}");
        for part in [",\"msg_per_s\":1000000,", ",\"msg_per_broker_cpu_s\":666666.666667,", ",\"seconds\":5,"]
        {
            assert!(json.contains(part), "{json}");
        }
        assert!(!json.contains("confirm"), "{json}");
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!([0.4, 999.0, 1000.0, 1_234_567.8].map(grouped), ["0", "999", "1,000", "1,234,568"]);
        assert_eq!([900, 45_000, 1_500_000, 2_000_000_000].map(time), ["1 µs", "45 µs", "1.50 ms", "2.00 s"]);
    }
}
