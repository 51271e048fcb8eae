//! Memory that is not needed any more, given back to the system while its addresses stay ours.
//!
//! The one place with `unsafe`. The need, measured: after one message of 16 MiB the process stayed 16.9 MB
//! larger for good, and on a board that shares 64 MB with everything else a burst must not be paid for ever.
//! Freeing and allocating anew would do too, but would allocate in the way of messages.
//!
//! Always true: only whole system pages inside the range are given back, and nobody else can see them
//! meanwhile, for the caller lends the range exclusively; they read as zeros afterwards.

/// Gives back the whole system pages within `range`. A system that will not take them keeps them: nothing
/// is lost but the saving.
#[allow(unsafe_code, reason = "madvise is a call to the system, and there is no safe form of it")]
pub(super) fn give_back(range: &mut [u8]) {
    // 64 KiB is the largest page size of the boards we know, and a multiple of the others.
    const SYSTEM_PAGE_BYTES: usize = 64 << 10;
    let start = range.as_mut_ptr().align_offset(SYSTEM_PAGE_BYTES);
    let len = range.len().saturating_sub(start) / SYSTEM_PAGE_BYTES * SYSTEM_PAGE_BYTES;
    if len == 0 {
        return;
    }
    let pages = &mut range[start..start + len];
    // SAFETY: the range is ours alone, private and anonymous (it was allocated zeroed on the heap), begins
    // and ends at page boundaries, and any bytes, zeros included, are valid in it.
    let result = unsafe { libc::madvise(pages.as_mut_ptr().cast(), pages.len(), libc::MADV_DONTNEED) };
    if result != 0 {
        log::debug!("the system does not take {len} bytes back: {}", std::io::Error::last_os_error());
    }
}
