//! `leveret-bench`: how fast a broker is, what that costs it, and whether everything arrived.
//!
//! Publishers and consumers are threads of this process with blocking sockets of their own; what they send
//! is made once and only patched, what they receive is read in place, so that the broker is what is
//! measured. It speaks AMQP with `wire` and nothing else of the broker's, so any other broker can be
//! measured the same way. It is a program of its own, for a board that only serves needs none of it; its
//! options, units and JSON are those of the tools. Always true: a run whose numbers are printed has
//! delivered every message once, whole and in order; otherwise there is a sentence and no number.
//!
//! | file        | what it is for                                                                |
//! |-------------|-------------------------------------------------------------------------------|
//! | `program`   | the program from its arguments to its end                                     |
//! | `options`   | the command line                                                              |
//! | `url`       | where the broker is                                                           |
//! | `plan`      | who publishes to which queue, and who consumes from it                        |
//! | `topology`  | declares that, and deletes it                                                 |
//! | `link`      | a connection                                                                  |
//! | `body`      | what is in a message, and whether it is what was sent                         |
//! | `batch`     | messages ready to be sent                                                     |
//! | `publish`   | a publisher; `pace` at a rate, `window` with confirms                         |
//! | `consume`   | a consumer                                                                    |
//! | `measure`   | what is measured, one after the other, as the options say                     |
//! | `stage`     | one run of all of them, with what they share in `run`                         |
//! | `relay`     | the same without a broker                                                     |
//! | `own`       | a broker started for the bench                                                |
//! | `process`   | what a process cost; `histogram` how long things took; `report` all of it told |
//! | `error`     | why a measurement came to nothing                                              |

#![warn(clippy::unwrap_used)]

mod batch;
mod body;
mod consume;
mod error;
mod histogram;
mod link;
mod measure;
mod options;
mod own;
mod pace;
mod plan;
mod process;
pub mod program;
mod publish;
mod relay;
mod report;
mod run;
mod stage;
mod topology;
mod url;
mod window;

// The rooms that it sees, by the names they have there.
use leveret_config as config;
use leveret_tools as tool;
use leveret_wire as wire;
