//! Reading around what the disk refuses: a block that cannot be read costs that block.
//!
//! Why it exists: a card that wears refuses single sectors, for good or until it is asked again. What lies in
//! them is damaged; everything else is still to be served.
//!
//! Always true: a refused read is repeated block by block; what is refused then reads as 0xFF, which is no
//! header, no commit and no empty block, and is noted; whoever refuses more than
//! [`REFUSED_BLOCKS_MAX`] blocks is no disk with a bad spot, and the error is handed on. A file that cannot
//! even be opened reads as an empty one; the disk knows which those are.

use std::io;

use rustix::io::Errno;

use super::commit::BLOCK_BYTES;
use super::disk::{Disk, Unopened};

/// So many blocks may be refused before the disk counts as broken as a whole.
const REFUSED_BLOCKS_MAX: usize = 64;
const REFUSED: u8 = 0xFF;

/// A disk whose reads go around bad blocks.
pub(super) struct ReadAround<'d, D> {
    disk: &'d mut D,
    /// File, and first byte of the block; each once, rising: of a disk that is gone there are many.
    pub(super) refused: Vec<(u32, u32)>,
    refused_max: usize,
}

impl<'d, D: Disk> ReadAround<'d, D> {
    pub(super) fn new(disk: &'d mut D) -> Self {
        Self { disk, refused: Vec::new(), refused_max: REFUSED_BLOCKS_MAX }
    }

    /// However many blocks are refused: for one who only looks.
    pub(super) fn at_any_price(disk: &'d mut D) -> Self {
        Self { refused_max: usize::MAX, ..Self::new(disk) }
    }

    /// Whether a slot's file cannot be opened.
    pub(super) fn is_unopened(&self, slot: u32) -> bool {
        self.disk.unopened().iter().any(|file| file.slot == Some(slot))
    }

    #[cold]
    #[inline(never)]
    fn read_blocks(&mut self, slot: u32, at: u64, bytes: &mut [u8], error: io::Error) -> io::Result<usize> {
        let (mut done, mut last) = (0, Some(error));
        while done < bytes.len() {
            let from = at + done as u64;
            let to_next = BLOCK_BYTES - from as usize % BLOCK_BYTES;
            let most = to_next.min(bytes.len() - done);
            let piece = &mut bytes[done..done + most];
            match self.disk.read(slot, from, piece) {
                Ok(length) if length < most => return Ok(done + length),
                Ok(_) => {}
                Err(error) => {
                    piece.fill(REFUSED);
                    let block = (slot, (from / BLOCK_BYTES as u64) as u32 * BLOCK_BYTES as u32);
                    if let Err(place) = self.refused.binary_search(&block) {
                        self.refused.insert(place, block);
                    }
                    last = Some(error);
                }
            }
            if self.refused.len() > self.refused_max
                && let Some(error) = last.take()
            {
                return Err(error);
            }
            done += most;
        }
        Ok(done)
    }
}

/// Whether an error is about a part of a file: what the system says of a bad sector, or of one whose own
/// checksum does not fit, as file systems with checksums have them. That memory is short, or the file gone,
/// says nothing of the card.
pub(super) fn is_about_a_block(error: &io::Error) -> bool {
    match Errno::from_io_error(error) {
        Some(errno) => {
            [Errno::IO, Errno::BADMSG, Errno::UCLEAN, Errno::NODATA, Errno::ILSEQ, Errno::REMOTEIO]
                .contains(&errno)
        }
        None => error.kind() == io::ErrorKind::Other,
    }
}

impl<D: Disk> Disk for ReadAround<'_, D> {
    fn lock(&mut self) -> io::Result<()> {
        self.disk.lock()
    }

    fn unopened(&self) -> &[Unopened] {
        self.disk.unopened()
    }

    fn slots(&mut self) -> io::Result<Vec<u32>> {
        self.disk.slots()
    }

    fn create(&mut self, slot: u32) -> io::Result<()> {
        self.disk.create(slot)
    }

    fn reserve(&mut self, slot: u32, bytes: u64) -> io::Result<()> {
        self.disk.reserve(slot, bytes)
    }

    #[inline(never)]
    fn read(&mut self, slot: u32, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        match self.disk.read(slot, at, bytes) {
            Err(_) if self.is_unopened(slot) => Ok(0),
            Err(error) if is_about_a_block(&error) => self.read_blocks(slot, at, bytes, error),
            read => read,
        }
    }

    fn write(&mut self, slot: u32, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.write(slot, at, bytes)
    }

    fn zero(&mut self, slot: u32, at: u64, bytes: u32) -> io::Result<()> {
        self.disk.zero(slot, at, bytes)
    }

    fn sync(&mut self, slot: u32) -> io::Result<()> {
        self.disk.sync(slot)
    }

    fn remove(&mut self, slot: u32) -> io::Result<()> {
        self.disk.remove(slot)
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        self.disk.sync_directory()
    }
}
