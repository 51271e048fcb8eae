//! `leveret bench`: how fast a broker is, what that costs it, and whether everything arrived.
//!
//! Publishers and consumers are threads of this process with blocking sockets of their own; what they send
//! is made once and only patched, what they receive is read in place, so that the broker is what is
//! measured. It speaks AMQP with `wire` and nothing else of the broker's, so any other broker can be
//! measured the same way. Always true: a run whose numbers are printed has delivered every message once,
//! whole and in order; otherwise there is a sentence and no number.
//!
//! | file        | what it is for                                                                |
//! |-------------|-------------------------------------------------------------------------------|
//! | `options`   | the command line                                                              |
//! | `url`       | where the broker is                                                           |
//! | `plan`      | who publishes to which queue, and who consumes from it                        |
//! | `topology`  | declares that, and deletes it                                                 |
//! | `link`      | a connection                                                                  |
//! | `body`      | what is in a message, and whether it is what was sent                         |
//! | `batch`     | messages ready to be sent                                                     |
//! | `publish`   | a publisher; `pace` at a rate, `window` with confirms                         |
//! | `consume`   | a consumer                                                                    |
//! | `stage`     | one run of all of them, with what they share in `run`                         |
//! | `relay`     | the same without a broker                                                     |
//! | `own`       | a broker started for the bench                                                |
//! | `process`   | what a process cost; `histogram` how long things took; `report` all of it told |
//! | `error`     | why a measurement came to nothing                                              |

mod batch;
mod body;
mod consume;
pub mod error;
mod histogram;
mod link;
pub mod options;
mod own;
mod pace;
mod plan;
mod process;
mod publish;
mod relay;
mod report;
mod run;
mod stage;
mod topology;
mod url;
mod window;

use error::BenchError;
use link::Link;
use options::{BrokerChoice, Options, Relay};
use own::OwnBroker;
use plan::Plan;
use report::Report;
use stage::Outcome;
use url::Url;

/// Measures; gives what is to be printed.
///
/// # Errors
/// There is no broker, it does not do what a broker does, or a message did not arrive as it was sent.
pub fn run(options: &Options) -> Result<String, BenchError> {
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
