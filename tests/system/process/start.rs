//! Starts with files that are damaged or missing: what an earlier start has put into the store is served, and what a
//! file protects stays closed.

use std::fs;
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use crate::flight::program;
use leveret_test_support::built_program::{TempDir, without_test_environment};

/// Definitions as an editor under Windows leaves them: a byte-order mark, and names beyond ASCII.
const WITH_MARK: &str = "\u{feff}{\"vhosts\": [{\"name\": \"/\"}], \"queues\": [{\"name\": \"möd9\", \"vhost\": \
                         \"/\", \"durable\": true, \"auto_delete\": false, \"arguments\": {}}, {\"name\": \
                         \"队列d9\", \"vhost\": \"/\", \"durable\": true, \"auto_delete\": false, \"arguments\": \
                         {}}, {\"name\": \"d9😍\", \"vhost\": \"/\", \"durable\": true, \"auto_delete\": false, \
                         \"arguments\": {}}]}";

/// A broker with a configuration of its own, from the last line of its start on.
struct Broker {
    process: Child,
    said: Vec<String>,
    _lines: Lines<BufReader<ChildStderr>>,
}

impl Broker {
    fn start(home: &TempDir, more: &str) -> Self {
        Self::start_by(program(), home, &format!("listen = [\"127.0.0.1:0\"]\n{more}"))
    }

    fn start_by(mut command: Command, home: &TempDir, config: &str) -> Self {
        let (file, data) = (home.path().join("leveret.toml"), home.path().join("data"));
        fs::write(&file, format!("data_dir = {data:?}\n{config}")).expect("the folder can be written");
        command.args(["serve", "--config"]).arg(&file).stderr(Stdio::piped());
        let mut process = command.spawn().expect("the built binary runs");
        let mut lines = BufReader::new(process.stderr.take().expect("it is piped")).lines();
        let mut said = Vec::new();
        while !said.last().is_some_and(|line: &String| line.contains("INFO  listening ")) {
            let line = lines.next().unwrap_or_else(|| panic!("it ended: {said:?}"));
            said.push(line.expect("UTF-8"));
        }
        Self { process, said, _lines: lines }
    }

    fn line(&self, level: &str) -> &str {
        self.said.iter().find(|line| line.contains(level)).unwrap_or_else(|| panic!("{:?}", self.said))
    }

    fn end(mut self) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs").success());
        assert!(self.process.wait().expect("it is our child").success());
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn ctl(home: &TempDir, arguments: &[&str]) -> Output {
    let mut command = program();
    command.args(["ctl", "--data-dir"]).arg(home.path().join("data")).args(arguments);
    command.output().expect("the built binary runs")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn queues(home: &TempDir) -> String {
    let listed = said(&ctl(home, &["-q", "list_queues", "name", "--no-table-headers"]));
    let mut names: Vec<&str> = listed.lines().collect();
    names.sort_unstable();
    names.join(" ")
}

fn loading(file: &Path) -> String {
    format!("load_definitions = {file:?}\n")
}

#[test]
fn a_damaged_definitions_file_stops_no_start() {
    let home = TempDir::new("definitions");
    let file = home.path().join("definitions.json");
    fs::write(&file, WITH_MARK).expect("the folder can be written");
    Broker::start(&home, &loading(&file)).end();
    let damage: [(&str, &dyn Fn()); 6] = [
        ("at line 1 column 0", &|| fs::write(&file, "").expect("it is written")),
        ("at line 2 column 8", &|| fs::write(&file, "{\n\"queues\"").expect("it is written")),
        ("at line 1 column 1", &|| fs::write(&file, [0; 4096]).expect("it is written")),
        ("No such file", &|| fs::remove_file(&file).expect("it was there")),
        ("not a file", &|| fs::create_dir(&file).expect("it is made")),
        ("not a file", &|| {
            fs::remove_dir(&file).expect("it was there");
            assert!(Command::new("mkfifo").arg(&file).status().expect("it runs").success());
        }),
    ];
    for (why, damage) in damage {
        damage();
        let broker = Broker::start(&home, &loading(&file));
        let line = broker.line("ERROR");
        assert!(line.contains(file.to_str().expect("UTF-8")) && line.contains(why), "{line}");
        assert_eq!(queues(&home), "d9😍 möd9 队列d9", "{why}");
        let alarms = said(&ctl(&home, &["check_alarms"]));
        assert!(alarms.contains("definitions: the file of load_definitions"), "{alarms}");
        broker.end();
    }
    fs::remove_file(&file).expect("it was there");
    fs::write(&file, WITH_MARK).expect("it is written");
    let broker = Broker::start(&home, &loading(&file));
    assert!(said(&ctl(&home, &["check_alarms"])).contains("reported no alarms"), "it ends with its reason");
    broker.end();
}

#[test]
fn a_byte_order_mark_is_skipped_wherever_json_or_toml_is_read() {
    let home = TempDir::new("mark");
    let file = home.path().join("definitions.json");
    fs::write(&file, WITH_MARK).expect("the folder can be written");
    let broker = Broker::start(&home, "");
    let imported = ctl(&home, &["import_definitions", file.to_str().expect("UTF-8")]);
    assert!(imported.status.success(), "{imported:?}");
    assert_eq!(queues(&home), "d9😍 möd9 队列d9");
    broker.end();
    let config = home.path().join("marked.toml");
    fs::write(&config, "\u{feff}memory_limit = \"90MB\"\n").expect("the folder can be written");
    let check = |arguments: &[&str]| program().arg("check").args(arguments).output().expect("it runs");
    let checked = check(&["--config", config.to_str().expect("UTF-8")]);
    assert!(said(&checked).contains("memory_limit = \"90MB\"\n"), "{checked:?}");
    let wrong = "\u{feff}memory_limit = \"90MB\"\n\nmemory_limt = \"1MB\"\n";
    fs::write(&config, wrong).expect("it is written");
    assert!(said(&check(&["--config", config.to_str().expect("UTF-8")])).contains("line 3: unknown key"));
    let profile = home.path().join("profile.toml");
    fs::write(&profile, "\u{feff}memory_limit = \"90MB\"\n").expect("it is written");
    let checked = check(&["--board", profile.to_str().expect("UTF-8")]);
    assert!(said(&checked).contains("memory_limit = \"90MB\"\n"), "{checked:?}");
}

/// With nothing but TLS the start goes on as well: bridges and the command line are served.
#[test]
fn listeners_without_their_certificate_stay_closed_and_the_start_goes_on() {
    let home = TempDir::new("certificate");
    let [certificate, key] = ["own.pem", "own.key"].map(|name| home.path().join(name));
    let broker = Broker::start(
        &home,
        &format!(
            "listen_tls = [\"127.0.0.1:0\"]\nmanagement_tls = [\"127.0.0.1:0\"]\n[tls]\ncertificate = {certificate:?}\n\
             key = {key:?}\n"
        ),
    );
    assert!(broker.line("ERROR").contains("own.pem does not exist"), "{:?}", broker.said);
    let closed: Vec<String> = broker
        .said
        .iter()
        .filter_map(|line| line.split_once("not listening with TLS on "))
        .filter_map(|(_, rest)| Some(rest.split_once(' ')?.0.to_string()))
        .collect();
    assert_eq!(closed.len(), 2, "{:?}", broker.said);
    for address in &closed {
        assert!(TcpStream::connect(address).is_err(), "{address} is open");
    }
    assert!(said(&ctl(&home, &["check_alarms"])).contains("tls: the files of [tls] cannot be used"));
    let listeners = said(&ctl(&home, &["status"]));
    assert!(
        listeners.contains("amqp") && !listeners.contains("ssl") && !listeners.contains("https"),
        "{listeners}"
    );
    // Another program may take a port meanwhile, and leave it later.
    let other = TcpListener::bind(&closed[1]).expect("nobody listens there");
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args([
            "-subj",
            "/CN=own",
            "-addext",
            "subjectAltName=DNS:own",
            "-addext",
            "basicConstraints=CA:FALSE",
        ])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .expect("openssl is installed");
    assert!(made.status.success(), "{made:?}");
    // The files are looked at again without a signal, and so is the port.
    let is_open = |address: &String| TcpStream::connect(address).is_ok();
    while !is_open(&closed[0]) {
        thread::sleep(Duration::from_millis(50));
    }
    drop(other);
    while !is_open(&closed[1]) {
        thread::sleep(Duration::from_millis(50));
    }
    let listeners = said(&ctl(&home, &["status"]));
    assert!(listeners.contains("amqp/ssl") && listeners.contains("https"), "{listeners}");
    assert!(!said(&ctl(&home, &["list_alarms"])).contains("tls:"));
    broker.end();
}

#[test]
fn a_bridge_without_its_password_is_held_and_the_start_goes_on() {
    let home = TempDir::new("password");
    let file = home.path().join("password");
    let bridge = format!(
        "[[bridge]]\nname = \"b\"\nupstream = \"amqp://edge@127.0.0.1:1\"\npassword_file = {file:?}\n\
         [[bridge.forward]]\nqueue = \"q\"\nto_queue = \"q\"\n"
    );
    let makers: [(&str, &dyn Fn()); 3] = [
        ("No such file", &|| {}),
        ("is empty", &|| fs::write(&file, "").expect("it is written")),
        ("not a regular file", &|| {
            fs::remove_file(&file).expect("it was there");
            assert!(Command::new("mkfifo").arg(&file).status().expect("it runs").success());
        }),
    ];
    for (why, make) in makers {
        make();
        let broker = Broker::start(&home, &bridge);
        let shown = loop {
            let shown = said(&ctl(&home, &["-q", "bridge_status", "name", "state", "last_error"]));
            if shown.contains("password_file") {
                break shown;
            }
        };
        assert!(shown.contains(why), "{shown}");
        broker.end();
    }
}

/// Runs the program with a kernel that has no IPv6, as after `ipv6.disable=1`: a filter of system calls gives
/// EAFNOSUPPORT for such sockets.
const WITHOUT_IPV6: &str = r#"
import ctypes, os, platform, struct, sys
number = {"x86_64": 41, "aarch64": 198}[platform.machine()]
program = b"".join(struct.pack("HBBI", *step) for step in (
    (0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 16), (0x15, 0, 1, 10), (0x06, 0, 0, 0x00050000 | 97),
    (0x06, 0, 0, 0x7fff0000)))
code = ctypes.create_string_buffer(program)
filter = ctypes.create_string_buffer(struct.pack("HL", len(program) // 8, ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, filter, 0, 0) == 0, ctypes.get_errno()
os.execv(sys.argv[1], sys.argv[1:])
"#;

fn without_ipv6() -> Command {
    let mut command = Command::new("python3");
    command.args(["-c", WITHOUT_IPV6]).arg(program().get_program());
    without_test_environment(command)
}

#[test]
fn an_address_family_that_the_kernel_lacks_stops_no_start() {
    let home = TempDir::new("family");
    let config =
        "listen = [\"[::]:0\", \"127.0.0.1:0\"]\nmanagement = [\"[::1]:0\"]\nmetrics = [\"127.0.0.1:0\"]\n";
    let broker = Broker::start_by(without_ipv6(), &home, config);
    let warnings: Vec<&String> = broker.said.iter().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 2, "{:?}", broker.said);
    for (line, address) in warnings.iter().zip(["[::]:0", "[::1]:0"]) {
        assert!(line.contains(&format!("not listening on {address} now: the kernel has no")), "{line}");
    }
    // Metrics without a login are independent of an absent listener of the API.
    let metrics = broker.said.iter().find_map(|line| line.split_once("metrics without a login on http://"));
    let address = metrics.expect("it is listened on").1.trim_end_matches('/');
    assert!(get(address, "/metrics").starts_with("HTTP/1.1 200"));
    assert!(get(address, "/api/overview").starts_with("HTTP/1.1 404"));
    assert!(said(&ctl(&home, &["list_queues"])).contains("Listing queues"));
    broker.end();
}

fn get(address: &str, path: &str) -> String {
    let mut peer = TcpStream::connect(address).expect("it listens");
    write!(peer, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").expect("it reads");
    let mut answer = Vec::new();
    peer.read_to_end(&mut answer).expect("it answers");
    String::from_utf8_lossy(&answer).into_owned()
}

/// A link-local address of this machine and its interface.
fn link_local() -> Option<(String, String)> {
    let addresses = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let line = addresses.lines().find(|line| line.starts_with("fe80"))?;
    let groups: Vec<&str> = (0..8).map(|at| &line[at * 4..at * 4 + 4]).collect();
    Some((groups.join(":"), line.split_whitespace().last()?.to_string()))
}

#[test]
fn an_interface_that_is_not_there_yet_stops_no_start() {
    let home = TempDir::new("interface");
    let broker = Broker::start_by(
        program(),
        &home,
        "listen = [\"127.0.0.1:0\", \"[fe80::1%nosuch0]:5672\"]\nlisten_tls = [\"fe80::1%25nosuch0\"]\n\
         [tls]\ncertificate = \"/c\"\nkey = \"/k\"\n",
    );
    for address in ["[fe80::1%nosuch0]:5672", "[fe80::1%nosuch0]:5671"] {
        let told = format!("not listening on {address} now: there is no such interface");
        assert!(broker.said.iter().any(|line| line.contains(&told)), "{:?}", broker.said);
    }
    broker.end();
    let output =
        program().args(["serve", "--listen", "[fe80::1]:5672", "--data-dir"]).arg(home.path()).output();
    let output = output.expect("the built binary runs");
    assert!(said(&output).contains("name it, such as [fe80::1%eth0]:5672"), "{output:?}");
}

/// A bridge connects to a link-local address that the broker listens on; nothing to see without such an address.
#[test]
fn link_local_addresses_with_an_interface_are_listened_on_and_connected_to() {
    let Some((address, interface)) = link_local() else { return };
    let home = TempDir::new("link-local");
    let listen = format!("listen = [\"[{address}%{interface}]:0\"]\n");
    let broker = Broker::start_by(program(), &home, &listen);
    let line = broker.line(" listening on [fe80:");
    assert!(line.contains(&format!("%{interface}]:")), "{line}");
    let port = line.rsplit(':').next().expect("a port");
    let there = TempDir::new("link-local-upstream");
    let bridge = format!(
        "[[bridge]]\nname = \"b\"\nupstream = \"amqp://guest:guest@[{address}%25{interface}]:{port}\"\n\
         [[bridge.forward]]\nqueue = \"q\"\nto_queue = \"q\"\n"
    );
    let other = Broker::start(&there, &bridge);
    // guest may not come in from beyond the loopback: the refusal comes from the broker at that address.
    let shown = loop {
        let shown = said(&ctl(&there, &["-q", "bridge_status", "name", "last_error"]));
        if shown.lines().any(|line| {
            line.split('\t').nth(1).is_some_and(|error| !error.is_empty() && error != "last_error")
        }) {
            break shown;
        }
    };
    assert!(shown.contains("the upstream refused the login: 403"), "{shown}");
    other.end();
    broker.end();
}

/// A client that can connect can use the command line at once: scripts do so after waiting for the port.
#[test]
fn the_control_socket_is_there_when_amqp_accepts() {
    let home = TempDir::new("control");
    let file = home.path().join("definitions.json");
    // Hashing passwords takes long on purpose, so this start takes a while.
    let users: Vec<String> =
        (0..20).map(|user| format!("{{\"name\":\"u{user}\",\"password\":\"p\",\"tags\":\"\"}}")).collect();
    fs::write(&file, format!("{{\"users\":[{}]}}", users.join(","))).expect("the folder can be written");
    let free =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let socket = home.path().join("data").join(leveret_daemon::SOCKET_NAME);
    let client = std::thread::spawn(move || {
        while TcpStream::connect(free).is_err() {
            std::thread::yield_now();
        }
        socket.exists()
    });
    let broker = Broker::start_by(program(), &home, &format!("listen = [\"{free}\"]\n{}", loading(&file)));
    assert!(client.join().expect("it connects"), "it was let in before the control socket was there");
    broker.end();
}

#[test]
fn the_command_line_says_what_is_wrong_in_plain_words() {
    let home = TempDir::new("words");
    let broker = Broker::start(&home, "");
    let stderr = |arguments: &[&str]| {
        let output = ctl(&home, arguments);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, told) = stderr(&["set_user_tags", "guest", "admin", "monitoring"]);
    assert_eq!(code, Some(0));
    assert!(told.contains("the tag \"admin\" gives no rights; did you mean administrator?"), "{told}");
    assert!(!told.contains("\"monitoring\""), "{told}");
    assert_eq!(stderr(&["set_user_tags", "guest", "administrator"]), (Some(0), String::new()));
    let (code, told) = stderr(&["list_user_limits", "--user", "nobody"]);
    assert_eq!(code, Some(69), "{told}");
    assert!(told.contains("{:no_such_user, \"nobody\"}\nThere is no user \"nobody\""), "{told}");
    let (_, told) = stderr(&["set_policy", "p", ".*", "{max-length: 1}"]);
    assert!(told.contains("Reason: badarg\nThe definition is not JSON: "), "{told}");
    let (_, told) = stderr(&["purge_queue", "q"]);
    assert!(told.contains("not_found\nThere is no queue \"q\" in vhost \"/\""), "{told}");
    let file = home.path().join("definitions.json");
    let import = |text: &str| {
        fs::write(&file, text).expect("the folder can be written");
        stderr(&["import_definitions", file.to_str().expect("UTF-8")])
    };
    let (code, told) = import("[store]\nqueues = 1\n");
    assert_eq!(code, Some(65));
    assert!(told.contains("it is not JSON: "), "{told}");
    let queue = |durable: bool| {
        format!(
            "{{\"queues\":[{{\"name\":\"q\",\"vhost\":\"/\",\"durable\":{durable},\"auto_delete\":false,\
             \"arguments\":{{}}}}]}}"
        )
    };
    assert_eq!(import(&queue(true)), (Some(0), String::new()));
    let (_, told) = import(&queue(false));
    assert!(
        told.contains("queue") && told.contains("q") && told.contains(": it exists with other properties"),
        "{told}"
    );
    broker.end();
}

#[test]
fn a_closed_pipe_is_no_error() {
    let home = TempDir::new("pipe");
    let broker = Broker::start(&home, "");
    let data = home.path().join("data");
    for arguments in
        [&["ctl", "list_exchanges"][..], &["ctl", "export_definitions", "-"], &["check"], &["--help"]]
    {
        let mut command = program();
        command.args(arguments);
        if arguments[0] == "ctl" {
            command.arg("--data-dir").arg(&data);
        }
        let (reader, writer) = std::io::pipe().expect("the system has pipes");
        drop(reader);
        let output = command.stdout(writer).stderr(Stdio::piped()).output().expect("it runs");
        assert_eq!(
            (output.status.code(), &output.stderr[..]),
            (Some(0), &b""[..]),
            "{arguments:?}: {output:?}"
        );
    }
    broker.end();
}
