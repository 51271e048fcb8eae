//! Memory that is not needed any more, given back to the system while its addresses stay ours.
//!
//! The one place with `unsafe`. The need, measured: after one message of 16 MiB the process stayed 16.9 MB
//! larger for good, and on a board that shares 64 MB with everything else a burst must not be paid for ever.
//! Freeing and allocating anew would do too, but would allocate in the way of messages.
//!
//! The program itself goes the same way once, when the start is over: a third of what is mapped by then was
//! for the start alone (configuration, certificates, reading the log), and a process that idles for months
//! should not be counted by it. What is needed again comes back from the page cache, or from the file.
//!
//! Always true: only whole system pages inside the range are given back, and nobody else can see them
//! meanwhile, for the caller lends the range exclusively; they read as zeros afterwards. Of the program, only
//! what nobody can have written to.

use core::mem::MaybeUninit;
use core::ops::Range;
use std::fs::File;
use std::io::{self, Read};

use bytemuck::Pod;

/// More than the list of mappings takes; what is beyond stays mapped.
const MAPS_BYTES: usize = 8 << 10;

/// So many zeros that take no memory before they are written to. From most C libraries large zeroed memory
/// comes untouched; zig's writes the zeros, so what it touched goes back at once.
pub(super) fn untouched<T: Pod>(count: usize) -> Box<[T]> {
    let mut zeros = bytemuck::zeroed_slice_box(count);
    give_back(bytemuck::cast_slice_mut(&mut zeros));
    zeros
}

/// Gives back the whole system pages within `range`, and says which of its bytes they are. A system that will
/// not take them keeps them: nothing is lost but the saving.
#[allow(unsafe_code, reason = "madvise is a call to the system, and there is no safe form of it")]
pub(super) fn give_back(range: &mut [u8]) -> Range<usize> {
    // SAFETY: the range is ours alone and any bytes, zeros included, are values of it.
    unsafe { advise(range.as_mut_ptr(), range.len()) }
}

/// The same for room in which there is no value.
#[allow(unsafe_code, reason = "madvise is a call to the system, and there is no safe form of it")]
pub(super) fn give_back_room<T>(room: &mut [MaybeUninit<T>]) {
    // SAFETY: the room is ours alone, and what is not initialised may be any bytes.
    unsafe { advise(room.as_mut_ptr().cast(), size_of_val(room)) };
}

/// Whether the system would give room for all of these numbers of bytes, each in one piece, at this moment.
/// Of what it gives to find out nothing is touched, and all of it goes back.
#[allow(unsafe_code, reason = "mmap is a call to the system, and there is no safe form of it")]
pub fn would_be_given(pieces: impl Iterator<Item = u64>) -> bool {
    let (rights, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let mut given = Vec::new();
    let all = pieces.filter(|bytes| *bytes > 0).all(|bytes| {
        let Ok(bytes) = usize::try_from(bytes) else { return false };
        // SAFETY: memory of nobody's, at an address that the system chooses.
        let first = unsafe { libc::mmap(core::ptr::null_mut(), bytes, rights, kind, -1, 0) };
        let is_given = first != libc::MAP_FAILED;
        given.extend(is_given.then_some((first, bytes)));
        is_given
    });
    for (first, bytes) in given {
        // SAFETY: it was given above, and nobody has ever looked at it.
        unsafe { libc::munmap(first, bytes) };
    }
    all
}

/// Lets go of the code and constants that were mapped so far, the C library's too; whatever runs next comes
/// back by itself.
pub fn let_go_of_start() {
    let mut text = [0; MAPS_BYTES];
    // Without /proc it stays: nothing is lost but the saving.
    let read = File::open("/proc/self/maps").and_then(|mut maps| read_into(&mut maps, &mut text));
    let lines = text[..read.unwrap_or(0)].split(|byte| *byte == b'\n');
    let lines = lines.filter_map(|line| core::str::from_utf8(line).ok());
    lines.filter_map(never_written).for_each(|range| drop_clean(&range));
}

/// Reads what there is and fits, and says how much that was.
fn read_into(from: &mut File, text: &mut [u8]) -> io::Result<usize> {
    let mut end = 0;
    loop {
        match from.read(&mut text[end..])? {
            0 => return Ok(end),
            more => end += more,
        }
    }
}

/// The addresses of a mapping of a file that nobody can have written to: code, or the first part of the file
/// (constants, symbols). What the loader relocated and then protected stands behind the code.
fn never_written(line: &str) -> Option<Range<usize>> {
    let mut fields = line.split_ascii_whitespace();
    let (addresses, rights, offset) = (fields.next()?, fields.next()?, fields.next()?);
    let is_of_a_file = fields.nth(2)?.starts_with('/');
    let is_clean = rights == "r-xp" || rights == "r--p" && offset.bytes().all(|digit| digit == b'0');
    let (start, end) = addresses.split_once('-')?;
    let address = |digits| usize::from_str_radix(digits, 16).ok();
    (is_of_a_file && is_clean).then_some(address(start)?..address(end)?)
}

#[allow(unsafe_code, reason = "madvise is a call to the system, and there is no safe form of it")]
fn drop_clean(mapping: &Range<usize>) {
    let first = core::ptr::with_exposed_provenance_mut(mapping.start);
    // SAFETY: the kernel says that this is a private mapping of a file that is not writable. It never was:
    // loaders relocate data only, for neither we nor a C library have relocations in code. Whoever runs or
    // reads it finds the same bytes of the file again.
    let result = unsafe { libc::madvise(first, mapping.len(), libc::MADV_DONTNEED) };
    if result != 0 {
        log::debug!("the system keeps what the start needed: {}", io::Error::last_os_error());
    }
}

/// # Safety
/// The range is exclusively the caller's, from the heap (so private and anonymous), and may become zeros.
#[allow(unsafe_code, reason = "madvise is a call to the system, and there is no safe form of it")]
unsafe fn advise(first: *mut u8, bytes: usize) -> Range<usize> {
    let page_bytes = rustix::param::page_size();
    let start = first.align_offset(page_bytes).min(bytes);
    let len = (bytes - start) / page_bytes * page_bytes;
    if len == 0 {
        return 0..0;
    }
    // SAFETY: by the caller's word for the range; this part of it begins and ends at page boundaries.
    let result = unsafe { libc::madvise(first.add(start).cast(), len, libc::MADV_DONTNEED) };
    if result != 0 {
        log::debug!("the system does not take {len} bytes back: {}", io::Error::last_os_error());
    }
    start..start + len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_as_in_its_file_is_let_go() {
        let range = Some(0xcb36_c000..0xcb4c_2000);
        for clean in [
            "cb36c000-cb4c2000 r-xp 00026000 fe:00 1835 /usr/lib/libc.so.6",
            "cb36c000-cb4c2000 r--p 00000000 fe:00 1835 /usr/lib/libc.so.6",
            "cb36c000-cb4c2000 r-xp 000cd000 08:01 12 /opt/a folder/leveret (deleted)",
        ] {
            assert_eq!(never_written(clean), range, "{clean}");
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
            assert_eq!(never_written(other), None, "{other}");
        }
    }

    #[test]
    fn more_than_there_are_addresses_is_not_given() {
        assert!(would_be_given([0, 1, 1 << 20].into_iter()));
        assert!(!would_be_given([1 << 20, 1 << 62].into_iter()));
    }

    #[test]
    fn what_is_let_go_comes_back() {
        let shown =
            |number: u32| format!("{number} is written by code of the program and by constants in it");
        let (before, kept) = (shown(7), vec![7; 100_000]);
        let_go_of_start();
        assert_eq!(shown(7), before);
        assert!(kept.iter().all(|number| *number == 7));
    }
}
