//! Tests of every error text of the configuration, and of the order of the layers.

use std::fs;
use std::path::{Path, PathBuf};

use super::settings::LimitsLayer;
use super::transports::FileMode;
use super::*;
use leveret_core::limits::Limits;

/// The generic profile with its comments.
const GENERIC: &str = include_str!("../../boards/generic.toml");

/// Loads a configuration file with this text over the generic board.
fn gathered(text: &str) -> Result<Config, ConfigError> {
    let mut config = Config::default();
    let mut product_keys = ProductKeys::default();
    apply_layer(&mut config, Layer::parse("leveret.toml", text)?, &mut product_keys);
    config.product = product_keys.product();
    Ok(config)
}

#[track_caller]
fn refused(text: &str, sentence: &str) {
    assert_eq!(gathered(text).unwrap_err().to_string(), sentence);
}

#[test]
fn the_notations_of_rabbitmq_for_loopback_users_are_explained() {
    for text in [
        "loopback_users = none",
        "loopback_users = none # as before",
        "loopback_users=none\r\nmemory_limit = \"64MB\"",
        "loopback_users = \"none\"",
        "loopback_users = [\"none\"]",
        "loopback_users.guest = false",
        "loopback_users = false",
    ] {
        let why = gathered(&format!("# a remark\n{text}\n")).unwrap_err().to_string();
        assert!(
            why.starts_with("leveret.toml, line 2: loopback_users: this is RabbitMQ's notation"),
            "{text}: {why}"
        );
        assert!(
            why.contains("write loopback_users = [] to let guest log in from the network"),
            "{text}: {why}"
        );
        assert!(why.contains("change it first"), "{text}: {why}");
    }
    let why = gathered("loopback_users.guest = true\nloopback_users.bob = false").unwrap_err().to_string();
    assert!(why.contains("write loopback_users = [\"guest\"]"), "{why}");
    for (text, users) in [("[]", vec![]), ("\"guest\"", vec!["guest"]), ("[\"a\", \"b\"]", vec!["a", "b"])] {
        assert_eq!(gathered(&format!("loopback_users = {text}")).unwrap().loopback_users, users);
    }
    let why = gathered("loopback_users = 3").unwrap_err().to_string();
    assert!(why.contains("a list in square brackets"), "{why}");
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_likely_one() {
    refused(
        "# a remark\nmemory_limt = \"64MB\"\n",
        "leveret.toml, line 2: unknown key memory_limt; did you mean memory_limit?",
    );
    refused(
        "[limits]\n\nconnection_max = 3\n",
        "leveret.toml, line 3: unknown key connection_max; did you mean connections_max?",
    );
    let error = gathered("colour = 3").unwrap_err().to_string();
    assert!(
        error.starts_with("leveret.toml, line 1: unknown key colour; there are board, listen, "),
        "{error}"
    );
}

#[test]
fn a_key_in_the_wrong_section_is_told_where_it_belongs() {
    refused("segment_bytes = 3", "leveret.toml, line 1: segment_bytes belongs under [limits]");
    refused(
        "[limits]\nframe_max = 8192",
        "leveret.toml, line 2: frame_max belongs at the top of the file, above the sections",
    );
    refused("limits = 3", "leveret.toml, line 1: limits: there must be a section, not the number 3");
}

#[test]
fn a_bad_value_is_named_with_its_line_and_key() {
    refused(
        "memory_limit = \"64XB\"",
        "leveret.toml, line 1: memory_limit: \"64XB\" is not a size: write a whole number of bytes, or a \
         whole number with B, kB, KiB, MB, MiB, GB or GiB behind it",
    );
    refused(
        "heartbeat = 60",
        "leveret.toml, line 1: heartbeat: \"60\" is not a time: write a number with ms, s, min or h behind \
         it, such as 10s",
    );
    refused(
        "listen = [\"myhost:5672\"]",
        "leveret.toml, line 1: listen: \"myhost:5672\" is not an address and a port: write it like \
         127.0.0.1:5672, 0.0.0.0:5672 or [::1]:5672, or the port alone for this machine; names other than localhost \
         are not looked up",
    );
    refused(
        "log_level = \"loud\"",
        "leveret.toml, line 1: log_level: \"loud\" is not a log level: error, warn, info, debug, trace or \
         off",
    );
    refused(
        "compat = \"ibm\"",
        "leveret.toml, line 1: compat: \"ibm\" is not a value of compat: rabbitmq or none",
    );
    refused(
        "[limits]\nconnections_max = 5000000000",
        "leveret.toml, line 2: connections_max: \"5000000000\" is not below 2^32, the limit of this key",
    );
}

#[test]
fn a_value_of_the_wrong_kind_says_what_belongs_there() {
    refused(
        "memory_limit = [1]",
        "leveret.toml, line 1: memory_limit: there must be a number or a text in quotes, not a list",
    );
    refused(
        "listen = true",
        "leveret.toml, line 1: listen: there must be a list in square brackets, not true",
    );
    let one = gathered("listen = \"127.0.0.1:5673\"").expect("a text is a list of one");
    assert_eq!(one.listen.iter().map(|listen| listen.socket.port()).collect::<Vec<_>>(), [5673]);
}

#[test]
fn text_that_is_no_toml_is_refused_with_its_line() {
    let error = gathered("memory_limit = \"64MB\"\nlisten 5672\n").unwrap_err().to_string();
    assert!(error.starts_with("leveret.toml, line 2: "), "{error}");
    let error = gathered("heartbeat = \"1s\"\nheartbeat = \"2s\"").unwrap_err().to_string();
    assert!(
        error.starts_with("leveret.toml, line 2: ") && error.ends_with("the key heartbeat occurs twice"),
        "{error}"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = Config::gather(Some(Path::new("/no/such.toml")), Layer::default()).unwrap_err().to_string();
    assert!(error.starts_with("cannot read /no/such.toml: No such file"), "{error}");
    let error = Config::gather(Some(Path::new("/dev/zero")), Layer::default()).unwrap_err().to_string();
    assert!(error.contains("it is not a regular file"), "{error}");
}

#[test]
fn an_unknown_board_lists_the_known_ones() {
    let gather = |board: &str| {
        let flags = Layer { board: Some(board.to_string()), ..Layer::default() };
        Config::gather(None, flags).map(|config| config.board)
    };
    for board in BOARDS {
        assert_eq!(gather(board.name).unwrap(), board.name);
    }
    let error = gather("toaster").unwrap_err().to_string();
    assert_eq!(
        error,
        "unknown board toaster; there are generic, router-64, router-128, pi-zero-w, pi-3, pi-4, pi-5, \
         pi-zero-2-w, beaglebone-black, imx8, qemu-virt, auto (or name a file by a path with a slash)"
    );
    assert!(gather("pi4").unwrap_err().to_string().contains("did you mean pi-4?"));
    assert!(
        gather("./no-such-board.toml").unwrap_err().to_string().starts_with("cannot read ./no-such-board")
    );
}

#[test]
fn auto_takes_what_fits_the_machine_and_says_why() {
    let gather = |machine: Machine, board: &str| {
        let flags = Layer { board: Some(board.to_string()), ..Layer::default() };
        Config::gather_on(|| machine, None, flags).unwrap()
    };
    let zero = Machine {
        model: Some("Raspberry Pi Zero W Rev 1.1".to_string()),
        memory_bytes: Some(448_000_000),
        ..Machine::default()
    };
    let config = gather(zero.clone(), "auto");
    assert_eq!((config.board.as_str(), config.memory_limit_bytes), ("pi-zero-w", 64_000_000));
    let first = "board = \"pi-zero-w\"  # auto: the model is \"Raspberry Pi Zero W Rev 1.1\", the memory is \
                 448.0 MB\n";
    assert!(config.to_toml().starts_with(first), "{}", config.to_toml());
    assert_eq!(gather(zero, "pi-4").board_why, None, "only when asked");
}

#[test]
fn later_layers_go_before_earlier_ones() {
    let file = std::env::temp_dir().join(format!("leveret-layers-{}.toml", std::process::id()));
    std::fs::write(&file, "board = \"pi-zero-w\"\nheartbeat = \"7s\"\nmemory_limit = \"70MB\"\n").unwrap();
    let flags = Layer { memory_limit: Some(Bytes(71_000_000)), ..Layer::default() };
    let config = Config::gather(Some(&file), flags).unwrap();
    std::fs::remove_file(&file).unwrap();
    let board = Config::gather(None, Layer { board: Some("pi-zero-w".into()), ..Layer::default() }).unwrap();
    assert_eq!(config.board, "pi-zero-w");
    assert_eq!(config.memory_limit_bytes, 71_000_000, "the flag goes before the file");
    assert_eq!(config.limits.heartbeat_s, 7, "the file goes before the profile");
    assert_eq!(config.limits.frame_max, board.limits.frame_max);
    assert_ne!(config.limits.frame_max, Limits::default().frame_max, "the profile before the default");
}

#[test]
fn the_generic_profile_names_every_key_and_is_the_default() {
    let text = GENERIC;
    let is_named =
        |key: &str| text.lines().any(|line| line.trim_start_matches("# ").starts_with(&format!("{key} = ")));
    let top = Layer::KEYS.iter().filter(|key| !["limits", "store", "tls", "bridge"].contains(key));
    for key in top.chain(LimitsLayer::KEYS).chain(StoreLayer::KEYS).chain(TlsLayer::KEYS) {
        assert!(is_named(key), "boards/generic.toml does not show {key}");
    }
    assert_eq!(gathered(text).unwrap(), Config::default());
    let uncommented: Vec<&str> = text
        .lines()
        .map(|line| line.strip_prefix("# ").filter(|rest| is_setting(rest)).unwrap_or(line))
        .collect();
    let all = gathered(&uncommented.join("\n")).unwrap();
    let addresses = |config: &Config| config.listen.iter().map(|listen| listen.socket).collect::<Vec<_>>();
    assert_eq!(addresses(&all), addresses(&Config::default()));
    // These follow from the memory, unless they are set.
    let limits = Limits {
        connections_max: all.limits.connections_max,
        message_size_max: all.limits.message_size_max,
        commit_bytes_max: all.limits.commit_bytes_max,
        ..Limits::default()
    };
    let expected = Config { limits, ..Config::default() };
    assert_eq!(Config { listen: Config::default().listen, ..all }, expected);
}

#[test]
fn a_start_without_file_and_address_has_the_page_on_loopback() {
    let addresses = |file: Option<&Path>, flags| {
        let management = Config::gather(file, flags).unwrap().management;
        management.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let with_board = Layer { board: Some("router-64".into()), ..Layer::default() };
    for flags in [Layer::default(), with_board] {
        assert_eq!(addresses(None, flags), ["127.0.0.1:15672", "[::1]:15672"]);
    }
    let file = std::env::temp_dir().join(format!("leveret-management-{}.toml", std::process::id()));
    fs::write(&file, "memory_limit = \"64MB\"\n").unwrap();
    assert!(addresses(Some(&file), Layer::default()).is_empty(), "a file turns it off");
    fs::remove_file(&file).unwrap();
    for text in [
        "listen = [\"127.0.0.1:5673\"]",
        "listen_unix = \"/run/leveret.sock\"",
        "mqtt = [\"127.0.0.1\"]",
        "mqtt_tls = [\"127.0.0.1\"]",
        "management = []",
    ] {
        assert!(addresses(None, Layer::parse("", text).unwrap()).is_empty(), "{text}");
    }
    let text = "management = [\"127.0.0.1:8080\"]";
    assert_eq!(addresses(None, Layer::parse("", text).unwrap()), ["127.0.0.1:8080"]);
}

#[test]
fn profiles_come_without_their_comments_and_say_the_same() {
    for board in BOARDS {
        let file = format!("{}/../../boards/{}.toml", env!("CARGO_MANIFEST_DIR"), board.name);
        let written = fs::read_to_string(&file).unwrap();
        let bare = |line: &str| {
            if line.trim_start_matches(' ').starts_with('#') { "\n".into() } else { format!("{line}\n") }
        };
        assert_eq!(board.text, written.lines().map(bare).collect::<String>(), "{file}");
        assert_eq!(gathered(board.text).unwrap(), gathered(&written).unwrap());
    }
}

/// Returns whether a line sets a key at the top level.
fn is_setting(line: &str) -> bool {
    line.split_once(" = ")
        .is_some_and(|(key, _)| key.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase()))
}

#[test]
fn the_generic_profile_shows_a_bridge_that_is_one() {
    let (_, example) = GENERIC.split_once("#     [[bridge]]\n").expect("there is an example");
    let lines = example.lines().map_while(|line| line.strip_prefix('#')).map(str::trim);
    let text: Vec<&str> = ["[[bridge]]"].into_iter().chain(lines).collect();
    let config = gathered(&text.join("\n")).unwrap();
    let [bridge] = config.bridges.as_slice() else { panic!("one bridge") };
    assert_eq!((bridge.forward.len(), bridge.fetch.len()), (1, 1));
    assert_eq!(bridge.window, 256, "what is shown is the default");
}

#[test]
fn the_readme_shows_a_configuration_that_is_one() {
    let readme = include_str!("../../README.md");
    let (_, rest) = readme.split_once("```toml\n").expect("the README has an example");
    let (example, _) = rest.split_once("```").expect("the example ends");
    let [bridge] = &gathered(example).unwrap().bridges[..] else { panic!("one bridge") };
    assert_eq!((&*bridge.name, bridge.forward.len()), ("plant", 1));
}

/// Returns whether a line could belong to a configuration. Sections of systemd's files begin with a capital
/// letter.
fn is_configuration(line: &str) -> bool {
    let is_lower = |text: &str| text.starts_with(|first: char| first.is_ascii_lowercase());
    match line.split_once(" = ") {
        Some((key, _)) => is_lower(key) && !key.contains([' ', '/', '`']),
        None => line.starts_with('[') && is_lower(line.trim_start_matches('[')),
    }
}

/// Returns the lines of configuration in the README and in the guide, each with its place.
fn documented() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let guide = fs::read_dir(root.join("systemd/guide")).unwrap().map(|file| file.unwrap().path());
    let mut found = Vec::new();
    let is_page = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "md");
    for path in [root.join("README.md")].into_iter().chain(guide.filter(is_page)) {
        let text = fs::read_to_string(&path).unwrap();
        let (mut block, mut language) = (String::new(), None);
        for (at, line) in text.lines().chain([""]).enumerate() {
            let fence = line.strip_prefix("```");
            let part = match language {
                _ if fence.is_some() => None,
                Some(language) => Some(line).filter(|_| language == "toml"),
                None => line.strip_prefix("    ").filter(|line| is_configuration(line)),
            };
            language = fence.map_or(language, Some).filter(|language| !language.is_empty());
            match part {
                Some(part) => block.extend([part, "\n"]),
                None if block.is_empty() => {}
                None => found.push((
                    format!("{}, before line {}", path.display(), at + 1),
                    core::mem::take(&mut block),
                )),
            }
        }
    }
    found
}

#[test]
fn every_configuration_that_is_documented_is_one() {
    let documented = documented();
    assert!(documented.len() >= 10, "{documented:?}");
    for (place, text) in documented {
        // The password files do not exist here.
        let is_kept = |line: &&str| !line.starts_with("password_file = \"/");
        let text: String = text.lines().filter(is_kept).map(|line| format!("{line}\n")).collect();
        let (head, rule) =
            ("[[bridge]]\nname = \"b\"\n", "[[bridge.forward]]\nqueue = \"q\"\nto_queue = \"q\"\n");
        let upstream = if text.contains("upstream =") { "" } else { "upstream = \"amqps://h\"\n" };
        let as_part = format!("{head}{upstream}{text}{}", if text.contains("[[bridge.") { "" } else { rule });
        let read =
            gathered(&text).or_else(|why| gathered(&as_part).map_err(|other| format!("{why}; {other}")));
        assert!(read.is_ok(), "{place}: {}\n{text}", read.unwrap_err());
    }
}

#[test]
fn what_is_shown_can_be_read_back() {
    let gather = |board: &str| Config::gather(None, Layer { board: Some(board.into()), ..Layer::default() });
    for board in BOARDS.map(|board| board.name) {
        let config = gather(board).unwrap();
        let again = gathered(&config.to_toml()).unwrap();
        assert_eq!(again.limits, config.limits);
        let shown = |config: &Config| -> Vec<String> {
            config.to_toml().lines().map(|line| line.split("  # ").next().unwrap().to_string()).collect()
        };
        assert_eq!(shown(&again).join("\n").replace("generic", board), shown(&config).join("\n"));
    }
}

#[test]
fn compat_says_rabbitmq_and_single_texts_go_before_it() {
    let product = |text: &str| gathered(text).unwrap().product;
    assert_eq!(product("compat = \"none\"").name, "Leveret");
    // Celery's client looks at the product, and its users have not read the guide.
    let rabbit = product("");
    assert_eq!((rabbit.name.as_str(), rabbit.version.as_str()), ("RabbitMQ", "3.13.7"));
    assert_eq!(product("compat = \"rabbitmq\""), rabbit);
    let mixed = product("version = \"3.12.1\"");
    assert_eq!((mixed.name.as_str(), mixed.version.as_str()), ("RabbitMQ", "3.12.1"));
    assert_eq!(product("product = \"Edge\"").name, "Edge");
}

#[test]
fn a_damaged_file_is_refused_and_never_a_panic() {
    let sound = GENERIC;
    let scraps =
        ["\"", "[", "]", "=", "\n", "é", "\u{0}", "[[", "'''", "1e9", "-", "9999999999999999999", "{", ".a"];
    let mut seed = 1_u64;
    let mut draw = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    for _ in 0..3_000 {
        let mut text: Vec<char> = sound.chars().collect();
        for _ in 0..=draw(3) {
            let at = draw(text.len());
            text.splice(at..(at + draw(3)).min(text.len()), scraps[draw(scraps.len())].chars());
        }
        let text: String = text.into_iter().collect();
        if let Err(error) = gathered(&text) {
            assert!(error.to_string().starts_with("leveret.toml, line "), "{error}");
        }
    }
}

#[test]
fn the_keys_of_tls_and_their_words() {
    let config = gathered(
        "listen_tls = [\"0.0.0.0\", \"[::1]:7\"]\nlisten_unix = \"/run/l/amqp.sock\"\n\
         listen_unix_mode = \"0600\"\n\
         [tls]\ncertificate = [\"a.pem\", \"b.pem\"]\nkey = \"k.pem\"\nclient_ca = \"\"\n\
         client_certificates = \"require\"\nminimum_version = \"1.3\"\n\
         login_from = \"subject_alternative_name_dns\"",
    )
    .unwrap();
    let ports: Vec<u16> = config.listen_tls.iter().map(|listen| listen.0.socket.port()).collect();
    assert_eq!(ports, [transports::AMQPS_PORT, 7]);
    assert_eq!(config.unix.mode, FileMode(0o600));
    assert_eq!((config.tls.certificates.len(), config.tls.keys.len()), (2, 1));
    assert_eq!(config.tls.client_ca, None);
    assert_eq!(config.tls.minimum_version, transports::TlsVersion::Tls13);
    let again = gathered(&config.to_toml()).unwrap();
    assert_eq!((&again.tls, &again.unix, &again.listen_tls), (&config.tls, &config.unix, &config.listen_tls));
    refused(
        "[tls]\nminimum_version = \"1.1\"",
        "leveret.toml, line 2: minimum_version: \"1.1\" is not a value of minimum_version: 1.2, 1.3",
    );
    refused(
        "listen_unix_mode = \"0o8\"",
        "leveret.toml, line 1: listen_unix_mode: \"0o8\" is not the permissions of a file, such as \"0660\"",
    );
    refused("client_ca = \"x\"", "leveret.toml, line 1: client_ca belongs under [tls]");
}

#[test]
fn the_keys_of_mqtt() {
    let config = gathered("").unwrap();
    assert!(config.mqtt.is_empty() && config.mqtt_tls.is_empty());
    let texts = |config: &Config| {
        [&config.mqtt_anonymous_user, &config.mqtt_vhost, &config.mqtt_content_type].map(ToString::to_string)
    };
    assert_eq!(texts(&config), ["", "/", ""]);
    let config = gathered(
        "mqtt = [\"0.0.0.0\", \"[::1]:7\", \"1884\"]\nmqtt_tls = [\"::\", \"fe80::1%eth0\", \"127.0.0.1:9\"]\n\
         mqtt_anonymous_user = \"sensor\"\nmqtt_vhost = \"plant\"\nmqtt_content_type = \"text/plain\"\n",
    )
    .unwrap();
    let plain: Vec<String> = config.mqtt.iter().map(|listen| listen.0.to_string()).collect();
    assert_eq!(plain, ["0.0.0.0:1883", "[::1]:7", "127.0.0.1:1884"]);
    let with_tls: Vec<String> = config.mqtt_tls.iter().map(|listen| listen.0.to_string()).collect();
    assert_eq!(with_tls, ["[::]:8883", "[fe80::1%eth0]:8883", "127.0.0.1:9"]);
    assert_eq!(texts(&config), ["sensor", "plant", "text/plain"]);
    assert!(config.serves_tls() && config.serves_clients_with_tls());
    let again = gathered(&config.to_toml()).unwrap();
    assert_eq!((&again.mqtt, &again.mqtt_tls), (&config.mqtt, &config.mqtt_tls));
    assert_eq!(texts(&again), texts(&config));
    for (key, value) in [("mqtt", "\"localhost\""), ("mqtt_tls", "\"0.0.0.0:65536\"")] {
        let error = gathered(&format!("{key} = {value}")).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("leveret.toml, line 1: {key}: {value} is not an address")),
            "{error}"
        );
    }
    for (key, bytes_max) in [("mqtt_anonymous_user", 255), ("mqtt_vhost", 255), ("mqtt_content_type", 128)] {
        let of = |bytes: usize| format!("{key} = \"{}\"", "x".repeat(bytes));
        assert!(gathered(&of(bytes_max)).is_ok(), "{key}");
        let too_long = bytes_max + 1;
        let sentence = format!("leveret.toml, line 1: {key}: it has {too_long} bytes, more than {bytes_max}");
        refused(&of(too_long), &sentence);
    }
    refused("mqtt_vhost = \"\"", "leveret.toml, line 1: mqtt_vhost: it must not be empty");
    refused(
        "mqtt_anonymous_user = true",
        "leveret.toml, line 1: mqtt_anonymous_user: there must be a text in quotes, not true",
    );
}

#[test]
fn mqtt_over_websocket_needs_a_management_listener_and_valid_origins() {
    let config = gathered("").unwrap();
    assert!(!config.mqtt_websocket && config.mqtt_websocket_origins.is_empty() && !config.serves_mqtt());
    let on = "mqtt_websocket = true\n";
    let config = gathered(&format!("{on}management = \"127.0.0.1:0\"")).unwrap();
    assert!(config.serves_mqtt() && !config.serves_clients_with_tls());
    let config = gathered(&format!("{on}management_tls = \"127.0.0.1:0\"")).unwrap();
    assert!(config.serves_mqtt() && config.serves_clients_with_tls());
    for listeners in ["management = []", "management = []\nmetrics = \"127.0.0.1:0\""] {
        let layer = Layer::parse("leveret.toml", &format!("{on}{listeners}")).unwrap();
        let error = Config::gather(None, layer).unwrap_err().to_string();
        assert!(error.contains("mqtt_websocket needs a listener: name one in `management`"), "{error}");
    }
    for (origin, is_valid) in [
        ("*", true),
        ("https://dash.example.com", true),
        ("http://[::1]:8080", true),
        ("dash.example.com", false),
        ("https://dash.example.com/", false),
        ("https://*.example.com", false),
        ("https://", false),
        ("null", false),
        ("", false),
    ] {
        let result = gathered(&format!("mqtt_websocket_origins = [\"{origin}\"]"));
        assert_eq!(result.is_ok(), is_valid, "{origin}: {result:?}");
    }
}

#[test]
fn the_limits_of_mqtt() {
    let limits = |text: &str| gathered(&format!("[limits]\n{text}")).unwrap().limits;
    let set = limits("mqtt_session_expiry_max = \"2h\"\nmqtt_session_messages_max = 8\n");
    let of = |limits: &Limits| (limits.mqtt_session_expiry_max_ms, limits.mqtt_session_messages_max);
    assert_eq!(of(&set), (7_200_000, 8));
    assert_eq!(of(&limits("")), (604_800_000, 10_000));
}

#[test]
fn a_board_that_is_recognised_and_not_used_is_a_warning() {
    let pi = || Machine {
        model: Some("Raspberry Pi 3 Model B Plus Rev 1.3".to_string()),
        memory_bytes: Some(948_000_000),
        ..Machine::default()
    };
    let warning = |board: Option<&str>, machine: Machine| {
        let flags = Layer { board: board.map(str::to_string), ..Layer::default() };
        let config = Config::gather_on(|| machine.clone(), None, flags).expect("a configuration");
        config.board_warning(&machine)
    };
    for board in [None, Some("generic"), Some("pi-zero-w")] {
        let told = warning(board, pi()).expect("a warning");
        assert!(told.starts_with("this board is recognised as pi-3, but the profile in use is"), "{told}");
        assert!(told.contains("board = \"auto\"") && told.contains("Raspberry Pi 3 Model B Plus"), "{told}");
    }
    for board in ["auto", "pi-3", concat!(env!("CARGO_MANIFEST_DIR"), "/../../boards/pi-zero-w.toml")] {
        assert_eq!(warning(Some(board), pi()), None, "{board}");
    }
    let unknown = Machine { model: Some("Some Industrial Computer".to_string()), ..pi() };
    assert_eq!(warning(None, unknown), None);
}

/// After an update a board starts with its old file.
#[test]
fn a_key_of_an_older_version_is_passed_over_with_a_warning() {
    let file = std::env::temp_dir().join(format!("leveret-old-key-{}.toml", std::process::id()));
    let text = "[store]\nrequire_store = true\nspill_transient = true\n[limits]\nqueues_max = 4096\n";
    fs::write(&file, text).unwrap();
    let config = Config::gather(Some(&file), Layer::default()).unwrap();
    assert!(config.store.require_store);
    let warnings: Vec<String> = config.old_key_warnings().cloned().collect();
    fs::remove_file(&file).unwrap();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings.iter().any(|line| line.contains("line 3: spill_transient was removed")), "{warnings:?}");
    let line = &warnings.iter().find(|line| line.contains("queues_max")).unwrap();
    assert!(line.contains("line 5: queues_max was removed") && line.contains("set_vhost_limits"), "{line}");
    let error = gathered("queues_max = 4096").unwrap_err().to_string();
    assert!(
        error.starts_with("leveret.toml, line 1: unknown key queues_max"),
        "it was never valid there: {error}"
    );
}

/// An operator's profile is as old as the configuration file.
#[test]
fn a_profile_with_a_key_of_an_older_version_is_a_warning_too() {
    let profile = std::env::temp_dir().join(format!("leveret-old-profile-{}.toml", std::process::id()));
    fs::write(&profile, "memory_limit = \"32MB\"\n[limits]\nbody_bytes_max = \"1MiB\"\n").unwrap();
    let flags = Layer { board: Some(profile.to_str().unwrap().into()), ..Layer::default() };
    let config = Config::gather(None, flags).unwrap();
    fs::remove_file(&profile).unwrap();
    let warnings: Vec<&String> = config.old_key_warnings().collect();
    assert!(
        warnings.len() == 1 && warnings[0].contains("line 3: body_bytes_max was removed"),
        "{warnings:?}"
    );
}

#[test]
fn more_connections_than_the_memory_for_their_sockets_are_a_warning() {
    let warning = |connections_max: u32| {
        let text = format!("board = \"pi-zero-w\"\n[limits]\nconnections_max = {connections_max}\n");
        Config::gather(None, Layer::parse("", &text).unwrap()).unwrap().sockets_warning()
    };
    assert_eq!(warning(2_133), None);
    assert!(warning(20_000).unwrap().contains("connections_max is 20000: the kernel's buffers"));
}
