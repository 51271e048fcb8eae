//! What the rules let pass, file by file, and why.

/// Files with assertions by `unwrap()` or `expect(`: how many, and why no user's act can meet one.
pub(super) const ASSERTIONS: &[(&str, usize, &str)] = &[
    ("command.rs", 1, "an id beyond 2^32 needs a pool that limits cannot size"),
    ("mem/messages/slot.rs", 1, "an id beyond 2^32 needs a pool that limits cannot size"),
    ("broker/backlog.rs", 6, "what stands first was just looked at, and is in memory"),
    ("broker/deliver.rs", 1, "the deliver pass looks for room before it takes a message"),
    ("broker/deliveries.rs", 1, "what is on the list of decided deliveries is decided"),
    ("engine/receive.rs", 1, "only connections of the broker are put on the list for room"),
    ("engine/wait_list.rs", 1, "the caller has just read who is in the place"),
    ("journal/group.rs", 1, "the broker ends only what it began, within one command"),
    ("broker/routing/tables.rs", 2, "each declaration looks for room before it changes anything"),
    ("broker/routing/pairs.rs", 1, "a binding is counted with its pairs before it is added"),
    ("broker/routing/trie.rs", 1, "each declaration looks for room before it changes anything"),
    ("tool/bench/report.rs", 2, "JSON is written into memory, and is text"),
    ("tool/json.rs", 2, "the stream behind the JSON keeps its failures until the end"),
];

/// Files of those rooms with bare log calls: how many, and why no peer can cause a line, or not often.
pub(super) const BARE_LOG_CALLS: &[(&str, usize, &str)] = &[
    ("admin/systemd.rs", 1, "the service manager refuses a message"),
    ("broker/access/users.rs", 2, "once at a start"),
    ("broker/dead_letter.rs", 1, "once a minute by its own clock"),
    ("broker/levels.rs", 1, "once a minute by its own clock"),
    ("broker/page_in.rs", 2, "damage, or a limit that was lowered"),
    ("broker/publish.rs", 3, "once a minute by its own clock"),
    ("engine/restore.rs", 7, "once at a start"),
    ("engine/stop.rs", 2, "once at the end"),
    ("engine/store_driver.rs", 1, "once at the end"),
    ("engine/turn.rs", 2, "when the file system is full"),
    ("net/defined.rs", 4, "once at a start"),
    ("net/descriptors.rs", 1, "once at a start"),
    ("net/disk.rs", 15, "once at a start"),
    ("net/event_loop.rs", 2, "once at the end"),
    ("net/flight_recorder.rs", 1, "once, when the file system of the recorder fails"),
    ("net/helper.rs", 1, "the system fails"),
    ("net/listen.rs", 2, "once at a start for each address"),
    ("net/local.rs", 1, "once at the end"),
    ("net/log_writer.rs", 1, "once for all lines that were dropped"),
    ("net/logging.rs", 2, "once at a start"),
    ("net/reload.rs", 4, "the operator asks for it"),
    ("net/start.rs", 7, "once at a start"),
    ("net/system.rs", 1, "once at a start"),
    ("tls/known_time.rs", 1, "at most once a day"),
    ("tls/certificates.rs", 7, "the operator changes files"),
    ("tls/revoked.rs", 4, "the operator changes files"),
    ("session/output.rs", 1, "our own mistake, which an assertion finds first"),
];
