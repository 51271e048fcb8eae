//! The memory that all pools share, counted in extents.
//!
//! A pool reserves addresses for as many records as it could ever have. An *extent* of them becomes resident when a
//! record is first stored in it; before that, the pool takes the extent from this counter. When the extent has no record
//! any more, its pages are returned to the system, and the extent is given back here. Extents are counted and not
//! records, so the resident memory is bounded even if each extent has only one record.
//!
//! Each pool belongs to a class. A class has a floor: other classes cannot take that part, even while it is unused.
//! So clients can log in, consume and acknowledge although messages or definitions use all other memory.
//!
//! A command takes records of several pools, and must not fail after it took the first one. So it first checks all pools.
//! These checks leave [`COMMAND_EXTENTS`], and only a command that has passed them takes from these. While some of them
//! are used, a check succeeds only if the pool needs no further extent. So a command either finds all of them, or
//! needs none.
//!
//! # Invariants
//! - The extents of all pools together are at most the extents of the memory. Only a start with less memory than before may
//!   take more, for the rest of a definition that it has begun to restore.
//! - A class can always reach its floor, and a pool its own, except for what one command took of [`COMMAND_EXTENTS`].

use core::cell::Cell;
use std::rc::Rc;

/// Bytes of an extent: a page of the kernel on most boards. Where pages are larger, such as on a Raspberry Pi 5, a pool takes
/// several extents at once. About 50 pools and tables have at least one or two of them. With extents of 16 KiB, a router with
/// 16 MB had room for 51 MQTT clients, where it has room for 100 now.
pub const EXTENT_BYTES: usize = 4 << 10;

/// Number of extents that only commands can take that have checked all their pools: more than one command needs. A declaration
/// needs up to four for each pool with its table; what may be larger (names, pairs of headers) is checked exactly.
pub const COMMAND_EXTENTS: usize = 48;

/// Number of extents, or of pages of the kernel if these are larger, that clients can always have, even in the smallest memory.
/// They are for the first records of all their pools, so that one client can log in, consume and have a session.
const CLIENT_EXTENTS_MIN: usize = 48;

/// Number of extents that each pool of messages can always have: 16 KiB.
pub(super) const POOL_EXTENTS: usize = (16 << 10) / EXTENT_BYTES;

/// What a pool's records are for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Connections, channels, consumers and deliveries.
    Clients,
    /// Queues, exchanges, bindings, users, permissions, policies, parameters, sessions and subscriptions.
    Definitions,
    /// Messages, their bodies, and their entries in queues.
    Messages,
}

/// Number of classes.
const CLASSES: usize = 3;

/// The memory of all pools of a broker.
#[derive(Clone, Debug)]
pub struct Memory(Rc<Counts>);

#[derive(Debug)]
struct Counts {
    extents: usize,
    classes: [ClassCounts; CLASSES],
    /// Number of extents given back since the start.
    given: Cell<u64>,
    /// Extents that a kernel's page has: all counts are multiples of this.
    unit: usize,
    /// The broker restores what it had before its start.
    is_restoring: Cell<bool>,
    /// Bytes that were freed in the heap since [`Memory::forget_freed_heap`] was called last.
    heap_freed: Cell<usize>,
    /// An account was refused since [`Memory::take_shortage`] was called last.
    is_refused: Cell<bool>,
}

#[derive(Debug)]
struct ClassCounts {
    floor: usize,
    /// Extents that the class leaves to others when it takes more than its floor. A queue may use only twice what is free, so
    /// definitions that took all of that would stop the publishers to all queues.
    left: usize,
    /// Extents of all its pools; of a pool that has not reached its own floor, that floor.
    used: Cell<usize>,
    /// Extents that its pools can take beyond their own floors, without [`COMMAND_EXTENTS`].
    available: Cell<usize>,
}

impl Memory {
    /// Creates a memory of this many extents. `floors` are extents that only the pools of a class can take, in the order of
    /// [`Class`]; their sum is at most `extents`. If a page of the kernel is larger than an extent, all are rounded down to
    /// whole pages.
    pub fn new(extents: usize, floors: [usize; CLASSES]) -> Self {
        Self::with_unit(extents, floors, [0; CLASSES], rustix::param::page_size().div_ceil(EXTENT_BYTES))
    }

    fn with_unit(extents: usize, floors: [usize; CLASSES], left: [usize; CLASSES], unit: usize) -> Self {
        let whole = |extents: usize| extents / unit * unit;
        let class = |index: usize| ClassCounts {
            floor: whole(floors[index]),
            left: whole(left[index]),
            used: Cell::new(0),
            available: Cell::new(0),
        };
        let counts = Counts {
            extents: whole(extents),
            classes: core::array::from_fn(class),
            given: Cell::new(0),
            unit,
            is_restoring: Cell::new(false),
            heap_freed: Cell::new(0),
            is_refused: Cell::new(false),
        };
        counts.update();
        Self(Rc::new(counts))
    }

    /// Creates a memory of this many bytes. Clients and definitions can always have a tenth of it, and messages an eighth; clients
    /// at least [`CLIENT_EXTENTS_MIN`]. Beyond these, definitions leave another eighth to messages, and clients a sixteenth.
    pub fn with_bytes(bytes: u64) -> Self {
        // The bitmaps of the pools take less than 1/64 of their bytes.
        let extents = usize::try_from(bytes / 64 * 63).unwrap_or(usize::MAX) / EXTENT_BYTES;
        let unit = rustix::param::page_size().div_ceil(EXTENT_BYTES);
        let floors = [(extents / 10).max(CLIENT_EXTENTS_MIN * unit), extents / 10, extents / 8];
        Self::with_unit(extents, floors, [extents / 16, extents / 8, 0], unit)
    }

    /// Returns a memory without an end, for a pool of which only the number of records is limited.
    pub fn unlimited() -> Self {
        Self::new(usize::MAX / 2, [0; CLASSES])
    }

    /// Opens the account of a pool. `floor` is the number of extents that the pool can always take, rounded up to whole pages
    /// of the kernel.
    pub fn account(&self, class: Class, floor: usize) -> Account {
        let mut account = Account { counts: Rc::clone(&self.0), class, held: 0, floor: 0 };
        account.set_floor(floor);
        account
    }

    /// Sets whether the broker restores what it had before its start. The checks for capacity then leave no extents, because
    /// commands may have taken the last ones before. A command that has passed them may take more than there are, because
    /// there may be less memory than before.
    pub fn set_restoring(&self, is_restoring: bool) {
        self.0.is_restoring.set(is_restoring);
        self.0.update();
    }

    /// Returns the bytes that the pools of a class could have together now.
    pub fn class_bytes(&self, class: Class) -> u64 {
        let class = &self.0.classes[class as usize];
        (class.used.get() as u64 + class.available.get() as u64).saturating_mul(EXTENT_BYTES as u64)
    }

    /// Returns the bytes that the pools of a class hold, own floors that they have not reached included.
    pub fn class_used_bytes(&self, class: Class) -> u64 {
        (self.0.classes[class as usize].used.get() as u64).saturating_mul(EXTENT_BYTES as u64)
    }

    /// Returns the bytes that a pool of this class could take now, so that [`COMMAND_EXTENTS`] stay available.
    pub fn free_bytes(&self, class: Class) -> usize {
        self.0.classes[class as usize].available.get().saturating_mul(EXTENT_BYTES)
    }

    /// Returns the number of extents that only the pools of a class can take.
    pub fn class_floor(&self, class: Class) -> usize {
        self.0.classes[class as usize].floor
    }

    /// Returns the number of extents that all pools hold together, own floors that they have not reached included.
    pub fn extents_used(&self) -> usize {
        self.0.classes.iter().map(|class| class.used.get()).sum()
    }

    /// Returns how many bytes were freed in the heap that the allocator may not have returned to the system.
    pub fn heap_freed(&self) -> usize {
        self.0.heap_freed.get()
    }

    /// Notes that the allocator has returned its free memory.
    pub fn forget_freed_heap(&self) {
        self.0.heap_freed.set(0);
    }

    /// Returns whether idle extents should be returned at once, because another pool needs them: an account was refused one
    /// since the last call, or a class has few left.
    pub fn take_shortage(&self) -> bool {
        let has_few = |class: &ClassCounts| class.available.get() < COMMAND_EXTENTS;
        self.0.is_refused.replace(false) || self.0.classes.iter().any(has_few)
    }
}

impl Counts {
    /// Computes again what each class can take.
    fn update(&self) {
        let all = self.reserved();
        let kept = if self.is_restoring.get() { 0 } else { COMMAND_EXTENTS * self.unit };
        for class in &self.classes {
            let others = all - class.reserved();
            let available = self.extents.saturating_sub(others + class.used.get() + kept);
            let up_to_floor = available.min(class.floor.saturating_sub(class.used.get()));
            class.available.set(available.saturating_sub(class.left).max(up_to_floor));
        }
    }

    /// Returns the extents that are used, or that only one class can take.
    fn reserved(&self) -> usize {
        self.classes.iter().map(ClassCounts::reserved).sum()
    }
}

impl ClassCounts {
    fn reserved(&self) -> usize {
        self.used.get().max(self.floor)
    }
}

/// The extents of one pool.
#[derive(Debug)]
pub struct Account {
    counts: Rc<Counts>,
    class: Class,
    held: usize,
    /// Number of extents that only this pool can take.
    floor: usize,
}

impl Account {
    /// Returns the account of a pool of which only the number of records is limited.
    pub fn unlimited() -> Self {
        Memory::unlimited().account(Class::Clients, 0)
    }

    /// Sets the number of extents that only this pool can take, rounded up to whole pages of the kernel.
    pub(super) fn set_floor(&mut self, extents: usize) {
        let reserved = self.reserved();
        self.floor = extents.next_multiple_of(self.counts.unit);
        let used = &self.class().used;
        used.set(used.get() - reserved + self.reserved());
        self.counts.update();
    }

    /// Returns the number of extents that a page of the kernel has. All counts are multiples of it.
    pub fn unit(&self) -> usize {
        self.counts.unit
    }

    /// Returns the number of extents that this pool holds.
    #[inline]
    pub const fn held(&self) -> usize {
        self.held
    }

    /// Returns the number of extents that this pool holds, or can always take.
    #[inline]
    pub const fn reserved(&self) -> usize {
        if self.held > self.floor { self.held } else { self.floor }
    }

    /// Returns how many more extents this pool can take so that [`COMMAND_EXTENTS`] stay.
    #[inline]
    pub fn available(&self) -> usize {
        self.own() + self.shared()
    }

    /// Returns how many more extents this pool can take up to its own floor.
    #[inline]
    pub const fn own(&self) -> usize {
        self.floor.saturating_sub(self.held)
    }

    /// Returns how many more extents each pool of this class can take beyond its own floor, so that [`COMMAND_EXTENTS`] stay.
    #[inline]
    pub fn shared(&self) -> usize {
        self.class().available.get()
    }

    /// Returns how many extents other pools of the class could take if this pool returned its idle ones, with
    /// `used_min` extents as the fewest that its records fit into.
    #[inline]
    pub fn spare(&self, used_min: usize) -> usize {
        self.reserved().saturating_sub(used_min.max(self.floor))
    }

    /// Returns the number of extents that all accounts gave back since the start. A pool that was refused may succeed when it has
    /// risen, or when a place in a touched extent of its own becomes free.
    pub fn given(&self) -> u64 {
        self.counts.given.get()
    }

    /// Returns whether the broker restores what it had before its start.
    pub fn is_restoring(&self) -> bool {
        self.counts.is_restoring.get()
    }

    /// Returns the number of extents that the pools of this class can have together now.
    pub fn class_max(&self) -> usize {
        self.class().used.get() + self.class().available.get()
    }

    /// Takes `count` extents, or none. Returns whether it took them.
    pub(super) fn take(&mut self, count: usize) -> bool {
        if count > self.available() {
            self.note_refusal();
            return false;
        }
        self.change(self.held + count);
        true
    }

    /// Takes `count` extents, or none, for a command that has checked all its pools: it may take from
    /// [`COMMAND_EXTENTS`]. Returns whether it took them.
    pub(super) fn take_checked(&mut self, count: usize) -> bool {
        let class = self.class();
        let others = self.counts.reserved() - class.reserved();
        let left = self.counts.extents.saturating_sub(others + class.used.get()) + self.own();
        if count > left && !self.counts.is_restoring.get() {
            self.note_refusal();
            return false;
        }
        self.change(self.held + count);
        true
    }

    /// Notes that a record of this pool found no extent.
    pub(super) fn note_refusal(&self) {
        self.counts.is_refused.set(true);
    }

    /// Gives `count` extents back.
    pub(super) fn give(&mut self, count: usize) {
        self.change(self.held - count);
        let given = &self.counts.given;
        given.set(given.get() + count as u64);
    }

    fn change(&mut self, held: usize) {
        let used = &self.class().used;
        used.set(used.get() - self.reserved() + held.max(self.floor));
        self.held = held;
        self.counts.update();
    }

    fn class(&self) -> &ClassCounts {
        &self.counts.classes[self.class as usize]
    }
}

impl Drop for HeapBytes {
    fn drop(&mut self) {
        self.subtract(self.used);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.give(self.held);
        let used = &self.class().used;
        used.set(used.get() - self.reserved());
        self.counts.update();
    }
}

/// Bytes outside the pools that are charged to a class of the memory: names in the heap, and tables with an entry for each record
/// of a pool.
#[derive(Debug)]
pub struct HeapBytes {
    account: Account,
    used: usize,
    /// Quarters of a byte that are charged for each byte.
    quarters: usize,
}

impl HeapBytes {
    /// Opens the account of bytes that are charged to `class`.
    pub fn in_memory(memory: &Memory, class: Class) -> Self {
        Self::with_quarters(memory, class, 4)
    }

    /// Opens the account of allocations of different lengths. The allocator adds bytes to each of them, and leaves gaps
    /// between them. So a quarter is charged in addition.
    pub fn with_gaps(memory: &Memory, class: Class) -> Self {
        Self::with_quarters(memory, class, 5)
    }

    /// Opens the account of names, of which the index of the log has a second copy. Otherwise as [`Self::with_gaps`].
    pub fn with_copies(memory: &Memory, class: Class) -> Self {
        Self::with_quarters(memory, class, 9)
    }

    fn with_quarters(memory: &Memory, class: Class, quarters: usize) -> Self {
        Self { account: memory.account(class, 0), used: 0, quarters }
    }

    /// Returns the number of bytes in use, without what is charged in addition.
    pub const fn used(&self) -> usize {
        self.used
    }

    /// Returns how many more bytes can be used, so that [`COMMAND_EXTENTS`] stay available.
    pub fn free(&self) -> usize {
        let bytes = self.account.held().saturating_add(self.account.available()).saturating_mul(EXTENT_BYTES);
        (bytes / self.quarters * 4).saturating_sub(self.used)
    }

    /// Counts `bytes` more, or none, and leaves [`COMMAND_EXTENTS`]. Returns whether it counted them.
    pub fn try_add(&mut self, bytes: usize) -> bool {
        let fits = bytes <= self.free();
        if fits {
            self.add(bytes);
        } else {
            self.account.note_refusal();
        }
        fits
    }

    /// Counts `bytes` more. The caller has checked [`Self::free`].
    ///
    /// # Panics
    /// Panics if there is no memory for them, which is a bug of the caller.
    pub fn add(&mut self, bytes: usize) {
        self.used += bytes;
        let needed = self.extents_needed().saturating_sub(self.account.held());
        let is_there = needed == 0 || self.account.take_checked(needed);
        assert!(is_there, "a command checks for the memory that it needs");
    }

    /// Counts `bytes` less.
    pub fn subtract(&mut self, bytes: usize) {
        self.used -= bytes;
        let freed = &self.account.counts.heap_freed;
        freed.set(freed.get() + bytes);
        let unneeded = self.account.held() - self.extents_needed();
        if unneeded > 0 {
            self.account.give(unneeded);
        }
    }

    fn extents_needed(&self) -> usize {
        let unit = self.account.counts.unit;
        (self.used * self.quarters).div_ceil(4 * EXTENT_BYTES * unit) * unit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_takes_what_is_free_but_not_the_floors_of_others() {
        let memory = Memory::new(200 + COMMAND_EXTENTS, [20, 40, 60]);
        let [mut clients, mut definitions, mut messages] =
            [Class::Clients, Class::Definitions, Class::Messages].map(|class| memory.account(class, 0));
        assert_eq!([clients.available(), definitions.available(), messages.available()], [100, 120, 140]);
        assert!(!messages.take(141) && memory.take_shortage());
        assert!(messages.take(140));
        assert_eq!([clients.available(), definitions.available(), messages.available()], [20, 40, 0]);
        assert!(clients.take(20) && definitions.take(40));
        assert!(!clients.take(1) && !definitions.take(1) && !messages.take(1));
        messages.give(90);
        assert_eq!([clients.available(), definitions.available(), messages.available()], [80, 80, 90]);
        assert_eq!((messages.given(), messages.held(), messages.class_max()), (90, 50, 140));
        assert!(memory.take_shortage() && !memory.take_shortage(), "no class has few");
    }

    #[test]
    fn a_pool_can_always_take_its_own_floor() {
        let memory = Memory::new(10 + COMMAND_EXTENTS, [0; CLASSES]);
        let mut large = memory.account(Class::Messages, 0);
        let mut small = memory.account(Class::Messages, 2);
        assert_eq!((large.available(), small.available()), (8, 10));
        assert!(large.take(8) && !large.take(1));
        assert!(small.take(2) && !small.take(1));
        small.give(2);
        assert_eq!((large.available(), small.available()), (0, 2));
    }

    /// Extents that a command took of the kept ones are missing for the checks of all classes, and no other take gets the rest.
    #[test]
    fn a_command_that_has_passed_its_checks_finds_its_extents() {
        let memory = Memory::new(200, [10, 10, 10]);
        let [mut clients, mut definitions, mut messages] =
            [Class::Clients, Class::Definitions, Class::Messages].map(|class| memory.account(class, 0));
        assert!(messages.take(messages.available()) && !messages.take(1));
        assert!(definitions.take(10) && !definitions.take(1));
        assert!(definitions.take_checked(COMMAND_EXTENTS - 1) && clients.take_checked(11));
        assert!(!clients.take_checked(1) && !messages.take_checked(1) && memory.extents_used() == 200);
        messages.give(COMMAND_EXTENTS);
        assert!(
            !messages.take(1) && !definitions.take(1),
            "the kept extents are there again before any other"
        );
        memory.set_restoring(true);
        assert!(clients.take(COMMAND_EXTENTS) && !clients.take(1));
        assert!(clients.take_checked(1), "a start may have less memory than before");
        memory.set_restoring(false);
        assert_eq!((clients.available(), messages.available()), (0, 0));
    }

    #[test]
    fn bytes_in_the_heap_take_a_quarter_more() {
        let memory = Memory::new(10 + COMMAND_EXTENTS, [0, 4, 0]);
        let mut bytes = HeapBytes::with_gaps(&memory, Class::Definitions);
        assert_eq!((bytes.free(), memory.extents_used()), (10 * EXTENT_BYTES / 5 * 4, 0));
        bytes.add(EXTENT_BYTES * 4 / 5);
        assert_eq!(
            (memory.extents_used(), bytes.free()),
            (1, 10 * EXTENT_BYTES / 5 * 4 - EXTENT_BYTES * 4 / 5)
        );
        bytes.add(bytes.free());
        assert_eq!((memory.extents_used(), bytes.free()), (10, 0));
        bytes.subtract(bytes.used() - 1);
        assert_eq!((memory.extents_used(), bytes.used()), (1, 1));
        bytes.subtract(1);
        assert_eq!(memory.extents_used(), 0);
        let mut bytes = HeapBytes::in_memory(&memory, Class::Definitions);
        assert_eq!(bytes.free(), 10 * EXTENT_BYTES);
        assert!(bytes.try_add(10 * EXTENT_BYTES) && !bytes.try_add(1) && memory.extents_used() == 10);
    }

    #[test]
    fn other_classes_leave_an_eighth_to_messages_beyond_their_floors() {
        let memory = Memory::with_unit(80 + COMMAND_EXTENTS, [10, 10, 20], [8, 8, 0], 1);
        let [mut clients, mut definitions, mut messages] =
            [Class::Clients, Class::Definitions, Class::Messages].map(|class| memory.account(class, 0));
        assert!(messages.take(20) && definitions.take(42) && !definitions.take(1));
        assert_eq!((clients.available(), messages.available()), (10, 8));
        assert!(messages.take(8) && clients.take(10) && !clients.take(1) && !messages.take(1));
    }

    #[test]
    fn pages_of_four_extents_are_taken_whole() {
        let memory = Memory::with_unit(403, [11, 0, 7], [0; CLASSES], 4);
        let mut messages = memory.account(Class::Messages, 1);
        let definitions = memory.account(Class::Definitions, 0);
        assert_eq!([messages.own(), messages.available() % 4, definitions.available() % 4], [4, 0, 0]);
        assert!(messages.take(messages.available()) && messages.available() == 0);
        assert_eq!(memory.extents_used() % 4, 0);
    }
}
