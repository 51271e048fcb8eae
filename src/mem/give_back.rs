//! Memory that is not needed any more, given back to the system while its addresses stay ours.
//!
//! The one place with `unsafe`. The need, measured: after one message of 16 MiB the process stayed 16.9 MB
//! larger for good, and on a board that shares 64 MB with everything else a burst must not be paid for ever.
//! Freeing and allocating anew would do too, but would allocate in the way of messages.
//!
//! Always true: only whole system pages inside the range are given back, and nobody else can see them
//! meanwhile, for the caller lends the range exclusively; they read as zeros afterwards.

/// Gives back the whole system pages within `range`, and says which of its bytes they are. A system that will
/// not take them keeps them: nothing is lost but the saving.
#[allow(unsafe_code, reason = "madvise is a call to the system, and there is no safe form of it")]
pub(super) fn give_back(range: &mut [u8]) -> core::ops::Range<usize> {
    let page_bytes = rustix::param::page_size();
    let start = range.as_mut_ptr().align_offset(page_bytes);
    let len = range.len().saturating_sub(start) / page_bytes * page_bytes;
    if len == 0 {
        return 0..0;
    }
    let pages = &mut range[start..start + len];
    // SAFETY: the range is ours alone, private and anonymous (it was allocated zeroed on the heap), begins
    // and ends at page boundaries, and any bytes, zeros included, are valid in it.
    let result = unsafe { libc::madvise(pages.as_mut_ptr().cast(), pages.len(), libc::MADV_DONTNEED) };
    if result != 0 {
        log::debug!("the system does not take {len} bytes back: {}", std::io::Error::last_os_error());
    }
    start..start + len
}
