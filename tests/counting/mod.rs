//! An allocator that counts, for tests that say what allocates nothing or how much is held.
//!
//! A thread is counted while it says so; what is held is counted in all of them. With
//! `LEVERET_TRACE_ALLOCATIONS=1` each counted allocation says where it comes from.

#![allow(unsafe_code, reason = "an allocator that counts has to be one")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

struct Counting;

thread_local! {
    static IS_COUNTED: Cell<bool> = const { Cell::new(false) };
}

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static LARGEST: AtomicU64 = AtomicU64::new(0);
static HELD: AtomicUsize = AtomicUsize::new(0);

/// From now on this thread is counted, or is not; says what it was.
pub(crate) fn count_this_thread(is_counted: bool) -> bool {
    IS_COUNTED.with(|cell| cell.replace(is_counted))
}

/// Allocations of counted threads so far.
pub(crate) fn allocations() -> u64 {
    ALLOCATIONS.load(Ordering::SeqCst)
}

/// Bytes of the largest of them since this was asked for last.
pub(crate) fn take_largest() -> u64 {
    LARGEST.swap(0, Ordering::SeqCst)
}

/// Bytes that the whole process holds.
pub(crate) fn held_bytes() -> usize {
    HELD.load(Ordering::SeqCst)
}

fn count(bytes: usize) {
    // Telling allocates too.
    if count_this_thread(false) {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        LARGEST.fetch_max(bytes as u64, Ordering::SeqCst);
        if std::env::var_os("LEVERET_TRACE_ALLOCATIONS").is_some() {
            eprintln!("{bytes} bytes: {}", std::backtrace::Backtrace::force_capture());
        }
        count_this_thread(true);
    }
}

// SAFETY: everything is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        HELD.fetch_add(layout.size(), Ordering::SeqCst);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        HELD.fetch_add(layout.size(), Ordering::SeqCst);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size);
        HELD.fetch_add(new_size, Ordering::SeqCst);
        HELD.fetch_sub(layout.size(), Ordering::SeqCst);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.realloc(pointer, layout, new_size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::SeqCst);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
