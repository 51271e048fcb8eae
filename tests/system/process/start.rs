//! Starts with files that are damaged or missing: what an earlier start has put into the store is served, and what a
//! file protects stays closed.

use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use crate::flight::program;
use crate::home::Home;

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
    fn start(home: &Home, more: &str) -> Self {
        Self::start_by(program(), home, &format!("listen = [\"127.0.0.1:0\"]\n{more}"))
    }

    fn start_by(mut command: Command, home: &Home, config: &str) -> Self {
        let (file, data) = (home.path().join("leveret.toml"), home.path().join("data"));
        fs::write(&file, format!("data_dir = {data:?}\n{config}")).expect("the folder can be written");
        command.args(["serve", "--config"]).arg(&file).stderr(Stdio::piped());
        let mut process = command.spawn().expect("the built binary runs");
        let mut lines = BufReader::new(process.stderr.take().expect("it is piped")).lines();
        let mut said = Vec::new();
        while !said.last().is_some_and(|line: &String| line.contains(" listening ")) {
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

fn ctl(home: &Home, arguments: &[&str]) -> Output {
    let mut command = program();
    command.args(["ctl", "--data-dir"]).arg(home.path().join("data")).args(arguments);
    command.output().expect("the built binary runs")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn queues(home: &Home) -> String {
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
    let home = Home::new("definitions");
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
    let home = Home::new("mark");
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
    let home = Home::new("certificate");
    let tls =
        "listen_tls = [\"127.0.0.1:0\"]\n[tls]\ncertificate = \"/nowhere.pem\"\nkey = \"/nowhere.key\"\n";
    let broker = Broker::start_by(program(), &home, &format!("listen = []\n{tls}"));
    let line = broker.line("ERROR");
    assert!(line.contains("/nowhere.pem does not exist"), "{line}");
    assert!(said(&ctl(&home, &["check_alarms"])).contains("tls: the files of [tls] cannot be used"));
    broker.end();
}

#[test]
fn a_bridge_without_its_password_is_held_and_the_start_goes_on() {
    let home = Home::new("password");
    let file = home.path().join("password");
    let bridge = format!(
        "[[bridge]]\nname = \"b\"\nupstream = \"amqp://edge@127.0.0.1:1\"\npassword_file = {file:?}\n\
         [[bridge.forward]]\nqueue = \"q\"\nto_queue = \"q\"\n"
    );
    let makers: [(&str, &dyn Fn()); 3] = [
        ("No such file", &|| {}),
        ("is empty", &|| fs::write(&file, "").expect("it is written")),
        ("not a file", &|| {
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
