//! The data directory, opening the store, and the disk threads.
//!
//! # Invariants
//! - After the start, the thread of the event loop does not access the disk.
//! - After a failed write nothing more is confirmed: the turn ends with an error, and then the process.
//! - If the store cannot be used, an error is logged and the broker runs without it. It accepts no logins
//!   then, because the users are in the store.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use std::{fs, io};

use leveret_broker::{Broker, Context, First, OpenedLog, restore};
use leveret_config::{Config, FirstUser, first_user};
use leveret_core::limits::SEGMENTS_MIN;
use leveret_core::password::{GUEST, PasswordHash};
use leveret_core::time::Now;
use leveret_server::{StorageDriver, log_file_system_full};
use leveret_storage::PendingWrites;
use leveret_storage::{
    Access, Disk, FileDisk, Log, OpenError, Report, Settings, Write, WriteDone, make_directory,
};
use mio::Waker;
use rustix::fs::{Access as FileAccess, FsWord, PROC_SUPER_MAGIC, statfs};
use rustix::io::Errno;

use super::helpers::Helper;
use super::sandbox::{self, Denial};
use super::sizes::record_sizes;
use super::start::StartError;
use super::system::entropy;

/// Maximum of `disk_limit = "auto"` in bytes.
const AUTO_LIMIT_BYTES_MAX: u64 = 8 << 30;

/// The threads that access the disk.
pub(super) struct Threads {
    /// Writes to the disk. A result includes the duration of the write in microseconds.
    pub(super) writer: Helper<Write, (WriteDone, u64)>,
    pub(super) reader: Helper<leveret_storage::Read, leveret_storage::ReadOutcome>,
}

/// The time at the start of the process, where the clock begins.
const START: Now = Now::from_ms(0);

/// Opens the store in `config.data_dir`, and restores the broker from it. Returns `None` if the store cannot
/// be used. Nothing is durable then, and no login is accepted.
///
/// # Errors
/// The store is in use by another process or was written by a newer version, or the data directory is not set
/// up as required.
pub(super) fn open(
    config: &Config,
    broker: &mut Broker,
    mut context: Context<'_>,
    waker: Arc<Waker>,
) -> Result<Option<(StorageDriver, Threads)>, StartError> {
    let directory = &config.data_dir;
    let refused = |error| StartError::Store(directory.clone(), error);
    broker.queues_mut().set_persist_all(config.store.persist_all);
    let mut files = FileDisk::new(directory);
    if let Err(error) = prepare(config, &mut files)? {
        return Ok(run_without_store(broker, context.pending_writes, directory, &error));
    }
    let settings = settings(config, directory);
    let (log, mut report) = match Log::open_files(&mut files, settings, random_identity(), START) {
        Ok(opened) => opened,
        Err(OpenError::Unreadable(error)) => {
            let error = disk_error_or_mistake(config, error)?;
            return Ok(run_without_store(broker, context.pending_writes, directory, &error));
        }
        Err(error) => return Err(refused(error)),
    };
    if let Some(error) = report.unwritable.take() {
        report.unwritable = Some(disk_error_or_mistake(config, error)?);
        if report.is_new {
            report.access.access = Access::InDoubt("a new store could not be begun");
        }
    }
    log_report(&report, directory);
    let is_writable = report.unwritable.is_none();
    let record_bytes_max = log.space().record_bytes_max() as u64;
    context.pending_writes.start(log.epoch(), is_writable, record_bytes_max);
    let (first, access) = (first_user(config, report.access.access), report.access.access);
    let opened =
        OpenedLog { log: &log, disk: &mut files, access: report.access, damage: report.reported_damage };
    restore(broker, &mut context, opened, first, START)
        .map_err(|error| refused(OpenError::Unreadable(error)))?;
    log_first_user(config, broker, access);
    let driver = StorageDriver::new(log, config.limits.frame_max as usize);
    let threads = Threads::start(files, directory, waker);
    Ok(Some((driver, threads.map_err(|error| StartError::System("start a thread", error))?)))
}

impl Threads {
    fn start(mut files: FileDisk, directory: &Path, waker: Arc<Waker>) -> io::Result<Self> {
        let timed = move |job: Write| {
            let start = Instant::now();
            let done = job.run(&mut files);
            (done, start.elapsed().as_micros() as u64)
        };
        let mut readable = FileDisk::new(directory);
        let reader = move |job: leveret_storage::Read| job.run(&mut readable);
        Ok(Self {
            writer: Helper::start("store-write", waker.clone(), timed)?,
            reader: Helper::start("store-read", waker, reader)?,
        })
    }
}

fn random_identity() -> leveret_storage::Identity {
    let (mut id, mut secret) = ([0; 16], [0; 8]);
    entropy(&mut id);
    entropy(&mut secret);
    leveret_storage::Identity { id, secret: u64::from_le_bytes(secret) }
}

fn settings(config: &Config, directory: &Path) -> Settings {
    let (store, limits) = (&config.store, &config.limits);
    let segment = u64::from(limits.segment_bytes);
    let limit = store.disk_limit_bytes.unwrap_or_else(|| auto_limit(directory));
    Settings {
        segment_bytes: limits.segment_bytes,
        commit_bytes: limits.commit_bytes_max,
        index_bytes: limits.index_bytes_max as usize,
        fixed_index_bytes: limits.fixed_index_bytes(&record_sizes(config)) as usize,
        segments_max: u32::try_from((limit / segment).max(SEGMENTS_MIN)).unwrap_or(u32::MAX),
        commit_window_ms: store.commit_window_ms.into(),
        confirm_window_ms: store.confirm_window_ms.into(),
        settle_window_ms: store.settle_window_ms.into(),
        syncs_per_s: store.syncs_per_s,
        sync_burst: store.sync_burst,
        may_create_store: !store.require_store,
    }
}

/// Returns half of the free space of the file system in bytes. Space of the broker's own files counts as
/// free.
fn auto_limit(directory: &Path) -> u64 {
    let free = rustix::fs::statvfs(directory).map_or(0, |found| found.f_bavail * found.f_frsize);
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let ours: u64 = entries.filter_map(|entry| entry.metadata().ok()).map(|found| found.len()).sum();
    ((free + ours) / 2).min(AUTO_LIMIT_BYTES_MAX)
}

/// Returns the configured first user if the store is new. Its password is hashed only then, because hashing
/// is deliberately slow.
fn first_user(config: &Config, access: Access) -> First<'_> {
    if !matches!(access, Access::New | Access::Silent) {
        return None;
    }
    let FirstUser { name, password } = &config.first_user;
    let name = name.as_deref()?;
    let is_known = password.0 == first_user::GUEST;
    let hash = if is_known { GUEST } else { PasswordHash::of(password.0.as_bytes(), &mut entropy) };
    Some((name, hash))
}

/// Logs that `default_user` has no effect on a store that has users.
fn log_first_user(config: &Config, broker: &Broker, access: Access) {
    let name = config.first_user.name.as_deref().filter(|_| config.first_user != FirstUser::default());
    if let (Some(name), Access::Whole) = (name, access)
        && !broker.access().users().any(|user| user.name == name)
    {
        log::warn!(
            "default_user and default_pass are used only for a new store: this store has users, but no user \
             {name:?}; `leveretctl add_user` adds one"
        );
    }
}

/// Makes the broker run without a store: all logins are refused, and nothing is durable.
fn run_without_store(
    broker: &mut Broker,
    pending_writes: &mut PendingWrites,
    directory: &Path,
    error: &io::Error,
) -> Option<(StorageDriver, Threads)> {
    log::error!(
        "the data directory {} cannot be used ({error}): all logins are refused, because the users are stored \
         there, and nothing is durable; repair the disk and restart the broker",
        directory.display()
    );
    pending_writes.start(0, false, 0);
    broker.mark_access_doubtful("it cannot be read", Vec::new());
    None
}

fn log_report(report: &Report, directory: &Path) {
    if report.is_full {
        log_file_system_full();
    }
    if report.is_new {
        log::info!("{}: a new store", directory.display());
        if let Some(misaligned) = leveret_storage::misaligned(directory) {
            log::warn!("{}: {misaligned}", directory.display());
        }
        if let Some(why) = leveret_storage::not_in_place(directory) {
            log::warn!("{}: {why}", directory.display());
        }
    }
    for line in report.describe_damage() {
        log::error!(
            "{0}: {line}; the rest is served; `leveret inspect {0}` shows what can be read",
            directory.display()
        );
    }
    if report.reported_damage.is_alarm() {
        log::warn!(
            "{}: the damage to the store remains an alarm until `leveretctl acknowledge_damage`; `leveret \
             inspect` lists the damage",
            directory.display()
        );
    }
    if report.footers_missing > 0 {
        log::warn!(
            "{}: {} full segment files have no footer; a power cut can cause that; if it was damage, messages may be missing",
            directory.display(),
            report.footers_missing
        );
    }
    log_groups(report, directory);
    log_access(report, directory);
    if let Some(error) = &report.unwritable {
        log::error!(
            "{} cannot be written ({error}): stored messages are delivered, publishers of persistent messages are \
             blocked, and nothing durable can be declared; repair the disk and restart the broker",
            directory.display()
        );
    }
}

/// Logs how many large transactions were undone because they had not been written completely.
fn log_groups(report: &Report, directory: &Path) {
    if report.groups_undone > 0 {
        log::warn!(
            "{}: {} large transactions that were interrupted by a power cut are undone; none of them was \
             confirmed",
            directory.display(),
            report.groups_undone
        );
    }
}

/// Logs that users and permissions were restored from their copies outside of the log, or that they may be
/// wrong.
fn log_access(report: &Report, directory: &Path) {
    if report.access.access == Access::Whole && !report.access.restored.is_empty() {
        log::warn!(
            "{}: the log had lost {} definitions of users and permissions; they were restored from the files \
             access.a and access.b",
            directory.display(),
            report.access.restored.len()
        );
    }
    if let Access::InDoubt(why) = report.access.access {
        let remedy = match report.unwritable {
            None => {
                "check them (leveret ctl list_users, list_permissions), correct them, then confirm them (leveret \
                 ctl confirm_users)"
            }
            Some(_) => "repair the disk and restart the broker",
        };
        log::error!(
            "{}: users and permissions in the store may be wrong ({why}), so all logins are refused: {remedy}",
            directory.display()
        );
    }
}

/// The folder in which `leveret restore` collects the files of a backup until it is complete.
pub const RESTORE_PART: &str = "restore.part";

/// `SYSFS_MAGIC` of linux/magic.h.
const SYSFS_MAGIC: FsWord = 0x6265_6572;

/// The state of the data directory.
enum DirectoryState {
    Directory,
    Nothing,
    /// The disk returned an error.
    Bad(io::Error),
}

/// Creates the data directory if it is missing, but no folder above it. The inner result is an error of the
/// disk.
///
/// Mistakes in the setup (a folder is missing, or belongs to another user) are distinguished from a broken
/// disk. A mistake ends the start, with an error that contains the command to type; otherwise the broker
/// might run for years without storing anything. With a broken disk the broker runs without a store.
///
/// # Errors
/// The directory, or something in it, is not set up as required.
pub(super) fn prepare(config: &Config, files: &mut FileDisk) -> Result<io::Result<()>, StartError> {
    match find(config)? {
        DirectoryState::Directory => {}
        DirectoryState::Nothing => {
            if let Err(error) = make_directory(&config.data_dir) {
                return disk_error_or_mistake(config, error).map(Err);
            }
        }
        DirectoryState::Bad(error) => return Ok(Err(error)),
    }
    // This is checked before a file is created, so that nothing is written to an empty mount point.
    expect_store(config, files)
}

/// Checks the data directory: with `require_store` it must have a store, and it must not have an incomplete
/// restore.
fn expect_store(config: &Config, files: &mut FileDisk) -> Result<io::Result<()>, StartError> {
    match files.slots() {
        Ok(slots) if slots.is_empty() && config.store.require_store => {
            Err(StartError::Store(config.data_dir.clone(), OpenError::NoStore))
        }
        Ok(slots) if slots.is_empty() && fs::symlink_metadata(config.data_dir.join(RESTORE_PART)).is_ok() => {
            let part = config.data_dir.join(RESTORE_PART);
            let why = format!(
                "a restore into it was interrupted, and a broker would create a new store with a new store's \
                 users: remove the rest (rm -r {}), and restore again",
                part.display()
            );
            Err(StartError::Directory(config.data_dir.clone(), why))
        }
        Ok(_) => Ok(Ok(())),
        Err(error) => disk_error_or_mistake(config, error).map(Err),
    }
}

/// Checks whether [`prepare`] would succeed, without creating or changing anything.
///
/// # Errors
/// See [`prepare`].
pub(super) fn dry_run(config: &Config) -> Result<io::Result<()>, StartError> {
    let directory = config.data_dir.as_path();
    let to_be_written = match find(config)? {
        DirectoryState::Directory => directory,
        DirectoryState::Nothing => parent(directory),
        DirectoryState::Bad(error) => return Ok(Err(error)),
    };
    let may = FileAccess::READ_OK | FileAccess::WRITE_OK | FileAccess::EXEC_OK;
    if let Err(error) = rustix::fs::access(to_be_written, may) {
        return disk_error_or_mistake(config, error.into()).map(Err);
    }
    if to_be_written == directory { expect_store(config, &mut FileDisk::new(directory)) } else { Ok(Ok(())) }
}

fn find(config: &Config) -> Result<DirectoryState, StartError> {
    let directory = &config.data_dir;
    // Before the directory is examined: a hidden one seems to be missing, and a store that the unit makes read-only would
    // be served without writing to it.
    if let Some(denial) = sandbox::denial(directory) {
        return Err(StartError::Directory(directory.clone(), denied_by_unit_text(directory, denial)));
    }
    match fs::metadata(directory) {
        Ok(found) if !found.is_dir() => {
            let why = "it is not a directory; move it away, or name another with data_dir (or --data-dir)";
            Err(StartError::Directory(directory.clone(), why.to_string()))
        }
        Ok(_) => expect_files(config, directory).map(|()| DirectoryState::Directory),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !config.store.require_store => {
            expect_files(config, parent(directory)).map(|()| DirectoryState::Nothing)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(StartError::Store(directory.clone(), OpenError::NoStore))
        }
        Err(error) => disk_error_or_mistake(config, error).map(DirectoryState::Bad),
    }
}

/// Refuses a data directory in a pseudo file system of the kernel. There root seems to have the permission to
/// create files, but creating one fails.
fn expect_files(config: &Config, place: &Path) -> Result<(), StartError> {
    let kind = statfs(place).map(|found| found.f_type);
    if kind.is_ok_and(|kind| kind == PROC_SUPER_MAGIC || kind == SYSFS_MAGIC) {
        let why = "no files can be created there, because it is a file system of the kernel; name another with \
                   data_dir (or --data-dir)";
        return Err(StartError::Directory(config.data_dir.clone(), why.to_string()));
    }
    Ok(())
}

fn parent(directory: &Path) -> &Path {
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// Distinguishes an error of the disk, which is returned, from a mistake in the setup.
///
/// # Errors
/// A mistake in the setup; the text says what to change.
pub(super) fn disk_error_or_mistake(config: &Config, error: io::Error) -> Result<io::Error, StartError> {
    let directory = &config.data_dir;
    let why = match error.kind() {
        io::ErrorKind::PermissionDenied => access_denied_text(directory, &error),
        io::ErrorKind::NotFound => {
            let parent = parent(directory).display();
            format!("{parent} does not exist; create it (mkdir -p {parent}), or mount its file system")
        }
        io::ErrorKind::NotADirectory => "a part of its path is not a directory; correct the path".to_string(),
        io::ErrorKind::AlreadyExists => "it is a dangling link; mount its target".to_string(),
        _ if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
            "its path contains a cycle of links; correct the path".to_string()
        }
        io::ErrorKind::IsADirectory => "there is a directory in place of a file of the store".to_string(),
        io::ErrorKind::InvalidFilename => "the path is too long".to_string(),
        _ => return Ok(error),
    };
    Err(StartError::Directory(directory.clone(), why))
}

/// Returns the text for a data directory that the systemd unit forbids to use, with the commands to type.
fn denied_by_unit_text(directory: &Path, denial: Denial) -> String {
    let forbids = match denial {
        Denial::ReadOnly => "forbids writing to it (ProtectSystem=)",
        Denial::Hidden => "hides it (ProtectHome=)",
    };
    // A hidden directory cannot be examined, so it may be missing.
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let create = match fs::metadata(directory) {
        Ok(_) => String::new(),
        Err(_) => format!(
            "create it if it is missing (as root: mkdir -p {0} && chown {user}:{group} {0}), then ",
            directory.display()
        ),
    };
    format!(
        "the systemd unit {forbids}: {create}type `systemctl daemon-reload` and `systemctl restart leveret`, as after \
         each change of data_dir; if the unit is not the packaged one, permit the directory in it (ReadWritePaths= or, \
         below /home, BindPaths= with ProtectHome=tmpfs)"
    )
}

/// Returns the text for a data directory to which the broker has no access, with the command to type.
fn access_denied_text(directory: &Path, error: &io::Error) -> String {
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    if fs::metadata(directory).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return format!(
            "it does not exist, and the broker, which runs as {0}:{1}, must not create it: {error}; create it for \
             the broker (as root: mkdir {2} && chown {0}:{1} {2}), or name another with data_dir (or --data-dir)",
            user.as_raw(),
            group.as_raw(),
            directory.display()
        );
    }
    // The directory cannot even be examined, so a folder above it forbids access.
    let closed = directory.ancestors().skip(1).find(|above| fs::metadata(above).is_ok());
    if let (Err(_), Some(above)) = (fs::metadata(directory), closed) {
        return format!(
            "the broker runs as {0}:{1} and has no access to {2}: {error}; permit it (chmod o+x {2}), or name \
             another directory with data_dir (or --data-dir)",
            user.as_raw(),
            group.as_raw(),
            above.display(),
        );
    }
    let owner = fs::metadata(directory)
        .map_or_else(|_| String::new(), |found| format!(" (it belongs to {}:{})", found.uid(), found.gid()));
    format!(
        "the broker runs as {0}:{1} and has no access to it, or to a file in it: {error}{owner}; make the broker \
         its owner (chown -R {0}:{1} {2}), or start the broker as another user",
        user.as_raw(),
        group.as_raw(),
        directory.display()
    )
}
