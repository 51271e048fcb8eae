//! The thread that does what would hold the loop up: passwords, handshakes of TLS, and reading the
//! configuration again. It has the certificates, and the last time that is known.

use std::io;
use std::path::Path;
use std::sync::Arc;

use mio::Waker;

use leveret_config::Config;
use leveret_server::{CertificateState, WorkerJob, WorkerResult};
use leveret_tls::{CertificateStore, KnownTime};

use super::bridge_file;
use super::helper::Helper;

/// Starts the thread; with each result comes what is to be known of the certificates.
///
/// # Errors
/// The system starts no more threads.
pub(super) fn start(
    waker: Arc<Waker>,
    mut certificates: Option<CertificateStore>,
    data_dir: &Path,
) -> io::Result<Helper<WorkerJob, (WorkerResult, CertificateState)>> {
    let folder = data_dir.to_path_buf();
    let mut known = KnownTime::kept_in(data_dir);
    let work = move |job: WorkerJob| {
        let result = run(job, certificates.as_mut(), &mut known, &folder);
        (result, CertificateState::of(certificates.as_ref()))
    };
    Helper::start("worker", waker, work)
}

fn run(
    job: WorkerJob,
    certificates: Option<&mut CertificateStore>,
    known: &mut KnownTime,
    folder: &Path,
) -> WorkerResult {
    match job {
        WorkerJob::Password(login) => login.check(),
        WorkerJob::Handshake(shake) => shake.step(certificates, known),
        WorkerJob::Note(notes) => {
            WorkerResult::Note(bridge_file::write(folder, &notes).map_err(|error| error.to_string()))
        }
        WorkerJob::Certificates => {
            certificates.map(CertificateStore::look_again);
            WorkerResult::Certificates
        }
        WorkerJob::Reload(config) => WorkerResult::Reload(Box::new(reload(&config, certificates))),
    }
}

/// Reads the configuration again, and of one that can be the certificates.
fn reload(before: &Config, certificates: Option<&mut CertificateStore>) -> Result<Config, String> {
    let mut config = before.again().map_err(|error| error.to_string())?;
    config.fit(super::sizes::record_sizes).map_err(|error| config.blame(&error).to_string())?;
    if let Some(certificates) = certificates
        && !certificates.reload(&config.tls)
    {
        config.tls.clone_from(&before.tls);
    }
    Ok(config)
}
