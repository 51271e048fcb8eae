//! Board profiles, and the choice of a profile with `board = "auto"`.
//!
//! The choice depends on the device tree (model and compatible strings) and on the memory: what the machine has, and what
//! a control group allows this process. The memory limits which profiles are possible. Among those, a known model never
//! gets a larger profile than its own, because processor and flash card depend on the model. An unknown model gets at
//! most the default profile.
//!
//! # Invariants
//! - The same facts give the same profile. The reason, which is logged, names them.
//! - A machine whose memory is unknown gets the default profile. A machine too small for every profile gets the smallest.

use std::fs;
use std::path::Path;

use super::file::ConfigError;
use super::nearest::describe_unknown;
use super::settings::Layer;
use leveret_core::limits::Megabytes;

/// The value of `board` with which the profile is chosen for the machine.
pub const AUTO: &str = "auto";

/// A profile that is built into the program.
#[derive(Clone, Copy, Debug)]
pub struct Board {
    /// The name of the profile.
    pub name: &'static str,
    /// The text of the profile's file without comments.
    pub text: &'static str,
    /// Minimum memory of a machine for this profile, in bytes. It is less than the memory chips of such a board have,
    /// because the kernel and the graphics processor reserve a part.
    memory_bytes_min: u64,
}

/// Returns the text of a profile without comments, which would be more than half of the text in the program. Empty lines
/// replace them, so that errors show the right line numbers.
macro_rules! profile {
    ($name:literal) => {{
        const TEXT: &str = include_str!(concat!("../../boards/", $name, ".toml"));
        const STRIPPED: [u8; strip_comments(TEXT.as_bytes(), &mut [])] = {
            let mut out = [0; strip_comments(TEXT.as_bytes(), &mut [])];
            strip_comments(TEXT.as_bytes(), &mut out);
            out
        };
        match core::str::from_utf8(&STRIPPED) {
            Ok(text) => text,
            Err(_) => panic!("removing whole lines leaves UTF-8"),
        }
    }};
}

/// Writes `text` to `out` with an empty line for each line that contains only a comment. Returns the length of the
/// result, even if `out` is shorter.
const fn strip_comments(text: &[u8], out: &mut [u8]) -> usize {
    let (mut at, mut len) = (0, 0);
    let mut is_comment = is_comment_at(text, 0);
    while at < text.len() {
        let is_end = text[at] == b'\n';
        if is_end || !is_comment {
            if len < out.len() {
                out[len] = text[at];
            }
            len += 1;
        }
        at += 1;
        if is_end {
            is_comment = is_comment_at(text, at);
        }
    }
    len
}

/// Returns whether the line that begins at `at` contains only a comment.
const fn is_comment_at(text: &[u8], mut at: usize) -> bool {
    while at < text.len() && text[at] == b' ' {
        at += 1;
    }
    at < text.len() && text[at] == b'#'
}

/// The profiles: the default, then one for each memory size in ascending order, then those for a single model.
pub const BOARDS: [Board; 11] = [
    Board { name: "generic", text: profile!("generic"), memory_bytes_min: 850_000_000 },
    Board { name: "router-64", text: profile!("router-64"), memory_bytes_min: 0 },
    Board { name: "router-128", text: profile!("router-128"), memory_bytes_min: 100_000_000 },
    Board { name: "pi-zero-w", text: profile!("pi-zero-w"), memory_bytes_min: 360_000_000 },
    Board { name: "pi-3", text: profile!("pi-3"), memory_bytes_min: 850_000_000 },
    Board { name: "pi-4", text: profile!("pi-4"), memory_bytes_min: 1_700_000_000 },
    Board { name: "pi-5", text: profile!("pi-5"), memory_bytes_min: 3_600_000_000 },
    Board { name: "pi-zero-2-w", text: profile!("pi-zero-2-w"), memory_bytes_min: 360_000_000 },
    Board { name: "beaglebone-black", text: profile!("beaglebone-black"), memory_bytes_min: 360_000_000 },
    Board { name: "imx8", text: profile!("imx8"), memory_bytes_min: 1_700_000_000 },
    Board { name: "qemu-virt", text: profile!("qemu-virt"), memory_bytes_min: 200_000_000 },
];

/// The indices of the profiles for memory sizes.
const BY_SIZE: core::ops::Range<usize> = 1..7;

/// The profile for a machine whose model or compatible string contains a text; the first match counts. If the machine's
/// memory is too small for that profile, it gets the largest profile for a memory size that fits.
const MODELS: [(&str, &str); 19] = [
    ("Raspberry Pi Zero 2", "pi-zero-2-w"),
    ("Raspberry Pi Zero", "pi-zero-w"),
    ("Raspberry Pi Model", "pi-zero-w"),
    ("Raspberry Pi Compute Module Rev", "pi-zero-w"),
    ("Raspberry Pi 2", "pi-3"),
    ("Raspberry Pi 3 Model A", "pi-zero-2-w"),
    ("Raspberry Pi 3", "pi-3"),
    ("Raspberry Pi Compute Module 3", "pi-3"),
    ("Raspberry Pi 4", "pi-4"),
    ("Raspberry Pi Compute Module 4", "pi-4"),
    ("Raspberry Pi 5", "pi-5"),
    ("Raspberry Pi Compute Module 5", "pi-5"),
    ("Raspberry Pi", "pi-4"),
    ("BeagleBone", "beaglebone-black"),
    ("ti,am335x-bone", "beaglebone-black"),
    // The model of a gateway is its product name. Only the compatible string contains the processor: fsl,imx8mp.
    ("i.MX8", "imx8"),
    ("iMX8", "imx8"),
    ("fsl,imx8", "imx8"),
    ("linux,dummy-virt", "qemu-virt"),
];

/// The facts about a machine that determine its profile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// The model in the device tree.
    pub model: Option<String>,
    /// The compatible strings of the device tree, the most specific first.
    pub compatible: Vec<String>,
    /// Memory of the machine in bytes.
    pub memory_bytes: Option<u64>,
    /// Memory that a control group allows this process, in bytes, kernel buffers and page cache included.
    pub group_bytes: Option<u64>,
}

/// A chosen profile, and why it was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The name of the profile.
    pub board: &'static str,
    /// The facts that led to the choice, as a clause for the log.
    pub why: String,
}

impl Machine {
    /// Determines the facts about this machine. A fact that cannot be determined is `None`.
    pub fn detect() -> Self {
        // A strictly confined service cannot read /proc/meminfo, which has the same number.
        let memory = rustix::system::sysinfo();
        Self {
            model: device_tree("model").pop(),
            compatible: device_tree("compatible"),
            memory_bytes: Some(memory.totalram as u64 * u64::from(memory.mem_unit))
                .filter(|bytes| *bytes > 0),
            group_bytes: fs::read_to_string("/proc/self/cgroup")
                .ok()
                .and_then(|groups| group_limit(&groups, Path::new("/sys/fs/cgroup"))),
        }
    }

    /// Returns the profile that `board = "auto"` would choose; `None` if the model is unknown. `memory_limit_bytes` is as
    /// in [`Self::choose`].
    pub(super) fn recognised(&self, memory_limit_bytes: Option<u64>) -> Option<Choice> {
        self.by_model().map(|_| self.choose(memory_limit_bytes))
    }

    /// Returns the profile for the model, whatever the memory; `None` if the model is unknown.
    fn by_model(&self) -> Option<&'static Board> {
        let names = || self.model.iter().chain(&self.compatible);
        let (_, name) = MODELS.iter().find(|(part, _)| names().any(|name| name.contains(part)))?;
        BOARDS.iter().find(|board| board.name == *name)
    }

    /// Chooses a profile. If the configuration sets `memory_limit`, the control group must allow that value instead of
    /// the profile's own.
    pub fn choose(&self, memory_limit_bytes: Option<u64>) -> Choice {
        let facts = self.facts();
        let Some(memory) = self.memory_bytes else {
            return Choice { board: BOARDS[0].name, why: format!("{facts}, so the default profile is used") };
        };
        let fits = |board: &Board| {
            let required_bytes = || {
                memory_limit_bytes
                    .map_or_else(|| profile_cgroup_bytes(board), |limit| cgroup_bytes(limit, None))
            };
            board.memory_bytes_min <= memory
                && self.group_bytes.is_none_or(|group| required_bytes() < group + GROUP_UNIT_BYTES)
        };
        let by_model = self.by_model();
        if by_model.is_none() && fits(&BOARDS[0]) {
            return Choice { board: BOARDS[0].name, why: facts };
        }
        let size_max = by_model.map_or(u64::MAX, |board| board.memory_bytes_min);
        let smaller = BOARDS[BY_SIZE].iter().rev().filter(|board| board.memory_bytes_min <= size_max);
        let best = by_model.into_iter().chain(smaller).find(|board| fits(board)).unwrap_or(&BOARDS[1]);
        Choice { board: best.name, why: facts }
    }

    /// Describes the facts in a clause.
    fn facts(&self) -> String {
        let mut facts = match &self.model {
            Some(model) => format!("the model is \"{}\"", model.escape_debug()),
            None => "the device tree contains no model".to_string(),
        };
        if let Some(most_general) = self.compatible.last() {
            facts += &format!(", compatible with \"{}\"", most_general.escape_debug());
        }
        facts += &match self.memory_bytes {
            Some(bytes) => format!(", the memory is {}", Megabytes(bytes)),
            None => ", the memory is unknown".to_string(),
        };
        if let Some(bytes) = self.group_bytes {
            facts += &format!(", of which a control group allows {}", Megabytes(bytes));
        }
        facts
    }
}

/// Returns the strings of a property of the device tree; empty without such a property.
fn device_tree(property: &str) -> Vec<String> {
    // A strictly confined service can read only the second folder.
    let folders = ["/proc/device-tree", "/sys/firmware/devicetree/base"];
    let text = folders.iter().find_map(|folder| fs::read_to_string(Path::new(folder).join(property)).ok());
    let strings = text.iter().flat_map(|text| text.split(['\0', '\n']));
    strings.filter(|string| !string.is_empty()).map(str::to_string).collect()
}

/// Loads a board profile: a built-in one or, if the name is a path, a file. Returns it with a warning for each key of an
/// older version.
///
/// # Errors
/// There is no such board, the file cannot be read, or its content is not a profile.
pub(super) fn profile(name: &str) -> Result<(Layer, Vec<String>), ConfigError> {
    let (profile, old_keys) = match BOARDS.iter().find(|board| board.name == name) {
        Some(board) => (Layer::parse(&format!("boards/{name}.toml"), board.text)?, Vec::new()),
        None if name.contains('/') || name.ends_with(".toml") => Layer::read(Path::new(name))?,
        None => {
            let known = BOARDS.iter().map(|board| board.name).chain([AUTO]).collect::<Vec<_>>();
            return Err(ConfigError::UnknownBoard(describe_unknown("board", name, &known)));
        }
    };
    match profile.board {
        Some(_) => Err(ConfigError::BoardInBoard(name.to_string())),
        None => Ok((profile, old_keys)),
    }
}

/// Returns the memory that a control group must allow for a profile with its own `memory_limit`, in bytes.
fn profile_cgroup_bytes(board: &Board) -> u64 {
    Layer::parse(board.name, board.text)
        .ok()
        .and_then(|layer| layer.memory_limit)
        .map_or(u64::MAX, |limit| cgroup_bytes(limit.0, None))
}

/// The size to which limits of control groups are rounded, in bytes: the largest page size. The kernel rounds them down
/// to whole pages.
const GROUP_UNIT_BYTES: u64 = 64 << 10;

/// Returns the `MemoryMax=` for a broker with this `memory_limit`, in bytes: the limit plus the kernel's socket buffers
/// or half of the limit, whichever is larger, rounded up to whole pages. The addition is needed because the kernel counts
/// socket buffers and the page cache towards `MemoryMax=`.
pub const fn cgroup_bytes(memory_limit_bytes: u64, socket_buffers_bytes: Option<u64>) -> u64 {
    let half = memory_limit_bytes / 2;
    let additional = match socket_buffers_bytes {
        Some(bytes) if bytes > half => bytes,
        _ => half,
    };
    memory_limit_bytes.saturating_add(additional).div_ceil(GROUP_UNIT_BYTES).saturating_mul(GROUP_UNIT_BYTES)
}

/// Returns the lowest memory limit of a process's control group and the group's ancestors, in bytes; `None`: no limit.
/// `groups` is the content of `/proc/self/cgroup`, and `root` the folder where control groups are mounted.
fn group_limit(groups: &str, root: &Path) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let (root, file) = match controllers {
            "" => (root.to_path_buf(), "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => return None,
        };
        let group = root.join(path.trim_start_matches('/'));
        let above = group.ancestors().take_while(|folder| folder.starts_with(&root));
        above.filter_map(|folder| fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok()).min()
    });
    // In version 1 of control groups, "no limit" is the largest possible number of pages.
    limits.min().filter(|bytes| *bytes < 1 << 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(model: &str, megabytes: u64) -> Machine {
        Machine {
            model: (!model.is_empty()).then(|| model.to_string()),
            memory_bytes: Some(megabytes * 1_000_000),
            ..Machine::default()
        }
    }

    #[track_caller]
    fn chosen(model: &str, megabytes: u64, board: &str) {
        assert_eq!(machine(model, megabytes).choose(None).board, board, "{model}, {megabytes} MB");
    }

    /// Models and memory as these boards report them.
    #[test]
    fn every_board_gets_its_profile() {
        chosen("Raspberry Pi Zero W Rev 1.1", 448, "pi-zero-w");
        chosen("Raspberry Pi Model B Rev 2", 448, "pi-zero-w");
        chosen("Raspberry Pi Model A Plus Rev 1.1", 194, "router-128");
        chosen("Raspberry Pi Zero 2 W Rev 1.0", 437, "pi-zero-2-w");
        chosen("Raspberry Pi 3 Model A Plus Rev 1.0", 437, "pi-zero-2-w");
        chosen("Raspberry Pi 2 Model B Rev 1.1", 970, "pi-3");
        chosen("Raspberry Pi 3 Model B Plus Rev 1.3", 948, "pi-3");
        chosen("Raspberry Pi 4 Model B Rev 1.1", 1_944, "pi-4");
        chosen("Raspberry Pi 4 Model B Rev 1.4", 8_000, "pi-4");
        chosen("Raspberry Pi 4 Model B Rev 1.1", 948, "pi-3");
        chosen("Raspberry Pi 400 Rev 1.0", 3_978, "pi-4");
        chosen("Raspberry Pi Compute Module 4 Rev 1.0", 948, "pi-3");
        chosen("Raspberry Pi 5 Model B Rev 1.0", 8_460, "pi-5");
        chosen("Raspberry Pi 5 Model B Rev 1.1", 2_070, "pi-4");
    }

    /// Models as the makers' device trees name them.
    #[test]
    fn gateways_get_theirs_and_with_less_memory_that_of_the_pi_they_are_like() {
        chosen("TI AM335x BeagleBone Black", 510, "beaglebone-black");
        chosen("SanCloud BeagleBone Enhanced", 1_020, "beaglebone-black");
        chosen("TI AM335x BeagleBone Black", 230, "router-128");
        chosen("NXP i.MX8MPlus EVK board", 5_800, "imx8");
        chosen("FSL i.MX8MM EVK board", 2_020, "imx8");
        chosen("Toradex Verdin iMX8M Mini WB on Dahlia Board", 2_020, "imx8");
        chosen("NXP i.MX8MNano DDR4 EVK board", 980, "pi-3");
        chosen("NXP i.MX8MNano DDR4 EVK board", 470, "pi-zero-w");
        chosen("linux,dummy-virt", 1_000, "qemu-virt");
        chosen("linux,dummy-virt", 205, "qemu-virt");
        chosen("linux,dummy-virt", 120, "router-128");
        chosen("linux,dummy-virt", 55, "router-64");
    }

    /// The maker of a gateway chooses the model name; the processor is in the compatible string.
    #[test]
    fn what_a_machine_is_compatible_with_counts_when_its_model_says_nothing() {
        let with = |compatible: &[&str], megabytes| {
            let compatible = compatible.iter().map(|&name| name.to_string()).collect();
            Machine { compatible, ..machine("Gateway 4711", megabytes) }.choose(None)
        };
        assert_eq!(with(&["acme,gateway-4711", "fsl,imx8mp"], 2_020).board, "imx8");
        assert_eq!(
            with(&["ti,am335x-bone-black", "ti,am335x-bone", "ti,am33xx"], 510).board,
            "beaglebone-black"
        );
        assert_eq!(with(&["acme,gateway-4711", "fsl,imx7d"], 2_020).board, "generic");
        let why = "the model is \"Gateway 4711\", compatible with \"fsl,imx8mp\", the memory is 2020.0 MB";
        assert_eq!(with(&["acme,gateway-4711", "fsl,imx8mp"], 2_020).why, why);
    }

    /// The kernel rounds the limit that the systemd generator writes down to whole pages.
    #[test]
    fn a_group_made_for_a_profile_is_enough_for_it() {
        for (megabytes, name) in
            [(55, "router-64"), (120, "router-128"), (440, "pi-zero-w"), (1_900, "generic")]
        {
            let board = BOARDS.iter().find(|board| board.name == name).unwrap();
            let written = profile_cgroup_bytes(board);
            for page in [4 << 10, 16 << 10, 64 << 10] {
                let group_bytes = Some(written / page * page);
                assert_eq!(Machine { group_bytes, ..machine("", megabytes) }.choose(None).board, name);
            }
        }
    }

    /// The control group follows a configured limit, so it does not affect the choice of the profile.
    #[test]
    fn with_a_limit_that_is_set_the_group_has_to_allow_that() {
        let small = Machine { group_bytes: Some(80_000_000), ..machine("linux,dummy-virt", 250) };
        assert_eq!(small.choose(None).board, "router-128");
        assert_eq!(small.choose(Some(40_000_000)).board, "qemu-virt");
        assert_eq!(small.choose(Some(64_000_000)).board, "router-64");
    }

    #[test]
    fn an_unknown_model_is_judged_by_its_memory() {
        chosen("Some Modem", 240, "router-128");
        chosen("GL.iNet GL-MT300N-V2", 60, "router-64");
        chosen("GL.iNet GL-AR300M", 122, "router-128");
        chosen("", 24_000, "generic");
        chosen("Some Industrial Computer", 1_000, "generic");
        chosen("", 20, "router-64");
    }

    #[test]
    fn a_control_group_lowers_it() {
        let group = |megabytes: u64| {
            let board = machine("Raspberry Pi 4 Model B Rev 1.4", 4_000);
            Machine { group_bytes: Some(megabytes * 1_000_000), ..board }.choose(None)
        };
        assert_eq!(group(2_000).board, "pi-4");
        assert_eq!(group(201).board, "pi-3");
        assert_eq!(group(30).board, "router-64");
        assert_eq!(
            group(201).why,
            "the model is \"Raspberry Pi 4 Model B Rev 1.4\", the memory is 4000.0 MB, of which a control group \
             allows 201.0 MB"
        );
    }

    #[test]
    fn a_machine_that_says_nothing_gets_the_default() {
        let choice = Machine::default().choose(None);
        assert_eq!(choice.board, "generic");
        assert_eq!(
            choice.why,
            "the device tree contains no model, the memory is unknown, so the default profile is used"
        );
        assert_eq!(
            machine("", 64).choose(None).why,
            "the device tree contains no model, the memory is 64.0 MB"
        );
    }

    #[test]
    fn the_lowest_limit_on_the_way_up_holds() {
        let root = std::env::temp_dir().join(format!("leveret-groups-{}", std::process::id()));
        let service = root.join("system.slice/leveret.service");
        fs::create_dir_all(&service).unwrap();
        fs::write(service.join("memory.max"), "201326592\n").unwrap();
        fs::write(root.join("system.slice/memory.max"), "max\n").unwrap();
        let found = group_limit("0::/system.slice/leveret.service\n", &root);
        fs::write(root.join("system.slice/memory.max"), "100000000\n").unwrap();
        let lower = group_limit("0::/system.slice/leveret.service\n", &root);
        fs::create_dir_all(root.join("memory/box")).unwrap();
        fs::write(root.join("memory/box/memory.limit_in_bytes"), "9223372036854771712\n").unwrap();
        let none = group_limit("4:cpu,cpuacct:/box\n9:memory:/box\n", &root);
        fs::remove_dir_all(&root).unwrap();
        assert_eq!((found, lower, none), (Some(201_326_592), Some(100_000_000), None));
    }

    #[test]
    fn this_machine_says_how_much_memory_it_has() {
        let machine = Machine::detect();
        assert!(machine.memory_bytes.is_some_and(|bytes| bytes > 16_000_000), "{machine:?}");
    }
}
