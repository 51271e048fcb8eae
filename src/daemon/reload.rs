//! SIGHUP: reads the configuration again and applies the changes that are possible without a restart.
//!
//! If the configuration has an error, nothing changes. Changed keys that need a restart are logged.

use leveret_config::Config;

use super::event_loop::EventLoop;
use super::logging;

/// Single keys that take effect without a restart, in addition to the sections of [`takes_effect_at_once`].
const LIVE: [&str; 1] = ["log_level"];

impl EventLoop {
    /// If SIGHUP has arrived, requests that the worker thread read the configuration.
    pub(super) fn take_hangup(&mut self) {
        if !super::signals::drain(&mut self.hangups) {
            return;
        }
        log::info!("asked to read the configuration again");
        self.engine.reload(Box::new(self.config.clone()));
    }

    /// Applies the configuration that the worker thread has read, as far as possible without a restart.
    pub(super) fn take_reload_result(&mut self, again: Result<Config, String>) {
        let config = match again {
            Ok(config) => config,
            Err(error) => return log::error!("{error}; the configuration is unchanged"),
        };
        logging::set_level(config.log_level);
        config.old_key_warnings().for_each(|warning| log::warn!("{warning}"));
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
        self.engine.set_environment(self.config.to_toml());
    }
}

/// Returns the changed keys that need a restart. Limits that are derived from other keys are left out.
fn changed_keys(before: &Config, after: &Config) -> Vec<String> {
    let [shown_before, shown_after] = [before.to_toml(), after.to_toml()];
    let mut gone: Vec<_> = shown_keys(&shown_before).collect();
    let mut changed = Vec::new();
    for (section, key, value) in shown_keys(&shown_after) {
        let had = gone.iter().position(|(it, name, _)| (*it, *name) == (section, key));
        let had = had.map(|at| gone.remove(at).2);
        let follows = before.is_limit_derived(key) && after.is_limit_derived(key);
        if had != Some(value) && !takes_effect_at_once(section) && !LIVE.contains(&key) && !follows {
            changed.push(key.to_string());
        }
    }
    let gone = gone.iter().filter(|(section, ..)| !takes_effect_at_once(section));
    changed.extend(gone.map(|(_, key, _)| (*key).to_string()));
    changed
}

/// Returns whether all keys of a section take effect without a restart.
fn takes_effect_at_once(section: &str) -> bool {
    section == "[tls]" || section.starts_with("[[bridge")
}

/// Returns section, key and value of each line of a shown configuration. A comment after a value is ignored;
/// it only explains a derived value.
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
        config.derive_limits(crate::record_sizes, u64::MAX).unwrap();
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
            ("", "listen = []\n[limits]\nconnections_max = 77", vec!["listen", "connections_max"]),
            ("[limits]\nconnections_max = 77", "", vec!["connections_max"]),
            ("", "mqtt = \"127.0.0.1\"\nmqtt_vhost = \"a\"", vec!["mqtt", "mqtt_vhost"]),
            // Many limits follow from the memory. Only the changed key is named.
            ("", "memory_limit = \"40MB\"", vec!["memory_limit"]),
            // A key that was added or removed does not shift others.
            ("", "load_definitions = \"/d.json\"", vec!["load_definitions"]),
            ("load_definitions = \"/d.json\"", "", vec!["load_definitions"]),
        ] {
            assert_eq!(changed_keys(&said(before), &said(after)), changed, "{before} -> {after}");
        }
    }
}
