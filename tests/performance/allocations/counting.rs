//! An allocator that counts, for tests about allocations and memory in use.
//!
//! A thread is counted in the count that it names, while it says so. Tests that run at the same time therefore do
//! not disturb each other. Memory in use is counted per thread. With `LEVERET_TRACE_ALLOCATIONS=1` each counted
//! allocation prints its origin.

#![allow(unsafe_code, reason = "an allocator that counts has to be one")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// Allocations of the threads that are counted here.
pub(crate) struct Count {
    allocations: AtomicU64,
    largest_bytes: AtomicU64,
}

impl Count {
    pub(crate) const fn new() -> Self {
        Self { allocations: AtomicU64::new(0), largest_bytes: AtomicU64::new(0) }
    }

    /// From now on this thread is counted here.
    pub(crate) fn this_thread(&'static self) {
        COUNTED_IN.set(Some(self));
    }

    /// So far.
    pub(crate) fn allocations(&self) -> u64 {
        self.allocations.load(Ordering::SeqCst)
    }

    /// Bytes of the largest since this was asked for last.
    pub(crate) fn take_largest(&self) -> u64 {
        self.largest_bytes.swap(0, Ordering::SeqCst)
    }

    fn add(&self, bytes: usize) {
        self.allocations.fetch_add(1, Ordering::SeqCst);
        self.largest_bytes.fetch_max(bytes as u64, Ordering::SeqCst);
        if std::env::var_os("LEVERET_TRACE_ALLOCATIONS").is_some() {
            eprintln!("{bytes} bytes: {}", std::backtrace::Backtrace::force_capture());
        }
    }
}

/// From now on this thread is not counted.
pub(crate) fn stop() {
    COUNTED_IN.set(None);
}

/// Returns the bytes that this thread allocated minus those that it freed.
pub(crate) fn held_bytes() -> isize {
    HELD_BYTES.get()
}

/// Bytes that it holds more than it did.
pub(crate) fn held_bytes_since(before: isize) -> usize {
    usize::try_from(held_bytes() - before).expect("it holds more than before")
}

/// The most bytes that this thread holds at once while it does something, beyond what it held before.
pub(crate) fn peak_bytes_of(act: impl FnOnce()) -> usize {
    let before = held_bytes();
    PEAK_BYTES.set(before);
    act();
    usize::try_from(PEAK_BYTES.get() - before).expect("it is no less than before")
}

struct Counting;

thread_local! {
    static COUNTED_IN: Cell<Option<&'static Count>> = const { Cell::new(None) };
    static HELD_BYTES: Cell<isize> = const { Cell::new(0) };
    static PEAK_BYTES: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: usize) {
    // Telling allocates too.
    if let Some(count) = COUNTED_IN.take() {
        count.add(bytes);
        count.this_thread();
    }
}

fn hold(more: usize, less: usize) {
    let held = HELD_BYTES.get() + more as isize;
    PEAK_BYTES.set(PEAK_BYTES.get().max(held));
    HELD_BYTES.set(held - less as isize);
}

// SAFETY: everything is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        hold(layout.size(), 0);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        hold(layout.size(), 0);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size);
        hold(new_size, layout.size());
        // SAFETY: the caller's promise is handed on.
        unsafe { System.realloc(pointer, layout, new_size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        hold(0, layout.size());
        // SAFETY: the caller's promise is handed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
