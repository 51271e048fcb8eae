//! The drop-in for the systemd unit: settings that follow from the configuration. `leveret.generator` prints it with
//! `leveret check --drop-in` at each boot and each `systemctl daemon-reload`.
//!
//! The unit has `ProtectSystem=strict`, so a data directory elsewhere needs `ReadWritePaths=`. `ProtectHome=yes` hides
//! all files below `/home`, `/root` and `/run/user`. If the configuration names such files, `ProtectHome=tmpfs` replaces
//! it. These folders then contain only what is bound into them.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Component, Path, PathBuf};

use leveret_config::{Config, board};
use leveret_daemon::StartError;

/// The folders that the unit makes writable by itself: `StateDirectory=`, `RuntimeDirectory=` and `PrivateTmp=`.
/// `ProtectSystem=strict` does not apply to `/dev`.
const WRITABLE: [&str; 5] = [STATE_DIRECTORY, "/run/leveret", "/tmp", "/var/tmp", "/dev"];
/// The data directory of the packaged unit. The unit itself waits for its mount.
const STATE_DIRECTORY: &str = "/var/lib/leveret";
/// Folders of the system. The sandbox stays closed for them as a whole: a socket or a flight recorder needs a folder of its
/// own there.
const OF_SYSTEM: [&str; 13] = [
    "/", "/bin", "/boot", "/etc", "/home", "/lib", "/proc", "/root", "/run", "/sbin", "/sys", "/usr", "/var",
];
/// Folders of the system that also stay closed with all that is in them, except for a data directory.
const CLOSED: [&str; 2] = ["/etc", "/usr"];
/// The folders that `ProtectHome=` hides.
const HOMES: [&str; 3] = ["/home", "/root", "/run/user"];

/// The folders and files to which the unit must give access.
#[derive(Default)]
struct Paths {
    /// The mounts that the start needs.
    mounts: Option<PathBuf>,
    writable: BTreeSet<PathBuf>,
    /// Writable, and below one of [`HOMES`].
    bound: BTreeSet<PathBuf>,
    /// Below one of [`HOMES`].
    bound_read_only: BTreeSet<PathBuf>,
}

/// Returns a drop-in for the systemd unit. `[Service]` is its last section, so that the generator can add lines.
///
/// # Errors
/// The broker would not start.
pub(super) fn drop_in(mut config: Config) -> Result<String, StartError> {
    let table = leveret_daemon::derive_limits(&mut config)
        .map_err(|error| StartError::Limits(config.locate_error(&error)))?;
    let bytes = board::cgroup_bytes(config.memory_limit_bytes, table.kernel_bytes);
    let paths = Paths::of(&config);
    let mut lines = String::new();
    if let Some(path) = &paths.mounts {
        let _ = writeln!(lines, "[Unit]\nRequiresMountsFor={}", quoted("", path));
    }
    let _ = writeln!(lines, "[Service]\nMemoryMax={bytes}");
    if !paths.bound.is_empty() || !paths.bound_read_only.is_empty() {
        lines.push_str("ProtectHome=tmpfs\n");
    }
    // A missing path must not prevent the start: the broker's own error says what to do. Hence the minus.
    let lists = [
        ("ReadWritePaths", &paths.writable),
        ("BindPaths", &paths.bound),
        ("BindReadOnlyPaths", &paths.bound_read_only),
    ];
    for (key, list) in lists {
        for path in list {
            let _ = writeln!(lines, "{key}={}", quoted("-", path));
        }
    }
    Ok(lines)
}

impl Paths {
    fn of(config: &Config) -> Self {
        let mut paths = Self::default();
        if let Some(data) = absolute(&config.data_dir) {
            paths.add_writable(data.clone());
            paths.mounts = Some(data).filter(|data| data != Path::new(STATE_DIRECTORY));
        }
        // The broker creates these files, so their folders must be writable. For a file, a home directory itself is not
        // bound, because everything in it would become visible and writable. A data directory is what the operator named.
        for file in [&config.unix.path, &config.flight_recorder].into_iter().flatten() {
            let is_open =
                |folder: &&Path| !is_home(folder) && CLOSED.iter().all(|closed| !folder.starts_with(closed));
            if let Some(folder) = absolute(file).as_deref().and_then(Path::parent).filter(is_open) {
                paths.add_writable(folder.to_path_buf());
            }
        }
        for file in files_read(config) {
            paths.add_read(file);
        }
        paths
    }

    fn add_writable(&mut self, folder: PathBuf) {
        let is_of_system = OF_SYSTEM.iter().any(|closed| folder == Path::new(closed));
        if is_of_system || WRITABLE.iter().any(|writable| folder.starts_with(writable)) {
            return;
        }
        let paths = if is_hidden(&folder) { &mut self.bound } else { &mut self.writable };
        paths.insert(folder);
    }

    /// Binds the folder of the file, because a bound file would stay the old one after a renewal that replaces it. A
    /// home directory itself is not bound: its other files do not concern the broker, and its mode often forbids access.
    fn add_read(&mut self, file: &Path) {
        let Some(file) = absolute(file).filter(|file| is_hidden(file)) else { return };
        let folder = file.parent().filter(|folder| !is_home(folder)).map(Path::to_path_buf);
        let path = folder.unwrap_or(file);
        if !self.bound.iter().any(|bound| path.starts_with(bound)) {
            self.bound_read_only.insert(path);
        }
    }
}

/// Returns the files of the configuration that the broker reads.
fn files_read(config: &Config) -> impl Iterator<Item = &Path> {
    let tls = &config.tls;
    let listeners = tls.certificates.iter().chain(&tls.keys).chain(&tls.client_ca).chain(&tls.crls);
    let bridges = config.bridges.iter().flat_map(|bridge| {
        let identity = bridge.tls.identity.iter().flat_map(|(certificate, key)| [certificate, key]);
        bridge.password_file.iter().chain(&bridge.tls.ca_file).chain(identity)
    });
    let files = listeners.chain(bridges).chain(&config.load_definitions).map(PathBuf::as_path);
    // `board` is the name of a built-in profile, or the path of another one.
    files.chain([Path::new(&config.board)])
}

/// Returns the path without `.` and `..`, which systemd refuses. A service runs in `/`, so a relative path begins there.
/// Returns `None` for a path with a control character, because a line feed would begin another setting.
fn absolute(path: &Path) -> Option<PathBuf> {
    if path.to_str()?.chars().any(char::is_control) {
        return None;
    }
    let mut whole = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => whole.push(name),
            Component::ParentDir => {
                whole.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Some(whole)
}

/// Returns whether `ProtectHome=` hides this path.
fn is_hidden(path: &Path) -> bool {
    HOMES.iter().any(|home| path.starts_with(home) && path != Path::new(home))
}

/// Returns whether this folder is a home directory, or contains all of them.
fn is_home(folder: &Path) -> bool {
    let is_one = |folder: &Path| HOMES.iter().any(|home| folder == Path::new(home));
    is_one(folder) || (folder.parent().is_some_and(is_one) && !folder.starts_with("/root"))
}

/// Quotes a path for a unit file. A percent sign would begin a specifier.
fn quoted(prefix: &str, path: &Path) -> String {
    let text = path.display().to_string().replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%");
    format!("\"{prefix}{text}\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use leveret_config::Layer;
    use leveret_core::limits::Megabytes;

    const GUIDE: &str = include_str!("../../systemd/guide/configuration.md");

    /// The lines of the drop-in for this data directory, without `MemoryMax=`.
    fn lines(change: impl FnOnce(&mut Config)) -> Vec<String> {
        let mut config = Config::gather(None, Layer::default()).unwrap();
        config.data_dir = STATE_DIRECTORY.into();
        change(&mut config);
        let text = drop_in(config).unwrap();
        text.lines().filter(|line| !line.starts_with("MemoryMax=")).map(str::to_string).collect()
    }

    /// The guide's table of profiles has the `MemoryMax=` that [`drop_in`] writes.
    #[test]
    fn the_guide_has_the_memory_max_of_each_profile() {
        for board in &board::BOARDS {
            let mut flags = Layer::default();
            flags.board = Some(board.name.to_string());
            flags.management = Some(Vec::new());
            let text = drop_in(Config::gather(None, flags).unwrap()).unwrap();
            let bytes =
                text.lines().find_map(|line| line.strip_prefix("MemoryMax=")).unwrap().parse().unwrap();
            let row = GUIDE.lines().find(|line| line.starts_with(&format!("| `{}` |", board.name))).unwrap();
            assert!(row.ends_with(&format!("| {} |", Megabytes(bytes))), "{row}: {bytes}");
        }
    }

    #[test]
    fn a_data_directory_elsewhere_is_writable_and_its_mount_is_required() {
        assert_eq!(lines(|_| {}), ["[Service]"]);
        let found = lines(|config| config.data_dir = "/srv/mqtt/../leveret".into());
        let wanted =
            ["[Unit]", "RequiresMountsFor=\"/srv/leveret\"", "[Service]", "ReadWritePaths=\"-/srv/leveret\""];
        assert_eq!(found, wanted);
        // A service runs in the root folder.
        let found = lines(|config| config.data_dir = "data".into());
        assert_eq!(found[3], "ReadWritePaths=\"-/data\"");
        // Only the mount is missing below the state directory.
        let found = lines(|config| config.data_dir = "/var/lib/leveret/card".into());
        assert_eq!(found, ["[Unit]", "RequiresMountsFor=\"/var/lib/leveret/card\"", "[Service]"]);
    }

    #[test]
    fn a_path_is_quoted_and_cannot_add_a_setting() {
        let found = lines(|config| config.data_dir = "/srv/100% \"a\\b\"".into());
        assert_eq!(found[1], r#"RequiresMountsFor="/srv/100%% \"a\\b\"""#);
        assert_eq!(lines(|config| config.data_dir = "/srv/a\nUser=root".into()), ["[Service]"]);
        let root = lines(|config| config.data_dir = "/".into());
        assert!(!root.iter().any(|line| line.starts_with("ReadWritePaths=")), "{root:?}");
    }

    #[test]
    fn a_hidden_data_directory_is_bound() {
        let found = lines(|config| config.data_dir = "/home/pi/leveret".into());
        assert_eq!(found[2..], ["[Service]", "ProtectHome=tmpfs", "BindPaths=\"-/home/pi/leveret\""]);
    }

    #[test]
    fn files_below_the_home_directories_are_bound_with_their_folder() {
        let found = lines(|config| {
            config.tls.certificates = vec!["/etc/leveret/a.pem".into(), "/home/pi/certs/b.pem".into()];
            config.tls.keys = vec!["/etc/leveret/a.key".into(), "/root/b.key".into()];
            config.tls.client_ca = Some("/run/user/1000/ca.pem".into());
            config.tls.crls = vec!["/home/pi/crl/a.pem".into()];
            config.load_definitions = Some("/home/definitions.json".into());
            config.board = "/home/pi/boards/mine.toml".into();
        });
        let wanted = [
            "[Service]",
            "ProtectHome=tmpfs",
            "BindReadOnlyPaths=\"-/home/definitions.json\"",
            "BindReadOnlyPaths=\"-/home/pi/boards\"",
            "BindReadOnlyPaths=\"-/home/pi/certs\"",
            "BindReadOnlyPaths=\"-/home/pi/crl\"",
            "BindReadOnlyPaths=\"-/root/b.key\"",
            "BindReadOnlyPaths=\"-/run/user/1000/ca.pem\"",
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn folders_of_a_socket_and_a_flight_recorder_are_writable() {
        let found = lines(|config| {
            config.unix.path = Some("/run/plant/leveret.sock".into());
            config.flight_recorder = Some("/run/leveret/flight".into());
        });
        assert_eq!(found, ["[Service]", "ReadWritePaths=\"-/run/plant\""]);
        // Folders of the system are not opened for a single file, and not as a data directory.
        for path in
            ["/run/leveret.sock", "/etc/leveret/leveret.sock", "/home/leveret.sock", "/usr/share/x/sock"]
        {
            assert_eq!(lines(|config| config.unix.path = Some(path.into())), ["[Service]"], "{path}");
        }
        for path in ["/home", "/etc", "/run"] {
            let found = lines(|config| config.data_dir = path.into());
            assert_eq!(found.last().map(String::as_str), Some("[Service]"), "{path}");
        }
        // The home directory itself remains hidden.
        assert_eq!(lines(|config| config.unix.path = Some("/home/pi/leveret.sock".into())), ["[Service]"]);
    }
}
