//! What the options ask to be measured: a broker, the bare relay, or both, and what is told of it.
//!
//! Always true: what was declared in a broker is deleted again, whatever became of the run.

use super::error::BenchError;
use super::link::Link;
use super::options::{BrokerChoice, Options, Relay};
use super::own::OwnBroker;
use super::plan::Plan;
use super::report::{self, Report};
use super::stage::{self, Outcome};
use super::url::Url;
use super::{process, relay, topology};

/// Measures; gives what is to be printed.
///
/// # Errors
/// There is no broker, it does not do what a broker does, or a message did not arrive as it was sent.
pub(super) fn run(options: &Options) -> Result<String, BenchError> {
    let machine = report::machine();
    let mut report = Report { options, machine, outcome: None, broker_peak_bytes: None, relay: None };
    if options.relay != Relay::Only {
        let (outcome, peak) = measure(options)?;
        (report.outcome, report.broker_peak_bytes) = (Some(outcome), peak);
    }
    if options.relay != Relay::No {
        report.relay = Some(relay::measure(options)?);
    }
    Ok(if options.json { report.json() } else { report.text() })
}

/// One run against a broker, and the most memory the broker had.
fn measure(options: &Options) -> Result<(Outcome, Option<u64>), BenchError> {
    let own = match &options.target {
        BrokerChoice::Own(arguments) => Some(OwnBroker::start(arguments)?),
        BrokerChoice::At(_) => None,
    };
    let url = match (&own, &options.target) {
        (Some(own), _) => Url::of_address(own.address()),
        (None, BrokerChoice::At(url)) => url.clone(),
        (None, BrokerChoice::Own(_)) => return Err(BenchError::GivenUp),
    };
    let plan = Plan::new(options);
    let mut control = Link::connect(&url)?;
    let found = || control.local_broker().and_then(process::find_listener);
    let broker = options.broker_pid.or(own.as_ref().map(OwnBroker::id)).or_else(found);
    let played = topology::declare(&mut control, options, &plan)
        .and_then(|()| stage::play(options, &plan, &url, broker));
    // A broker that failed the run may well fail this; the run's trouble is the one to tell.
    let deleted = topology::delete(&mut control, options, &plan).and_then(|()| control.close());
    let outcome = played?;
    deleted?;
    Ok((outcome, broker.and_then(process::peak_memory_bytes)))
}
