//! A thread that waits for the disk, so that the loop need not.
//!
//! ```text
//! loop ──jobs──→ helper ──results──→ loop        bounded queues both ways; the waker ends the poll
//! ```
//!
//! Always true: a helper holds no state of the broker, just the job in hand and its disk; a job that was
//! taken gives a result, unless the process ends; the loop never waits for a helper but at the very end.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use heapless::spsc::{Consumer, Producer, Queue};
use mio::Waker;

use leveret_core::limits::HELPER_STACK_BYTES;

/// Jobs or results on their way: one job at a time, and the word to stop.
const PLACES: usize = 4;

/// What a helper is told.
enum Order<J> {
    Do(J),
    Stop,
}

/// The loop's end of a helper.
pub(super) struct Helper<J: Send + 'static, D: Send + 'static> {
    orders: Producer<'static, Order<J>>,
    results: Consumer<'static, D>,
    thread: Option<JoinHandle<()>>,
}

impl<J: Send + 'static, D: Send + 'static> Helper<J, D> {
    /// Starts a thread that does jobs with `work`.
    ///
    /// # Errors
    /// The system starts no more threads.
    pub(super) fn start(
        name: &str,
        waker: Arc<Waker>,
        work: impl FnMut(J) -> D + Send + 'static,
    ) -> io::Result<Self> {
        Self::start_with_stack(name, waker, HELPER_STACK_BYTES, work)
    }

    /// The same with a stack of so many bytes.
    ///
    /// # Errors
    /// The system starts no more threads.
    pub(super) fn start_with_stack(
        name: &str,
        waker: Arc<Waker>,
        stack_bytes: usize,
        mut work: impl FnMut(J) -> D + Send + 'static,
    ) -> io::Result<Self> {
        // They live as long as the process: one pair per helper.
        let orders: &'static mut Queue<Order<J>, PLACES> = Box::leak(Box::new(Queue::new()));
        let results: &'static mut Queue<D, PLACES> = Box::leak(Box::new(Queue::new()));
        let (orders, mut to_do) = orders.split();
        let (mut done, results) = results.split();
        let builder = thread::Builder::new().name(name.to_string()).stack_size(stack_bytes);
        let thread = builder.spawn(move || {
            let _alarm = Alarm;
            loop {
                match to_do.dequeue() {
                    Some(Order::Do(job)) => {
                        let is_told = done.enqueue(work(job)).is_ok();
                        assert!(is_told, "there is a place for the result of the one job");
                        if let Err(error) = waker.wake() {
                            log::error!("the loop cannot be woken: {error}");
                        }
                    }
                    Some(Order::Stop) => return,
                    None => thread::park(),
                }
            }
        })?;
        Ok(Self { orders, results, thread: Some(thread) })
    }

    /// Gives it a job; the one before must be done.
    pub(super) fn give(&mut self, job: J) {
        let is_given = self.orders.enqueue(Order::Do(job)).is_ok();
        assert!(is_given, "one job at a time");
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }

    /// A result, if one is there.
    pub(super) fn take(&mut self) -> Option<D> {
        self.results.dequeue()
    }
}

impl<J: Send + 'static, D: Send + 'static> Drop for Helper<J, D> {
    fn drop(&mut self) {
        let is_told = self.orders.enqueue(Order::Stop).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| is_told) {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// A helper that fails would leave everybody waiting for ever; so the process ends.
struct Alarm;

impl Drop for Alarm {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}
