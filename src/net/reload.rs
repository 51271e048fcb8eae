//! SIGHUP: what of a changed configuration can be had without a restart.
//!
//! Always true: a configuration that cannot be read changes nothing; what was changed and needs a restart is
//! named, so that nobody waits for it.

use crate::config::{Config, ConfigError};
use crate::tool::logging;

use super::house::House;

/// Keys that are live at once; those of `[tls]` besides.
const LIVE: [&str; 1] = ["log_level"];

impl House {
    pub(super) fn take_hangup(&mut self) {
        if !super::signals::drain(&mut self.hangups) {
            return;
        }
        log::info!("asked to read the configuration again");
        self.errands.reload = Some(Box::new(self.config.clone()));
    }

    /// Makes of the configuration what can be made of it.
    pub(super) fn take_reloaded(&mut self, again: Result<Config, ConfigError>) {
        let fitted = again.map_err(|error| error.to_string()).and_then(|mut config| {
            config.fit(super::record_sizes).map_err(|error| error.to_string())?;
            Ok(config)
        });
        let config = match fitted {
            Ok(config) => config,
            Err(error) => return log::error!("{error}; the configuration stays as it was"),
        };
        logging::set_level(config.log_level);
        let changed = changed_keys(&self.config.shown(), &config.shown());
        if changed.is_empty() {
            log::info!("the configuration was read again");
        } else {
            log::warn!("the configuration was read again; these need a restart: {}", changed.join(", "));
        }
        self.config.log_level = config.log_level;
        self.config.tls = config.tls;
    }
}

/// The keys whose values differ and that are not live.
fn changed_keys(before: &str, after: &str) -> Vec<String> {
    let mut changed = Vec::new();
    let mut section = "";
    for (before, after) in before.lines().zip(after.lines()) {
        if after.starts_with('[') {
            section = after;
        }
        let key = after.split(" = ").next().unwrap_or(after);
        // Behind a mark stands why it is so, which changes by itself.
        let [before, after] = [before, after].map(|line| line.split("  # ").next());
        if before != after && section != "[tls]" && !LIVE.contains(&key) {
            changed.push(key.to_string());
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_a_restart_is_named() {
        let before = Config::default();
        let mut after = before.clone();
        after.log_level = log::LevelFilter::Trace;
        after.tls.client_ca = Some("ca.pem".into());
        assert_eq!(changed_keys(&before.shown(), &after.shown()), Vec::<String>::new());
        after.limits.queues_max += 1;
        after.listen.clear();
        assert_eq!(changed_keys(&before.shown(), &after.shown()), ["listen", "queues_max"]);
    }
}
