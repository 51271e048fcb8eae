//! Returns unused memory to the system, while its addresses stay reserved.
//!
//! Without this, the process stayed 16.9 MB larger after one message of 16 MiB (measured). On a board with 64
//! MB, a burst must not take memory permanently. Freeing the pools and allocating them again would have the
//! same effect, but then messages would have to wait for the allocator. This is the only file with `unsafe`
//! code.
//!
//! The pages of the program itself are dropped once, after the start. A third of the pages that are mapped
//! then were needed only for the start (configuration, certificates, recovery). Pages that are needed again
//! are loaded from the page cache or from the file.
//!
//! # Invariants
//! - Only whole system pages inside the range are returned. They read as zeros afterwards.
//! - The caller borrows the range mutably, so no other code accesses it meanwhile.
//! - Only pages of the program that cannot have been written to are dropped.

use core::mem::MaybeUninit;
use core::ops::Range;
use std::fs::File;
use std::io::{self, Read};

use bytemuck::Pod;

/// Maximum number of bytes read of the list of mappings, which usually is shorter. Mappings after them are
/// not dropped.
const MAPS_BYTES: usize = 8 << 10;

/// Allocates `count` zeros that are not resident until they are written to.
///
/// Most C libraries do not write to large zeroed allocations. That of Zig writes the zeros, so the pages are
/// returned to the system at once.
pub(super) fn lazy_zeroed<T: Pod>(count: usize) -> Box<[T]> {
    let mut zeros = bytemuck::zeroed_slice_box(count);
    give_back(bytemuck::cast_slice_mut(&mut zeros));
    zeros
}

/// Returns the whole system pages within `range` to the system, and their position in `range`.
///
/// If the system refuses, the pages stay resident, without other effects.
#[allow(unsafe_code, reason = "madvise is a call to the system, and there is no safe form of it")]
pub(super) fn give_back(range: &mut [u8]) -> Range<usize> {
    // SAFETY: the slice is borrowed mutably, and any bytes, zeros included, are valid values.
    unsafe { advise(range.as_mut_ptr(), range.len()) }
}

/// Returns the whole system pages within uninitialised memory to the system.
#[allow(unsafe_code, reason = "madvise is a call to the system, and there is no safe form of it")]
pub(super) fn give_back_uninit<T>(room: &mut [MaybeUninit<T>]) {
    // SAFETY: the slice is borrowed mutably, and uninitialised memory may have any contents.
    unsafe { advise(room.as_mut_ptr().cast(), size_of_val(room)) };
}

/// Returns whether the system would currently provide memory for all these sizes in bytes, each contiguous.
///
/// The test mappings are never touched, and all are unmapped again.
#[allow(unsafe_code, reason = "mmap is a call to the system, and there is no safe form of it")]
pub fn can_be_mapped(pieces: impl Iterator<Item = u64>) -> bool {
    let (rights, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let mut given = Vec::new();
    let all = pieces.filter(|bytes| *bytes > 0).all(|bytes| {
        let Ok(bytes) = usize::try_from(bytes) else { return false };
        // SAFETY: a new anonymous mapping, at an address that the system chooses, overlaps no other memory.
        let first = unsafe { libc::mmap(core::ptr::null_mut(), bytes, rights, kind, -1, 0) };
        let is_given = first != libc::MAP_FAILED;
        given.extend(is_given.then_some((first, bytes)));
        is_given
    });
    for (first, bytes) in given {
        // SAFETY: the mapping was created above, and no reference to it exists.
        unsafe { libc::munmap(first, bytes) };
    }
    all
}

/// Drops the resident pages of code and constants of the program and its libraries. They are loaded again on use.
pub fn drop_startup_pages() {
    let mut text = [0; MAPS_BYTES];
    // Without /proc the pages stay resident, without other effects.
    let read = File::open("/proc/self/maps").and_then(|mut maps| read_into(&mut maps, &mut text));
    let lines = text[..read.unwrap_or(0)].split(|byte| *byte == b'\n');
    let lines = lines.filter_map(|line| core::str::from_utf8(line).ok());
    lines.filter_map(unwritten_mapping).for_each(|range| drop_unwritten(&range));
}

/// Reads until the end of the file or of `text`. Returns the number of bytes.
fn read_into(from: &mut File, text: &mut [u8]) -> io::Result<usize> {
    let mut end = 0;
    loop {
        match from.read(&mut text[end..])? {
            0 => return Ok(end),
            more => end += more,
        }
    }
}

/// Returns the addresses of a mapping of a file that cannot have been written to.
///
/// That is code, or the first part of the file (constants, symbols). Data that the loader relocated and then
/// protected comes after the code.
fn unwritten_mapping(line: &str) -> Option<Range<usize>> {
    let mut fields = line.split_ascii_whitespace();
    let (addresses, rights, offset) = (fields.next()?, fields.next()?, fields.next()?);
    let is_of_a_file = fields.nth(2)?.starts_with('/');
    let is_clean = rights == "r-xp" || rights == "r--p" && offset.bytes().all(|digit| digit == b'0');
    let (start, end) = addresses.split_once('-')?;
    let address = |digits| usize::from_str_radix(digits, 16).ok();
    (is_of_a_file && is_clean).then_some(address(start)?..address(end)?)
}

#[allow(unsafe_code, reason = "madvise is a call to the system, and there is no safe form of it")]
fn drop_unwritten(mapping: &Range<usize>) {
    let first = core::ptr::with_exposed_provenance_mut(mapping.start);
    // SAFETY: the kernel reports a private mapping of a file that is not writable. It never was writable: loaders
    // relocate data only, because neither the program nor a C library has relocations in code. Later accesses read
    // the same bytes from the file again.
    let result = unsafe { libc::madvise(first, mapping.len(), libc::MADV_DONTNEED) };
    if result != 0 {
        log::debug!("could not drop the pages that only the start needed: {}", io::Error::last_os_error());
    }
}

/// # Safety
/// The range must be exclusively the caller's, from the heap (so private and anonymous), and may become zeros.
#[allow(unsafe_code, reason = "madvise is a call to the system, and there is no safe form of it")]
unsafe fn advise(first: *mut u8, bytes: usize) -> Range<usize> {
    let page_bytes = rustix::param::page_size();
    let start = first.align_offset(page_bytes).min(bytes);
    let len = (bytes - start) / page_bytes * page_bytes;
    if len == 0 {
        return 0..0;
    }
    // SAFETY: the caller guarantees the range; this part of it begins and ends at page boundaries.
    let result = unsafe { libc::madvise(first.add(start).cast(), len, libc::MADV_DONTNEED) };
    if result != 0 {
        log::debug!("the system did not take back {len} bytes: {}", io::Error::last_os_error());
    }
    start..start + len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unwritten_mappings_of_files_are_dropped() {
        let range = Some(0xcb36_c000..0xcb4c_2000);
        for clean in [
            "cb36c000-cb4c2000 r-xp 00026000 fe:00 1835 /usr/lib/libc.so.6",
            "cb36c000-cb4c2000 r--p 00000000 fe:00 1835 /usr/lib/libc.so.6",
            "cb36c000-cb4c2000 r-xp 000cd000 08:01 12 /opt/a folder/leveret (deleted)",
        ] {
            assert_eq!(unwritten_mapping(clean), range, "{clean}");
        }
        for other in [
            "cb515000-cb519000 r--p 001cf000 fe:00 1835 /usr/lib/libc.so.6",
            "cb519000-cb51b000 rw-p 00000000 fe:00 1835 /usr/lib/libc.so.6",
            "cb519000-cb51b000 rwxp 001d3000 fe:00 1835 /usr/lib/libc.so.6",
            "cb519000-cb51b000 r-xs 001d3000 fe:00 1835 /usr/lib/libc.so.6",
            "cb519000-cb51b000 r-xp 00000000 00:00 0",
            "cb519000-cb51b000 r--p 00000000 00:00 0",
            "cb559000-cb55b000 r-xp 00000000 00:00 0 [vdso]",
            "nonsense",
            "",
        ] {
            assert_eq!(unwritten_mapping(other), None, "{other}");
        }
    }

    #[test]
    fn more_than_the_address_space_cannot_be_mapped() {
        assert!(can_be_mapped([0, 1, 1 << 20].into_iter()));
        assert!(!can_be_mapped([1 << 20, 1 << 62].into_iter()));
    }

    #[test]
    fn dropped_pages_are_loaded_again() {
        let shown =
            |number: u32| format!("{number} is written by code of the program and by constants in it");
        let (before, kept) = (shown(7), vec![7; 100_000]);
        drop_startup_pages();
        assert_eq!(shown(7), before);
        assert!(kept.iter().all(|number| *number == 7));
    }
}
