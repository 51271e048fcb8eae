//! Tests of the log of a process that panics, whose standard error is not read, or that ends quickly.
//!
//! The child process is this test with a task in its environment; its standard error is observed. No task hangs,
//! whether it is read or not.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use leveret_daemon::logging;
use leveret_test_support::built_program::patience;
use log::LevelFilter;

const TASK: &str = "LEVERET_TEST_LOG_TASK";
const LINES: u32 = 5000;
/// Far more than the second that the last lines may take.
const PATIENCE_S: u64 = 20;

/// The task of the child process; without one the test does nothing.
#[test]
fn child() {
    let Ok(task) = std::env::var(TASK) else { return };
    logging::start(LevelFilter::Info, None).expect("a thread");
    match task.as_str() {
        "lines" => (0..LINES).for_each(|number| log::info!("number {number}")),
        "panic" => {
            (0..100).for_each(|number| log::info!("number {number}"));
            let unlucky = thread::Builder::new().name("unlucky".into());
            let _ = unlucky.spawn(|| panic!("at\n{}", "once")).unwrap().join();
        }
        "fatal" => {
            (0..100).for_each(|number| log::info!("number {number}"));
            logging::log_fatal(&std::io::Error::other("nothing goes any more"));
        }
        "long" => log::info!("{}", "日\u{202e}".repeat(10_000)),
        other => panic!("{other}?"),
    }
    logging::finish();
    std::process::exit(7);
}

fn start(task: &str) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("it runs"));
    command.args(["--exact", "log_writer::child", "--nocapture"]).env(TASK, task);
    for name in ["RUST_LOG", "JOURNAL_STREAM", "RUST_BACKTRACE"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it runs again")
}

fn wait(child: &mut Child) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("it is ours") {
            return status;
        }
        if start.elapsed() > patience(PATIENCE_S) {
            let _ = child.kill();
            panic!("the child hangs");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn read(child: &mut Child) -> Vec<String> {
    let mut said = String::new();
    child.stderr.take().expect("it is piped").read_to_string(&mut said).expect("UTF-8");
    said.lines().map(str::to_string).collect()
}

fn numbers(lines: &[String]) -> Vec<u32> {
    let found = lines.iter().filter_map(|line| line.split_once("INFO  number "));
    found.map(|(_, number)| number.parse().expect("a number")).collect()
}

#[test]
fn lines_are_complete_and_in_order_with_a_reader() {
    let mut child = start("panic");
    let lines = read(&mut child);
    assert_eq!(numbers(&lines), (0..100).collect::<Vec<_>>());
    assert_eq!(wait(&mut child).code(), Some(7));
}

#[test]
fn a_panic_is_the_last_line_and_one_line() {
    let mut child = start("panic");
    let lines = read(&mut child);
    let last = lines.last().expect("a line");
    assert!(
        last.starts_with("leveret: thread 'unlucky' panicked at tests/system/process/log_writer.rs:"),
        "{last}"
    );
    assert!(last.ends_with(": at\\nonce"), "{last}");
}

#[test]
fn why_it_ends_stands_behind_all_other_lines() {
    let mut child = start("fatal");
    let lines = read(&mut child);
    assert_eq!(lines.len(), 101, "{lines:?}");
    assert_eq!(lines[100], "leveret: nothing goes any more");
}

#[test]
fn a_line_has_its_length_and_is_text() {
    let mut child = start("long");
    let lines = read(&mut child);
    assert_eq!(lines.len(), 1);
    assert!(lines[0].len() < 1100 && lines[0].ends_with("... [cut]"), "{}", lines[0].len());
    assert!(lines[0].contains("日\\u{202e}日"), "{}", lines[0]);
}

#[test]
fn a_missing_reader_delays_nothing() {
    // The pipe has room for 64 KiB, and the lines are three times that.
    for task in ["lines", "panic", "fatal"] {
        let mut child = start(task);
        let status = wait(&mut child);
        assert_eq!(status.code(), Some(7), "{task}");
    }
}

/// A reader that begins early gets all lines. One that begins a second after the end misses the last ones.
#[test]
#[ignore = "judges the clock: tests/run --full"]
fn lines_lost_by_a_late_reader_are_counted() {
    let mut child = start("lines");
    thread::sleep(Duration::from_millis(300));
    let lines = read(&mut child);
    let missing: Vec<u32> = lines
        .iter()
        .filter_map(|line| {
            line.split_once("WARN  ")?.1.split_once(" lines were dropped here")?.0.parse().ok()
        })
        .collect();
    let numbers = numbers(&lines);
    assert!(!missing.is_empty(), "the flood was none");
    assert_eq!(numbers.len() as u32 + missing.iter().sum::<u32>(), LINES);
    assert!(numbers.is_sorted(), "in their order");
    assert_eq!(numbers.last(), Some(&(LINES - 1)), "the last one is there");
    // Each gap stands where its lines are missing.
    let mut expected = 0;
    for line in &lines {
        if let Some((_, number)) = line.split_once("INFO  number ") {
            assert_eq!(number, expected.to_string());
            expected += 1;
        } else if let Some((_, rest)) = line.split_once("WARN  ") {
            expected += rest.split(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0);
        }
    }
    assert_eq!(expected, LINES);
}
