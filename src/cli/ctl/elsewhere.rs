//! Commands of `rabbitmqctl` and of the program itself that people type here, and how it is done instead.
//!
//! Always true: none of these is a command here (a test looks), and each sentence ends with what to do.

/// What stands under the names.
const ELSEWHERE: &[(&[&str], &str)] = &[
    (&["serve", "check", "inspect", "restore"], "That is a command of the program: {}"),
    (&["bench"], "That is a program of its own: leveret-bench"),
    (
        &["federation_status"],
        "There is no federation here: bridges are [[bridge]] in the configuration file, or shovels \
         (set_parameter); bridge_status shows how they go",
    ),
    (
        &["set_vm_memory_high_watermark"],
        "The memory of the whole process is memory_limit in the configuration file; it counts from the next \
         start",
    ),
    (
        &["set_disk_free_limit"],
        "What the store may take is disk_limit under [store] in the configuration file; it counts from the \
         next start",
    ),
    (
        &["set_log_level", "rotate_logs"],
        "The log goes to standard error, and so to the journal; log_level in the configuration file counts \
         from the next SIGHUP on (systemctl reload leveret)",
    ),
    (
        &["start_app", "stop_app", "reset", "force_reset", "shutdown"],
        "There is no application apart from the process: use stop, and systemctl start leveret",
    ),
    (
        &[
            "join_cluster",
            "forget_cluster_node",
            "change_cluster_node_type",
            "rename_cluster_node",
            "set_cluster_name",
            "await_online_nodes",
            "sync_queue",
            "cancel_sync_queue",
            "force_boot",
            "update_cluster_nodes",
            "check_if_node_is_mirror_sync_critical",
            "check_if_node_is_quorum_critical",
            "schema_info",
        ],
        "There is one node and no cluster: status shows how it goes, and a bridge sends messages on to \
         others",
    ),
    (
        &["memory_breakdown"],
        "What takes how much memory is known before the start: leveret check prints it, line by line, and status \
         what is resident",
    ),
    (
        &["enable_plugin", "plugins"],
        "There are no plug-ins: everything that is there is on; the configuration file has the rest",
    ),
    (
        &["suspend_listeners", "resume_listeners", "restart_vhost", "list_unresponsive_queues", "force_gc"],
        "The broker is one process that serves everybody: ping says whether it turns, and memory goes back \
         by itself",
    ),
    (
        &["list_ciphers", "list_hashes", "hipe_compile", "check_certificate_expiration"],
        "The chapters of the guide on TLS, and on users and logins, say what there is of that",
    ),
    (&["list_node_auth_attempt_stats"], "That is not kept here: list_users shows what is"),
    (&["set_vhost_tags"], "Use update_vhost_metadata with the virtual host and --tags"),
    (&["wait"], "The process needs no file to be found by: use await_startup"),
    (
        &["autocomplete"],
        "What a shell completes commands with comes with the packages, as completions for bash and others",
    ),
    (
        &["eval", "exec", "eval_file", "encode", "decode", "remote_shell"],
        "There is no Erlang here: trace_on tells what is published and delivered, and log_level = \"debug\" \
         in the configuration file shows more",
    ),
];

/// What is said of a name that is done elsewhere.
pub(super) fn find(name: &str) -> Option<&'static str> {
    ELSEWHERE.iter().find(|(names, _)| names.contains(&name)).map(|(_, words)| *words)
}

/// What to do instead, or how to find it.
pub(super) fn advice(name: &str) -> String {
    match find(name) {
        Some(words) => words.replace("{}", &format!("leveret {name}")),
        None => "'leveretctl help' lists the commands".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_here_is_a_command() {
        for name in ELSEWHERE.iter().flat_map(|(names, _)| *names) {
            assert!(super::super::COMMANDS.iter().all(|command| command.name != *name), "{name}");
        }
    }

    #[test]
    fn the_way_is_told() {
        assert!(advice("restore").ends_with("leveret restore"));
        assert!(advice("set_vm_memory_high_watermark").contains("memory_limit"));
        assert!(advice("frobnicate").contains("leveretctl help"));
    }
}
