//! Which socket is the broker's.
//!
//! Always true: what was said goes before what is guessed; a folder beside where one happens to stand counts
//! only when it is one's own, so nobody can lay out a socket to be told passwords.

use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leveret_config::{Config, Layer};
use leveret_daemon::SOCKET_NAME;
use leveret_management::http::encode;

use super::args::Call;
use super::client::{Client, Reply};
use super::failure::{Failure, NOT_PERMITTED, UNAVAILABLE, USAGE};

/// Where the packaged broker keeps its data, and its configuration.
const PACKAGED_DATA_DIR: &str = "/var/lib/leveret";
const PACKAGED_CONFIG: &str = "/etc/leveret/leveret.toml";
/// How long an answer may take unless it was said.
pub(super) const TIMEOUT: Duration = Duration::from_secs(60);

/// Connects to the broker that is meant.
pub(super) fn connect(call: &Call) -> Result<Client, Failure> {
    let candidates = candidates(call)?;
    let socket = candidates.iter().find(|socket| fs::symlink_metadata(socket).is_ok()).or(candidates.first());
    let Some(socket) = socket else {
        return Err(absent(&candidates, &io::ErrorKind::NotFound.into()));
    };
    let timeout = call.timeout.unwrap_or(TIMEOUT);
    Client::connect(socket, Some(timeout)).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => Failure::new(
            NOT_PERMITTED,
            format!(
                "Error: {} is for root and for the user the broker runs as; try sudo leveretctl",
                socket.display()
            ),
        ),
        _ => absent(&candidates, &error),
    })
}

/// Asks the broker that is meant for one thing: a verb, the words of the path, a body.
pub(super) fn ask(call: &Call, verb: &str, path: &[&str], body: &str) -> Result<Reply, Failure> {
    let path: String = path.iter().map(|word| format!("/{}", encode(word))).collect();
    connect(call)?.ask(verb, &format!("/api{path}"), "", body)
}

/// Sockets that may be the broker's, the likeliest first.
fn candidates(call: &Call) -> Result<Vec<PathBuf>, Failure> {
    if let Some(socket) = &call.socket {
        return Ok(vec![socket.clone()]);
    }
    if let Some(socket) = env::var_os("LEVERET_SOCKET").filter(|socket| !socket.is_empty()) {
        return Ok(vec![socket.into()]);
    }
    data_dirs(call).map(|found| found.into_iter().map(|folder| folder.join(SOCKET_NAME)).collect())
}

/// Folders that may be the broker's, the likeliest first.
pub(super) fn data_dirs(call: &Call) -> Result<Vec<PathBuf>, Failure> {
    if let Some(folder) = &call.data_dir {
        return Ok(vec![folder.clone()]);
    }
    let gather = |file: Option<&Path>| Config::gather(file, Layer::default());
    if let Some(file) = &call.config {
        let config = gather(Some(file)).map_err(|error| Failure::new(USAGE, format!("Error: {error}")))?;
        return Ok(vec![config.data_dir]);
    }
    let mut found = Vec::new();
    // Without a file nothing can be wrong with it.
    if let Ok(config) = gather(None)
        && (config.data_dir.is_absolute() || is_own(&config.data_dir))
    {
        found.push(config.data_dir);
    }
    if let Ok(config) = gather(Some(Path::new(PACKAGED_CONFIG)))
        && config.data_dir.is_absolute()
    {
        found.push(config.data_dir);
    }
    found.push(PACKAGED_DATA_DIR.into());
    found.dedup();
    Ok(found)
}

/// The file of the broker's flight recorder, as far as a configuration tells it.
pub(super) fn flight_recorder(call: &Call) -> Option<PathBuf> {
    let file = call.config.as_deref().unwrap_or(Path::new(PACKAGED_CONFIG));
    Config::gather(Some(file), Layer::default()).ok()?.flight_recorder
}

/// Whether a folder belongs to who asks.
fn is_own(folder: &Path) -> bool {
    fs::symlink_metadata(folder).is_ok_and(|found| found.uid() == rustix::process::geteuid().as_raw())
}

fn absent(candidates: &[PathBuf], error: &io::Error) -> Failure {
    let tried: Vec<String> = candidates.iter().map(|socket| socket.display().to_string()).collect();
    Failure::new(
        UNAVAILABLE,
        format!(
            "Error: no broker answers at {} ({error}).\n\n\
             Is it running? Try: systemctl status leveret\n\
             Does it keep its data elsewhere? Name the folder with --data-dir, or the socket with --socket \
             or LEVERET_SOCKET",
            tried.join(" nor at ")
        ),
    )
}
