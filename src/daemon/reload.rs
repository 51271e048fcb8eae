//! SIGHUP: what of a changed configuration can be had without a restart.
//!
//! Always true: a configuration that cannot be read changes nothing; what was changed and needs a restart is
//! named, so that nobody waits for it.

use leveret_config::Config;

use super::event_loop::EventLoop;
use super::logging;

/// Keys that are live at once; those of [`is_live`] sections besides.
const LIVE: [&str; 1] = ["log_level"];

impl EventLoop {
    pub(super) fn take_hangup(&mut self) {
        if !super::signals::drain(&mut self.hangups) {
            return;
        }
        log::info!("asked to read the configuration again");
        self.engine.reload(Box::new(self.config.clone()));
    }

    /// Makes of the configuration what can be made of it.
    pub(super) fn take_reloaded(&mut self, again: Result<Config, String>) {
        let config = match again {
            Ok(config) => config,
            Err(error) => return log::error!("{error}; the configuration stays as it was"),
        };
        logging::set_level(config.log_level);
        let changed = changed_keys(&self.config, &config);
        if changed.is_empty() {
            log::info!("the configuration was read again");
        } else {
            log::warn!("the configuration was read again; these need a restart: {}", changed.join(", "));
        }
        self.config.log_level = config.log_level;
        self.config.tls = config.tls;
        self.engine.set_bridges(&config.bridges);
        self.config.bridges = config.bridges;
        self.engine.set_environment(self.config.shown());
    }
}

/// The keys that somebody changed and that are not live; not the limits that follow from them.
fn changed_keys(before: &Config, after: &Config) -> Vec<String> {
    let [shown_before, shown_after] = [before.shown(), after.shown()];
    let mut gone: Vec<_> = shown_keys(&shown_before).collect();
    let mut changed = Vec::new();
    for (section, key, value) in shown_keys(&shown_after) {
        let had = gone.iter().position(|(it, name, _)| (*it, *name) == (section, key));
        let had = had.map(|at| gone.remove(at).2);
        let follows = before.limit_follows(key) && after.limit_follows(key);
        if had != Some(value) && !is_live(section) && !LIVE.contains(&key) && !follows {
            changed.push(key.to_string());
        }
    }
    let gone = gone.iter().filter(|(section, ..)| !is_live(section));
    changed.extend(gone.map(|(_, key, _)| (*key).to_string()));
    changed
}

/// Whether all of a section is live at once.
fn is_live(section: &str) -> bool {
    section == "[tls]" || section.starts_with("[[bridge")
}

/// Section, key and value of each line; behind a mark stands why it is so, which changes by itself.
fn shown_keys(shown: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    let mut section = "";
    shown.lines().filter_map(move |line| {
        if line.starts_with('[') {
            section = line;
        }
        let (key, value) = line.split_once(" = ")?;
        Some((section, key, value.split_once("  # ").map_or(value, |(value, _)| value)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use leveret_config::Layer;

    const BRIDGE: &str = "[[bridge]]\nname = \"a\"\nupstream = \"amqp://h\"\n\
                          [[bridge.forward]]\nqueue = \"q\"\nto_queue = \"q\"\n";

    fn said(text: &str) -> Config {
        let file = std::env::temp_dir().join(format!("leveret-changed-{}.toml", std::process::id()));
        std::fs::write(&file, text).unwrap();
        let config = Config::gather(Some(&file), Layer::default());
        std::fs::remove_file(&file).unwrap();
        let mut config = config.unwrap();
        config.fit(crate::record_sizes).unwrap();
        config
    }

    #[test]
    fn what_needs_a_restart_is_named_and_nothing_else() {
        let nothing = Vec::<&str>::new();
        for (before, after, changed) in [
            ("", "log_level = \"trace\"\n[tls]\nclient_ca = \"ca.pem\"", nothing.clone()),
            ("[tls]\ncrl = [\"a\", \"b\"]\nclient_ca = \"c\"", "", nothing.clone()),
            ("", BRIDGE, nothing.clone()),
            (BRIDGE, "", nothing),
            ("", "listen = []\n[limits]\nqueues_max = 77", vec!["listen", "queues_max"]),
            ("[limits]\nqueues_max = 77", "", vec!["queues_max"]),
            // Many limits follow from the memory; only the key that was changed is named.
            ("", "memory_limit = \"40MB\"", vec!["memory_limit"]),
            // A key that is there or not shifts none of the others.
            ("", "load_definitions = \"/d.json\"", vec!["load_definitions"]),
            ("load_definitions = \"/d.json\"", "", vec!["load_definitions"]),
        ] {
            assert_eq!(changed_keys(&said(before), &said(after)), changed, "{before} -> {after}");
        }
    }
}
