//! What all bridges share: room to write one message in, and the numbers that are theirs together.
//!
//! Always true: the room is reserved when there may be a bridge, and nothing is left in it between two calls.

use leveret_amqp::{Full, Properties, Writer};
use leveret_bridge::{Marks, Origin, marked, shovelled};
use leveret_config::shovels::Shovel;
use leveret_core::time::Deadline;

/// More than the headers that a message gets, and the names in its publish, in bytes.
const MARKS_BYTES_MAX: usize = 2048;

/// What all bridges share.
pub(super) struct Common {
    pub(super) origin: Origin,
    pub(super) version: String,
    /// What this broker is called.
    pub(super) node: String,
    /// Room to write heads of messages and their headers in; empty when there is no bridge.
    pub(super) scratch: Scratch,
    /// When what was counted is written down.
    pub(super) note_due: Deadline,
    random: u64,
}

impl Common {
    pub(super) fn new(max: usize, frame_max: usize, (node, version): (&str, &str), seed: u64) -> Self {
        let mut common = Self {
            origin: Origin::default(),
            version: version.to_string(),
            node: node.to_string(),
            scratch: Scratch::default(),
            note_due: Deadline::NEVER,
            random: seed | 1,
        };
        if max > 0 {
            common.scratch = Scratch::new(frame_max);
            // Where there is no store it stands for this process.
            let numbers = [common.chance(), common.chance()].map(u64::to_be_bytes);
            common.origin.store = core::array::from_fn(|at| numbers[at / 8][at % 8]);
        }
        common
    }

    /// Any number.
    pub(super) const fn chance(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

/// The properties of a message that crosses a bridge, with its marks, and as the shovel wants them that the bridge
/// may be: over which of its addresses, when, and by whom. `rooms`: for the headers of a shovel, and two to write in.
///
/// # Errors
/// They do not fit.
pub(super) fn crossing<'r>(
    own: Properties<'_>,
    (marks, origin): (Marks, Origin),
    shovel: Option<&Shovel>,
    said: ((usize, usize), u64, &str),
    (headers, edited, again): (&mut [u8], &'r mut [u8], &'r mut [u8]),
) -> Result<Properties<'r>, Full> {
    let mut writer = Writer::new(edited);
    marked(own, marks, origin, &mut writer)?;
    let len = writer.at();
    let marked = Properties::trusted(&edited[..len]);
    let Some(shovel) = shovel else { return Ok(marked) };
    let mut writer = Writer::new(again);
    shovelled(marked, shovel, said, headers, &mut writer)?;
    let len = writer.at();
    Ok(Properties::trusted(&again[..len]))
}

/// Room for one message's head and headers.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) headers: Box<[u8]>,
    pub(super) properties: Box<[u8]>,
    pub(super) edited: Box<[u8]>,
    pub(super) head: Box<[u8]>,
}

impl Scratch {
    fn new(frame_max: usize) -> Self {
        let room = |bytes: usize| vec![0; bytes].into_boxed_slice();
        Self {
            headers: room(frame_max + MARKS_BYTES_MAX),
            properties: room(frame_max),
            edited: room(frame_max + MARKS_BYTES_MAX),
            head: room(frame_max + MARKS_BYTES_MAX),
        }
    }

    /// Bytes of all of it.
    pub(super) const fn bytes(frame_max: usize) -> usize {
        4 * frame_max + 3 * MARKS_BYTES_MAX
    }
}
