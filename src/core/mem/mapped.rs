//! Memory that is mapped from the system: reserved as addresses at start, made accessible as far as it is used, and
//! returned while it is unused. This is the only file with `unsafe` code.
//!
//! Without the return, the process stayed 16.9 MB larger after one message of 16 MiB (measured). On a board with 64
//! MB, a burst must not take memory permanently. Freeing the pools and allocating them again would have the
//! same effect, but then messages would have to wait for the allocator.
//!
//! A mapping begins without access rights, so the kernel does not count it as used memory, even with
//! `vm.overcommit_memory=2`.
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
use core::ops::{Deref, DerefMut, Range};
use core::ptr::NonNull;
use std::fs::File;
use std::io::{self, Read};

use bytemuck::{Pod, Zeroable};

/// Maximum number of bytes read of the list of mappings, which usually is shorter. Mappings after them are
/// not dropped.
const MAPS_BYTES: usize = 8 << 10;

/// The readable part grows in steps of this many bytes, to save system calls.
const STEP_BYTES: usize = 256 << 10;

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

/// Returns whether the system currently provides this many bytes of addresses. They are returned at once.
#[allow(unsafe_code, reason = "mmap is a call to the system, and there is no safe form of it")]
pub fn can_be_reserved(bytes: u64) -> bool {
    let Ok(bytes) = usize::try_from(bytes) else { return false };
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new anonymous mapping, at an address that the system chooses, overlaps no other memory.
    let first = unsafe { libc::mmap(core::ptr::null_mut(), bytes, libc::PROT_NONE, kind, -1, 0) };
    if first != libc::MAP_FAILED {
        // SAFETY: the mapping was created above, and no reference to it exists.
        unsafe { libc::munmap(first, bytes) };
    }
    first != libc::MAP_FAILED
}

/// Returns the free pages of the heap to the system. glibc returns by itself only what is free at the heap's end. Other C
/// libraries have no such call; musl returns pages when the allocations in them are freed.
#[allow(unsafe_code, reason = "malloc_trim is a call to the C library, and there is no safe form of it")]
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call only changes free memory of the allocator, which takes its own lock.
    unsafe {
        libc::malloc_trim(0);
    }
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
/// The range must be exclusively the caller's, private and anonymous, and may become zeros.
#[allow(unsafe_code, reason = "madvise is a call to the system, and there is no safe form of it")]
unsafe fn advise(first: *mut u8, bytes: usize) -> Range<usize> {
    let page_bytes = rustix::param::page_size();
    let start = first.align_offset(page_bytes).min(bytes);
    let len = (bytes - start) / page_bytes * page_bytes;
    if len == 0 {
        return 0..0;
    }
    // SAFETY: the caller guarantees the range; this part of it begins and ends at page boundaries.
    let result = unsafe {
        let first = first.add(start).cast();
        match libc::madvise(first, len, libc::MADV_DONTNEED) {
            0 => Ok(()),
            _ => drop_locked(first, len),
        }
    };
    if let Err(error) = result {
        log::debug!("the system did not take back {len} bytes: {error}");
    }
    start..start + len
}

/// An array of `max` values, of which the first `len` can be accessed. They begin as zeros.
#[derive(Debug)]
pub(super) struct Region<T> {
    first: NonNull<T>,
    len: usize,
    max: usize,
}

impl<T: Zeroable> Region<T> {
    /// Reserves addresses for `max` values.
    ///
    /// # Panics
    /// Panics if the system does not provide the addresses. The start checks this before, with
    /// [`can_be_mapped`](super::can_be_mapped).
    #[allow(unsafe_code, reason = "mmap is a call to the system, and there is no safe form of it")]
    pub(super) fn reserve(max: usize) -> Self {
        let bytes = Self::bytes_of(max);
        if bytes == 0 {
            return Self { first: NonNull::dangling(), len: max, max };
        }
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping, at an address that the system chooses, overlaps no other memory.
        let first = unsafe { libc::mmap(core::ptr::null_mut(), bytes, libc::PROT_NONE, kind, -1, 0) };
        match NonNull::new(first.cast::<T>()) {
            Some(first) if first.as_ptr().cast() != libc::MAP_FAILED => Self { first, len: 0, max },
            _ => panic!("the system does not provide {bytes} bytes of addresses"),
        }
    }

    /// Makes at least the first `count` values accessible. Returns `false`, and changes nothing, if the system does not
    /// provide the memory.
    #[allow(unsafe_code, reason = "mprotect is a call to the system, and there is no safe form of it")]
    pub(super) fn open(&mut self, count: usize) -> bool {
        if count <= self.len {
            return true;
        }
        assert!(count <= self.max, "a pool uses only the addresses that it has reserved");
        let bytes = Self::bytes_of(count).next_multiple_of(STEP_BYTES).min(Self::bytes_of(self.max));
        // SAFETY: the range is the beginning of the mapping, which belongs to `self`.
        let result =
            unsafe { libc::mprotect(self.first.as_ptr().cast(), bytes, libc::PROT_READ | libc::PROT_WRITE) };
        if result == 0 {
            self.len = bytes / size_of::<T>();
        }
        result == 0
    }

    /// Returns the whole system pages within a range of values to the system. The values become zeros.
    #[allow(unsafe_code, reason = "madvise is a call to the system, and there is no safe form of it")]
    pub(super) fn give_back(&mut self, range: Range<usize>) {
        // What was never accessible is not resident. The page of the last accessible value has no other value.
        let end = match range.end < self.len {
            true => Self::bytes_of(range.end),
            false => Self::bytes_of(self.len).next_multiple_of(rustix::param::page_size()),
        };
        let start = Self::bytes_of(range.start).min(end);
        // SAFETY: the range belongs to the mapping, which is anonymous and borrowed mutably; zeros are valid values.
        unsafe { advise(self.first.as_ptr().cast::<u8>().add(start), end - start) };
    }
}

impl<T> Region<T> {
    const fn bytes_of(count: usize) -> usize {
        count.saturating_mul(size_of::<T>())
    }
}

impl<T> Deref for Region<T> {
    type Target = [T];

    #[inline]
    #[allow(unsafe_code, reason = "the memory is mapped by hand")]
    fn deref(&self) -> &[T] {
        // SAFETY: the first `len` values are readable, and each was written or is zero, which is valid.
        unsafe { core::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Region<T> {
    #[inline]
    #[allow(unsafe_code, reason = "the memory is mapped by hand")]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; `self` is borrowed mutably.
        unsafe { core::slice::from_raw_parts_mut(self.first.as_ptr(), self.len) }
    }
}

impl<T> Drop for Region<T> {
    #[allow(unsafe_code, reason = "munmap is a call to the system, and there is no safe form of it")]
    fn drop(&mut self) {
        let bytes = Self::bytes_of(self.max);
        if bytes > 0 {
            // SAFETY: the mapping was created by `reserve`, and no reference to it exists any more.
            unsafe { libc::munmap(self.first.as_ptr().cast(), bytes) };
        }
    }
}

/// The memory of one record, which may be unused. Zeros are an unused place.
pub(super) struct Place<T> {
    record: MaybeUninit<T>,
    is_used: bool,
}

// SAFETY: a `MaybeUninit` has no invalid bytes, and zero is `false`.
#[allow(unsafe_code, reason = "returned memory reads as zeros, for which the standard library has no trait")]
unsafe impl<T> Zeroable for Place<T> {}

impl<T> Place<T> {
    /// Returns the record, if the place is used.
    #[inline]
    #[allow(unsafe_code, reason = "an `Option` does not guarantee that zeros are `None`")]
    pub(super) const fn get(&self) -> Option<&T> {
        // SAFETY: `is_used` is set only while there is a record.
        if self.is_used { Some(unsafe { self.record.assume_init_ref() }) } else { None }
    }

    /// Returns the record for changing, if the place is used.
    #[inline]
    #[allow(unsafe_code, reason = "an `Option` does not guarantee that zeros are `None`")]
    pub(super) const fn get_mut(&mut self) -> Option<&mut T> {
        // SAFETY: `is_used` is set only while there is a record.
        if self.is_used { Some(unsafe { self.record.assume_init_mut() }) } else { None }
    }

    /// Stores a record in an unused place.
    #[inline]
    pub(super) fn put(&mut self, record: T) {
        assert!(!self.is_used, "a record is stored only in an unused place");
        self.record.write(record);
        self.is_used = true;
    }

    /// Moves the record out, if the place is used.
    #[inline]
    #[allow(unsafe_code, reason = "an `Option` does not guarantee that zeros are `None`")]
    pub(super) fn take(&mut self) -> Option<T> {
        let was_used = core::mem::replace(&mut self.is_used, false);
        // SAFETY: there was a record, and nothing reads it again, because `is_used` is cleared.
        was_used.then(|| unsafe { self.record.assume_init_read() })
    }
}

/// Returns locked pages (`memory_lock`) to the system. Later ones at these addresses are locked when they are touched.
///
/// # Safety
/// As for [`advise`], and the range begins and ends at page boundaries.
#[cold]
#[allow(unsafe_code, reason = "munlock is a call to the system, and there is no safe form of it")]
unsafe fn drop_locked(first: *mut libc::c_void, bytes: usize) -> rustix::io::Result<()> {
    use rustix::mm::{Advice, MlockFlags, madvise, mlock_with, munlock};
    // SAFETY: the caller guarantees the range.
    unsafe {
        munlock(first, bytes)?;
        madvise(first, bytes, Advice::LinuxDontNeed)?;
        mlock_with(first, bytes, MlockFlags::ONFAULT)
    }
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
