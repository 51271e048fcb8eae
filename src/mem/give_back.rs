//! Memory that is not needed any more, given back to the system while its addresses stay ours.
//!
//! The one place with `unsafe`. The need, measured: after one message of 16 MiB the process stayed 16.9 MB
//! larger for good, and on a board that shares 64 MB with everything else a burst must not be paid for ever.
//! Freeing and allocating anew would do too, but would allocate in the way of messages.
//!
//! Always true: only whole system pages inside the range are given back, and nobody else can see them
//! meanwhile, for the caller lends the range exclusively; they read as zeros afterwards.

use core::mem::MaybeUninit;
use core::ops::Range;

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
        log::debug!("the system does not take {len} bytes back: {}", std::io::Error::last_os_error());
    }
    start..start + len
}
