//! Tests of the built program as a person at a prompt uses it: output and exit code.
//!
//! A mistake of the operator gives one sentence on standard error that says what to change, and exit code 1.

use std::fs;
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};

use leveret_test_support::built_program::{self, TempDir, without_test_environment};

/// How long anything may take here before the test gives up.
const PATIENCE_S: u64 = 10;

/// The built program, with nothing of the surroundings that it listens to.
fn program() -> Command {
    built_program::leveret()
}

/// Runs the program under limits of the shell's `ulimit`.
fn limited(options: &str) -> Command {
    let mut command = Command::new("sh");
    let script = format!("ulimit {options} && exec \"$0\" \"$@\"");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_leveret")]);
    without_test_environment(command)
}

fn leveret(arguments: &[&str]) -> Output {
    program().args(arguments).output().expect("the built binary runs")
}

/// The one line on standard error of a run that must fail.
#[track_caller]
fn refusal(arguments: &[&str]) -> String {
    let output = leveret(arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(output.stdout, b"", "{output:?}");
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(said.lines().count(), 1, "{said}");
    said.trim_end().to_string()
}

/// A configuration file of its own for each test.
struct ConfigFile(PathBuf);

impl ConfigFile {
    fn new(test: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("leveret-program-{}-{test}.toml", std::process::id()));
        fs::write(&path, text).expect("the temporary folder can be written");
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }
}

impl Drop for ConfigFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A broker on a free port, from its ready line on.
pub(crate) struct Broker {
    process: Child,
    lines: Lines<BufReader<ChildStderr>>,
    /// The output before its ready line.
    first_lines: Vec<String>,
    ready_line: String,
    pub(crate) port: u16,
    _home: TempDir,
}

impl Broker {
    /// Starts one with these arguments and environment, and waits for its ready line.
    pub(crate) fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::start_by(program(), arguments, environment)
    }

    fn start_by(mut command: Command, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let home = TempDir::new("program");
        command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(home.path()).args(arguments);
        command.envs(environment.iter().copied()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("the built binary runs");
        let mut lines = BufReader::new(process.stderr.take().expect("it is piped")).lines();
        let mut first_lines = Vec::new();
        let is_ready = |line: &String| line.contains("listening on 127.0.0.1:");
        let ready_line = loop {
            match lines.next().expect("a ready line").expect("UTF-8") {
                line if is_ready(&line) => break line,
                line => first_lines.push(line),
            }
        };
        let (_, rest) = ready_line.split_once("127.0.0.1:").expect("just found");
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        let port = digits.parse().expect("a port");
        Self { process, lines, first_lines, ready_line, port, _home: home }
    }

    /// The first eleven bytes that a peer is sent after its protocol header: method 10.10 on channel 0.
    fn greeting(&self) -> [u8; 11] {
        let mut peer = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        peer.set_read_timeout(Some(built_program::patience(PATIENCE_S))).expect("a timeout can be set");
        peer.write_all(b"AMQP\0\0\x09\x01").expect("it reads");
        let mut head = [0; 11];
        peer.read_exact(&mut head).expect("it answers");
        head
    }

    /// Sends a signal and waits: the exit code, how long it took, and what was logged meanwhile.
    fn end_by(mut self, signal: &str) -> (Option<i32>, Duration, Vec<String>) {
        let start = Instant::now();
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().expect("kill runs").success());
        let said = self.lines.by_ref().map_while(Result::ok).collect();
        let status = self.process.wait().expect("it is our child");
        (status.code(), start.elapsed(), said)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the version that a program built from this checkout prints.
pub(crate) fn build_version() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let root = env!("CARGO_MANIFEST_DIR");
    if !Path::new(root).join(".git").exists() {
        return version.to_string();
    }
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(root).args(arguments).output().expect("git runs");
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_string()
    };
    if git(&["tag", "--points-at", "HEAD"]).lines().any(|tag| tag == format!("v{version}")) {
        return version.to_string();
    }
    format!("{version}~dev{}+g{}", git(&["rev-list", "--count", "HEAD"]), &git(&["rev-parse", "HEAD"])[..8])
}

#[test]
fn version_and_help_go_to_standard_output() {
    let output = leveret(&["--version"]);
    assert!(output.status.success());
    assert_eq!(output.stdout, format!("leveret {}\n", build_version()).as_bytes());
    let output = leveret(&["--help"]);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("leveret check"));
    assert_eq!(output.stderr, b"");
}

#[test]
fn an_unknown_flag_is_answered_with_the_likely_one() {
    assert_eq!(
        refusal(&["--lisen", "127.0.0.1:0"]),
        "leveret: unknown option --lisen; did you mean --listen? (see leveret --help)"
    );
}

#[test]
fn an_unknown_key_names_file_line_and_the_likely_key() {
    let file = ConfigFile::new("key", "# ours\nmemory_limt = \"64MB\"\n");
    assert_eq!(
        refusal(&["--config", file.path()]),
        format!("leveret: {}, line 2: unknown key memory_limt; did you mean memory_limit?", file.path())
    );
}

#[test]
fn a_bad_size_names_file_line_and_key() {
    let file = ConfigFile::new("size", "memory_limit = \"64 elephants\"\n");
    let said = refusal(&["check", "--config", file.path()]);
    assert!(said.contains("line 1: memory_limit: \"64 elephants\" is not a size: write"), "{said}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let said = refusal(&["--config", "/no/such/leveret.toml"]);
    assert!(said.starts_with("leveret: cannot read /no/such/leveret.toml: No such file"), "{said}");
}

#[test]
fn an_unknown_board_lists_those_there_are() {
    let said = refusal(&["--board", "toaster"]);
    assert!(said.contains("unknown board toaster; there are generic, router-64, router-128, "), "{said}");
}

/// Every board that there is a profile for.
const BOARDS: [&str; 11] = [
    "generic",
    "router-64",
    "router-128",
    "pi-zero-w",
    "pi-3",
    "pi-4",
    "pi-5",
    "pi-zero-2-w",
    "beaglebone-black",
    "imx8",
    "qemu-virt",
];

#[test]
fn check_prints_what_results_and_says_yes_for_every_board() {
    for board in BOARDS {
        let output = leveret(&["check", "--board", board]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{board}: {output:?}");
        assert!(said.contains(&format!("board = \"{board}\"\n")), "{said}");
        assert!(said.contains("\n[limits]\nconnections_max = "), "{said}");
        assert!(said.contains("\n# shared "), "{said}");
        assert!(said.contains("\n# total "), "{said}");
    }
}

/// An operator who adds TLS with client certificates need not calculate which limits to lower.
#[test]
fn every_board_has_room_for_tls() {
    let tls = "listen_tls = [\"127.0.0.1:5671\"]\n[tls]\ncertificate = \"/c\"\nkey = \"/k\"\n\
               client_ca = \"/a\"\ncrl = \"/r\"\nclient_certificates = \"require\"\n";
    for board in BOARDS {
        let file = ConfigFile::new(board, tls);
        let output = leveret(&["check", "--board", board, "--config", file.path()]);
        assert!(output.status.success(), "{board}: {}", String::from_utf8_lossy(&output.stderr));
        // The rest is served all the same.
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("# warning: [tls] certificate: /c does not exist"), "{said}");
    }
}

/// `check` refuses what a start would refuse, with the same text, and creates nothing.
#[test]
fn check_refuses_what_a_start_refuses() {
    let home = TempDir::new("check");
    let place = |name: &str| home.path().join(name).display().to_string();
    fs::write(place("file"), "text").expect("the folder can be written");
    fs::create_dir_all(place("cut/restore.part")).expect("the folder can be written");
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let free = free.expect("a free port");
    let no_key = format!("listen_tls = [\"{free}\"]\n[tls]\ncertificate = \"/c\"\n");
    let no_certificate = format!("mqtt_tls = [\"{free}\"]\n");
    let twice = format!("listen = [\"{free}\", \"{free}\"]\n");
    let twice_with_mqtt = format!("listen = [\"{free}\"]\nmqtt = [\"{free}\"]\n");
    for (text, data, why) in [
        (no_key.as_str(), "a", "[tls] key: name one file per certificate"),
        ("listen = []\n", "b", "there is no address to listen on"),
        (&no_certificate, "a", "[tls]"),
        (&twice, "c", "is named twice to listen on"),
        (&twice_with_mqtt, "c", "is named twice to listen on"),
        ("", "file", "it is not a directory; move it away"),
        ("", "none/data", "none does not exist; create it (mkdir -p "),
        ("", "file/data", "a part of its path is not a directory"),
        ("", "/proc/data", "no files can be created there"),
        ("[store]\nrequire_store = true\n", "f", "require_store"),
        ("", "cut", "a restore into it was interrupted"),
    ] {
        let file = ConfigFile::new("check-refuses", text);
        let data = place(data);
        let arguments = ["--data-dir", &data, "--config", file.path()];
        let was_there = fs::exists(&data).is_ok_and(|is_there| is_there);
        let checked = leveret(&[&["check"], &arguments[..]].concat());
        assert_eq!(checked.status.code(), Some(1), "{text}, {data}: {checked:?}");
        assert_eq!(fs::exists(&data).is_ok_and(|is_there| is_there), was_there, "a check makes nothing");
        // One that starts all the same would stay.
        let mut serve = without_test_environment(Command::new("timeout"));
        serve.args(["20", env!("CARGO_BIN_EXE_leveret"), "serve"]).args(arguments);
        let served = serve.output().expect("it runs");
        assert_eq!(served.status.code(), Some(1), "{text}, {data}: {served:?}");
        let [checked, served] =
            [checked, served].map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
        assert!(checked.contains(why), "{text}: {checked}");
        let sentence = checked.trim_end().rsplit("leveret: ").next().expect("there is one");
        assert!(served.trim_end().ends_with(sentence), "{served} and {checked}");
    }
    // Definitions stored by an earlier start are served without the file.
    for definitions in ["/nowhere.json".to_string(), place("file")] {
        let file = ConfigFile::new("check-remarks", &format!("load_definitions = \"{definitions}\"\n"));
        let output = leveret(&["check", "--data-dir", &place("new"), "--config", file.path()]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{output:?}");
        assert!(said.contains(&format!("# warning: load_definitions: {definitions}: ")), "{said}");
    }
    let data = place("new");
    let output = leveret(&["check", "--data-dir", &data]);
    assert!(output.status.success() && !home.path().join("new").exists(), "{output:?}");
}

#[test]
fn what_check_prints_is_a_configuration() {
    let printed = leveret(&["check", "--memory-limit", "150MB"]).stdout;
    let text = String::from_utf8(printed).expect("UTF-8");
    let file = ConfigFile::new("printed", &text);
    let again = leveret(&["check", "--config", file.path()]).stdout;
    // Derived values become configured ones.
    let unmarked = text.replace("  # derived from memory_limit", "");
    assert_ne!(unmarked, text);
    assert_eq!(String::from_utf8(again).expect("UTF-8"), unmarked);
}

#[test]
fn a_memory_limit_alone_is_enough_from_the_least_there_is() {
    for limit in ["40MB", "64MB", "2GB"] {
        let output = leveret(&["check", "--memory-limit", limit]);
        assert!(output.status.success(), "{limit}: {output:?}");
        let said = String::from_utf8_lossy(&output.stdout);
        let marked = |line: &str| {
            line.starts_with("connections_max = ") && line.ends_with("# derived from memory_limit")
        };
        assert!(said.lines().any(marked), "{said}");
    }
    for board in ["generic", "router-64", "pi-5"] {
        let said = refusal(&["serve", "--board", board, "--memory-limit", "1MB", "--listen", "127.0.0.1:0"]);
        let (_, least) = said.split_once("write memory_limit = ").expect("it says how much is needed");
        let least: u64 = least.split(' ').next().expect("a number").parse().expect("a number");
        for (limit, enough) in [(least, true), (least - 1, false)] {
            let limit = limit.to_string();
            let output = leveret(&["check", "--board", board, "--memory-limit", &limit, "--port", "5672"]);
            assert_eq!(output.status.success(), enough, "{board}, {limit}: {output:?}");
        }
        let limit = least.to_string();
        let broker = Broker::start(&["--board", board, "--memory-limit", &limit], &[]);
        assert_eq!(broker.greeting()[7..], [0, 10, 0, 10], "{board}: connection.start");
    }
}

#[test]
fn too_much_set_by_hand_is_refused_with_the_line_to_change() {
    let file = ConfigFile::new(
        "hand",
        "memory_limit = \"40MB\"\n[limits]\nsegment_bytes = \"64MiB\"\ncommit_bytes_max = \"16MiB\"\n",
    );
    let output = leveret(&["check", "--config", file.path()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!output.stdout.is_empty(), "the table that explains it");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("memory_limit is 40.0 MB: lower commit_bytes_max or raise memory_limit"), "{said}");
    let said = refusal(&["serve", "--config", file.path(), "--listen", "127.0.0.1:0"]);
    assert!(said.contains("lower commit_bytes_max or raise memory_limit"), "{said}");
}

#[test]
fn a_disk_limit_that_leaves_no_room_to_clean_is_refused() {
    let file = ConfigFile::new("disk", "[store]\ndisk_limit = \"16MB\"\n");
    let said = refusal(&["serve", "--config", file.path(), "--listen", "127.0.0.1:0"]);
    assert!(said.contains("write disk_limit = 33554432 or more, or lower segment_bytes"), "{said}");
    assert_eq!(leveret(&["check", "--config", file.path()]).status.code(), Some(1));
    let file = ConfigFile::new("disk-least", "[store]\ndisk_limit = 33554432\n");
    assert_eq!(leveret(&["check", "--config", file.path()]).status.code(), Some(0));
}

#[test]
fn file_descriptors_are_counted_before_anybody_comes() {
    // The soft limit is for programs that know nothing better.
    let broker = Broker::start_by(limited("-S -n 200"), &[], &[]);
    let limits = fs::read_to_string(format!("/proc/{}/limits", broker.process.id())).expect("it runs");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("the kernel says so");
    let soft: u64 = line.split_whitespace().nth(3).expect("a number").parse().expect("a number");
    assert!(soft > 1024, "{line}");
    let broker = Broker::start_by(limited("-n 70"), &[], &[]);
    let is_told = |line: &String| line.contains("the system allows 70 file descriptors: 5 connections");
    assert!(broker.first_lines.iter().any(is_told), "{:?}", broker.first_lines);
    broker.greeting();
    let output = limited("-n 40").args(["serve", "--listen", "127.0.0.1:0"]).output().expect("sh runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("allows 40 file descriptors, too few for a single connection"), "{said}");
}

/// Whatever the system promises to others, it gives this process no more addresses than that.
#[test]
fn more_memory_than_the_system_gives_is_one_sentence() {
    let home = TempDir::new("no-memory");
    for what in ["check", "serve"] {
        let mut command = limited("-v 600000");
        command.args([what, "--memory-limit", "2GB", "--listen", "127.0.0.1:0", "--data-dir"]);
        let output = command.arg(home.path()).output().expect("sh runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{what}: {said}");
        assert!(
            said.contains("the system does not give this process so much memory: lower memory_limit"),
            "{said}"
        );
    }
}

/// Above what any machine has.
#[test]
fn a_limit_above_the_memory_of_the_machine_is_reported() {
    let file = ConfigFile::new("roomy", "memory_limit = \"90000GB\"\n");
    let said = String::from_utf8_lossy(&leveret(&["check", "--config", file.path()]).stdout).into_owned();
    assert!(said.contains("# warning: memory_limit is 90000000.0 MB, but this machine"), "{said}");
}

#[test]
fn a_management_api_for_other_machines_without_tls_is_reported() {
    let check = |address: &str| {
        let output = leveret(&["check", "--management", address]);
        String::from_utf8_lossy(&output.stdout).contains("lets other machines in without TLS")
    };
    assert!(check("0.0.0.0:15672") && !check("127.0.0.1:15672") && !check("[::1]:15672"));
}

/// Other users cannot read stored data, whatever the umask; and no core dump is written.
#[test]
fn nothing_is_left_open_to_others() {
    let home = TempDir::new("modes");
    let data = home.path().join("data");
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "umask 0; ulimit -c unlimited 2>/dev/null; exec \"$0\" \"$@\"",
        env!("CARGO_BIN_EXE_leveret"),
    ]);
    let data_dir = data.to_str().expect("UTF-8");
    let broker = Broker::start_by(without_test_environment(command), &["--data-dir", data_dir], &[]);
    let mode = fs::metadata(&data).expect("it is made").permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "{mode:o}");
    let limits = fs::read_to_string(format!("/proc/{}/limits", broker.process.id())).expect("it runs");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("the system has it");
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
}

#[test]
fn the_node_is_called_what_the_operator_says() {
    for (said, called) in [("rabbit", "rabbit@"), ("rabbit@host", "rabbit@host")] {
        let file = ConfigFile::new("node", &format!("node_name = \"{said}\"\n"));
        let broker = Broker::start(&["--config", file.path()], &[]);
        let seen = program()
            .args(["ctl", "cluster_status", "--data-dir"])
            .arg(broker._home.path())
            .output()
            .expect("the built binary runs");
        let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
        assert!(seen.contains(called), "{seen}");
    }
}

#[test]
fn a_default_user_for_a_store_that_has_users_is_reported() {
    let home = TempDir::new("default-user");
    let data = home.path().join("data").display().to_string();
    let mut first = Broker::start(&["--data-dir", &data], &[]);
    assert!(leveret(&["ctl", "--data-dir", &data, "stop"]).status.success());
    first.process.wait().expect("it ends");
    let file = ConfigFile::new("default-user", "default_user = \"admin\"\ndefault_pass = \"x\"");
    let broker = Broker::start(&["--data-dir", &data, "--config", file.path()], &[]);
    let is_told =
        |line: &String| line.contains("default_user and default_pass are used only for a new store");
    assert!(broker.first_lines.iter().any(is_told), "{:?}", broker.first_lines);
}

#[test]
fn a_refused_limit_is_named_with_its_file_and_line() {
    for (text, why) in [
        (
            "log_level = \"info\"\nmemory_limit = 96",
            "line 2: memory_limit is 96 bytes: did you mean \"96MB\"?",
        ),
        ("[limits]\nconnections_max = 0", "line 2: connections_max must be"),
        ("\nframe_max = 1000", "line 2: frame_max must be"),
        ("[store]\ndisk_limit = \"1MB\"", "line 2: disk_limit is"),
        ("\n\nboard = \"pi4\"", "line 3: unknown board pi4; did you mean pi-4?"),
        ("default_user = \"admin\"", "line 1: default_user = \"admin\" needs a default_pass other than"),
        (
            "memory_limit = \"0.5GB\"",
            "\"0.5GB\" is not a size: write a whole number of bytes, or a whole number with",
        ),
        ("default_pass = \"\"", "line 1: default_pass: it must not be empty"),
        ("heartbeat = 1.5", "line 1: heartbeat: \"1.5\" is not a time"),
    ] {
        let file = ConfigFile::new("refused", text);
        let output = leveret(&["check", "--config", file.path()]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(why), "{text}: {said}");
        assert!(said.contains(file.path()), "{said}");
    }
    // A version of TLS is no number, but it looks like one.
    let file = ConfigFile::new("version", "[tls]\nminimum_version = 1.3");
    let said = String::from_utf8_lossy(&leveret(&["check", "--config", file.path()]).stdout).into_owned();
    assert!(said.contains("minimum_version = \"1.3\""), "{said}");
}

#[test]
fn a_port_in_use_is_named() {
    let other = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = other.local_addr().expect("it is bound").to_string();
    let said = refusal(&["--listen", &address]);
    assert!(
        said.contains(&address) && said.contains("another program already does") && said.contains("--listen"),
        "{said}"
    );
}

#[test]
fn the_ready_line_names_the_real_port_and_an_amqp_broker_is_there() {
    let broker = Broker::start(&[], &[]);
    assert_ne!(broker.port, 0, "{}", broker.ready_line);
    let [kind, _, _, _, _, _, _, class_high, class, method_high, method] = broker.greeting();
    assert_eq!((kind, [class_high, class, method_high, method]), (1, [0, 10, 0, 10]), "connection.start");
}

#[test]
fn several_addresses_are_all_listened_on() {
    let mut broker = Broker::start(&["--listen", "127.0.0.2:0"], &[]);
    let second =
        broker.lines.by_ref().map_while(Result::ok).find(|line| line.contains("listening on 127.0.0.2:"));
    assert!(second.is_some());
}

#[test]
fn sigterm_and_sigint_end_it_cleanly() {
    end_by_signals();
}

#[test]
#[ignore = "judges the clock: tests/run --full"]
fn sigterm_and_sigint_end_it_within_a_second() {
    let took = end_by_signals();
    assert!(took < Duration::from_secs(1), "{took:?}");
}

/// Ends one by each, while a peer is in its handshake; how long the longer one took.
fn end_by_signals() -> Duration {
    let mut longest = Duration::ZERO;
    for signal in ["-TERM", "-INT"] {
        let broker = Broker::start(&[], &[]);
        let mut peer = TcpStream::connect(("127.0.0.1", broker.port)).expect("it listens");
        peer.write_all(b"AMQP\0\0\x09\x01").expect("it reads");
        let (code, took, said) = broker.end_by(signal);
        assert_eq!(code, Some(0), "{signal}: {said:?}");
        longest = longest.max(took);
    }
    longest
}

#[test]
fn systemd_is_notified_of_ready_alive_and_stopping() {
    two_signs_of_life("told");
}

#[test]
#[ignore = "judges the clock: tests/run --full"]
fn systemd_gets_watchdog_signals_at_its_interval() {
    let took = two_signs_of_life("often");
    assert!(took < Duration::from_secs(1), "twice per 200 ms: {took:?}");
}

/// Starts a broker that notifies systemd; returns how long the first two messages took.
fn two_signs_of_life(test: &str) -> Duration {
    let path = std::env::temp_dir().join(format!("leveret-notify-{}-{test}", std::process::id()));
    let _ = fs::remove_file(&path);
    let systemd = UnixDatagram::bind(&path).expect("the temporary folder can be written");
    systemd.set_read_timeout(Some(built_program::patience(PATIENCE_S))).expect("a timeout can be set");
    let told = || {
        let mut text = [0; 64];
        let length = systemd.recv(&mut text).expect("a message in time");
        String::from_utf8_lossy(&text[..length]).trim_end().to_string()
    };
    let environment = [("NOTIFY_SOCKET", path.to_str().expect("UTF-8")), ("WATCHDOG_USEC", "200000")];
    let broker = Broker::start(&[], &environment);
    assert_eq!(told(), "READY=1");
    let start = Instant::now();
    assert_eq!([told(), told()], ["WATCHDOG=1", "WATCHDOG=1"]);
    let took = start.elapsed();
    let (code, ..) = broker.end_by("-TERM");
    assert_eq!(code, Some(0));
    let last = std::iter::repeat_with(told).find(|text| text != "WATCHDOG=1");
    assert_eq!(last.as_deref(), Some("STOPPING=1"));
    let _ = fs::remove_file(&path);
    took
}

#[test]
fn the_journal_gets_levels_and_files_get_times() {
    let broker = Broker::start(&[], &[]);
    assert!(
        broker.ready_line.starts_with("20") && broker.ready_line.contains(" INFO "),
        "{}",
        broker.ready_line
    );
    // The stream is a pipe of the test. Only the program can find out its name, so a shell passes it.
    let script =
        "exec 2>&1; JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2) exec \"$0\" --config /no/such/file";
    let output =
        Command::new("sh").args(["-c", script, env!("CARGO_BIN_EXE_leveret")]).output().expect("sh runs");
    assert!(output.stdout.starts_with(b"<3>cannot read /no/such/file"), "{output:?}");
}
