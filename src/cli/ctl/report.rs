//! `report`: everything that an operator can ask a broker, in one text to attach when something went wrong,
//! and the last events that its flight recorder has, whether it answers or not;
//! and `await_startup`, for scripts that begin before it answers.
//!
//! Always true: nothing secret is in a report, for nothing here can be asked for one; what cannot be had is
//! said in its place, and the rest follows. No name gets out of its place in a line, for strangers chose
//! names, and who reads a report believes its lines.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use leveret_daemon::printable::Printable;

use super::args::Call;
use super::failure::{Failure, NO_INPUT, TIMED_OUT, UNAVAILABLE, heading, tell};
use super::find::{self, connect};
use super::{access, flight, limits, listings, operations, policies};

/// What does a command.
type Run = fn(&Call) -> Result<(), Failure>;

/// What is asked of the broker as a whole, in this order.
const OF_BROKER: [(&str, Run); 9] = [
    ("status", operations::status),
    ("environment", operations::environment),
    ("list_alarms", operations::alarms),
    ("list_users", access::list_users),
    ("list_connections", listings::connections),
    ("list_channels", listings::channels),
    ("bridge_status", listings::bridges),
    ("list_orphans", listings::orphans),
    ("list_vhosts", listings::vhosts),
];
/// What is asked of each virtual host.
const OF_VHOST: [(&str, Run); 9] = [
    ("list_permissions", access::list_permissions),
    ("list_topic_permissions", access::list_topic_permissions),
    ("list_vhost_limits", limits::list_vhost_limits),
    ("list_policies", policies::list),
    ("list_operator_policies", policies::list),
    ("list_queues", listings::queues),
    ("list_exchanges", listings::exchanges),
    ("list_bindings", listings::bindings),
    ("list_consumers", listings::consumers),
];
/// What the system says of itself, a line or some of each.
const OF_SYSTEM: [&str; 5] =
    ["/proc/version", "/proc/uptime", "/proc/loadavg", "/proc/meminfo", "/proc/device-tree/model"];
const SYSTEM_LINES_MAX: usize = 5;

/// How long a broker may take to start, and how often it is asked.
const STARTUP: Duration = Duration::from_secs(300);
const STARTUP_STEP: Duration = Duration::from_millis(200);

/// How long a broker may take to say that it is there, unless it was said; one that stands still never does.
const ANSWER: Duration = Duration::from_secs(10);
/// What the configuration calls the file of the flight recorder.
const FLIGHT_KEY: &str = "flight_recorder = ";

pub(super) fn report(call: &Call) -> Result<(), Failure> {
    if let Some(file) = call.value("file") {
        return events(Path::new(file));
    }
    let environment = environment(call);
    if let Err(failure) = &environment
        && !matches!(failure.code, UNAVAILABLE | TIMED_OUT)
    {
        return environment.map(drop);
    }
    tell(call, "Reporting everything but messages and secrets ...")?;
    part("leveretctl", env!("CARGO_PKG_VERSION"))?;
    for file in OF_SYSTEM {
        if let Ok(text) = fs::read_to_string(file) {
            let lines = text.trim_end_matches('\0').lines().take(SYSTEM_LINES_MAX);
            let lines: Vec<String> = lines.map(|line| Printable(line).to_string()).collect();
            part(file, &lines.join("\n"))?;
        }
    }
    if environment.is_ok() {
        for question in OF_BROKER {
            ask(call, question, None)?;
        }
        for vhost in vhosts(call)? {
            for question in OF_VHOST {
                ask(call, question, Some(&vhost))?;
            }
        }
    }
    let recorder = match &environment {
        Ok(text) => text.lines().find_map(|line| line.strip_prefix(FLIGHT_KEY)).and_then(unquoted),
        Err(_) => find::flight_recorder(call),
    };
    writeln!(io::stdout(), "\n{}\n", heading("events"))?;
    match recorder {
        Some(file) => events(&file).or_else(|failure| tell_failure(&failure)),
        None => Ok(writeln!(io::stdout(), "(no flight_recorder is known; --file names its file)")?),
    }
    .and(environment.map(drop))
}

/// What the broker's configuration is, if it answers at all.
fn environment(call: &Call) -> Result<String, Failure> {
    let soon = Call { timeout: call.timeout.or(Some(ANSWER)), ..call.clone() };
    let reply = connect(&soon)?.ask("GET", "/api/ctl/environment", "", "")?;
    reply.body.as_str().map(str::to_string).ok_or_else(|| Failure::refused(&reply))
}

/// The path in quotes; `None`: it is empty.
fn unquoted(text: &str) -> Option<PathBuf> {
    let path: String = serde_json::from_str(text).ok()?;
    (!path.is_empty()).then(|| path.into())
}

/// Shows what a flight recorder has.
fn events(file: &Path) -> Result<(), Failure> {
    let shown = flight::shown(file);
    let shown =
        shown.map_err(|error| Failure::new(NO_INPUT, format!("Error: {}: {error}", file.display())))?;
    writeln!(io::stdout(), "{}:\n\n{shown}", Printable(file.display()))?;
    Ok(())
}

fn part(title: &str, text: &str) -> Result<(), Failure> {
    writeln!(io::stdout(), "\n{}\n\n{text}", heading(title))?;
    Ok(())
}

/// Why something is not there, in one line: a reason names what there is.
fn tell_failure(failure: &Failure) -> Result<(), Failure> {
    let reason = failure.text.trim_end().replacen("Error:\n", "Error: ", 1);
    Ok(writeln!(io::stdout(), "{}", Printable(reason))?)
}

/// Does another command, with all columns it has. What goes wrong with it stands in its place.
fn ask(call: &Call, (name, run): (&str, Run), vhost: Option<&str>) -> Result<(), Failure> {
    let title = vhost.map_or_else(|| name.to_string(), |vhost| format!("{name} --vhost {vhost}"));
    writeln!(io::stdout(), "\n{}\n", heading(&Printable(title).to_string()))?;
    let columns = listings::columns_of(name).unwrap_or_default();
    let step = Call {
        command: name.to_string(),
        args: columns.into_iter().map(str::to_string).collect(),
        vhost: vhost.map(str::to_string),
        quiet: true,
        formatter: None,
        in_report: true,
        ..call.clone()
    };
    run(&step).or_else(|failure| tell_failure(&failure))
}

fn vhosts(call: &Call) -> Result<Vec<String>, Failure> {
    let mut names = Vec::new();
    let refused = connect(call)?.rows("/api/vhosts?columns=name", &mut |row| {
        names.extend(row.get("name").and_then(Value::as_str).map(str::to_string));
        Ok(())
    })?;
    match refused {
        Some(reply) => Err(Failure::refused(&reply)),
        None => Ok(names),
    }
}

pub(super) fn await_startup(call: &Call) -> Result<(), Failure> {
    let limit = call.timeout.unwrap_or(STARTUP);
    tell(call, &format!("Waiting for the broker to answer, for {} seconds at most ...", limit.as_secs()))?;
    let began = Instant::now();
    loop {
        match connect(call) {
            Ok(mut client) => {
                client.ask("GET", "/api/overview", "", "")?;
                return tell(call, "It answers");
            }
            Err(failure) if failure.code == UNAVAILABLE && began.elapsed() < limit => {
                thread::sleep(STARTUP_STEP);
            }
            Err(failure) => return Err(failure),
        }
    }
}
