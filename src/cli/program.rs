//! The program from its arguments to its end.
//!
//! Why it is here and not in `main.rs`: what is done once is to be small; see `Cargo.toml`.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::args::{self, Ask};
use crate::{check, ctl, inspect, restore};
use leveret_config::Config;
use leveret_daemon::{StartError, logging};

/// Does what the arguments say; the code to end with.
pub fn main() -> ExitCode {
    let code = run().unwrap_or_else(|error| {
        logging::log_fatal(error.as_ref());
        super::exit_code(error.as_ref())
    });
    logging::finish();
    code
}

fn run() -> Result<ExitCode, Box<dyn Error>> {
    match args::parse_all(std::env::args_os())? {
        Ask::Help(page) => print(&page.text())?,
        Ask::Inspect(None) => print(&inspect::options::help())?,
        Ask::Inspect(Some(options)) => return Ok(inspect::run(&options)?),
        Ask::Restore(archive, said) => {
            let config = Config::gather(said.file.as_deref(), said.flags)?;
            print(&restore::run(&archive, &config.data_dir)?)?;
        }
        Ask::Ctl(arguments) => return Ok(ctl::run(arguments)),
        Ask::Version => print(concat!("leveret ", env!("CARGO_PKG_VERSION"), "\n"))?,
        Ask::Check(said) => {
            let config = Config::gather(said.file.as_deref(), said.flags)?;
            if said.is_drop_in {
                print(&check::drop_in(config)?)?;
                return Ok(ExitCode::SUCCESS);
            }
            let found = said.connects.then(|| config.clone());
            let (report, verdict) = check::check(config);
            print(&report)?;
            verdict?;
            if let Some(config) = found {
                let (found, is_good) = leveret_daemon::try_upstreams(&config);
                print(&found)?;
                if !is_good {
                    return Ok(ExitCode::FAILURE);
                }
            }
        }
        Ask::Serve(said) => {
            let config = Config::gather(said.file.as_deref(), said.flags)?;
            let no_thread = |error| StartError::System("start the thread that writes the log", error);
            logging::start(config.log_level, config.flight_recorder.as_deref()).map_err(no_thread)?;
            leveret_daemon::serve(&config)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints to standard output. The reader of a pipe that closes it has seen enough, such as `head`.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}
