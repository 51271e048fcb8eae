//! Doubly linked lists through records of a [`Slab`].
//!
//! Always true: a record is on at most one list per [`Links`] field; joining, leaving and moving a whole
//! list to another owner take constant time and no memory.

use bytemuck::{Pod, Zeroable};

use super::Slab;
use super::give_back::untouched;

/// A list's place in a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Links {
    previous: u32,
    next: u32,
}

/// A list of records; its owner knows which field links them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct List {
    head: u32,
    tail: u32,
    len: u32,
}

/// Which field of the record carries the links.
pub type LinksOf<T> = fn(&mut T) -> &mut Links;

impl List {
    /// So many empty lists; they take no memory before they are used.
    pub fn table(count: usize) -> Box<[Self]> {
        untouched(count)
    }

    /// How many records are on the list.
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Whether no record is on the list.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first record.
    pub const fn front(&self) -> Option<usize> {
        place(self.head)
    }

    /// The last record.
    pub const fn back(&self) -> Option<usize> {
        place(self.tail)
    }

    /// The record behind `index`.
    #[inline]
    pub fn after<T>(slab: &Slab<T>, index: usize, links: fn(&T) -> &Links) -> Option<usize> {
        place(links(&slab[index]).next)
    }

    /// The record before `index`.
    pub fn before<T>(slab: &Slab<T>, index: usize, links: fn(&T) -> &Links) -> Option<usize> {
        place(links(&slab[index]).previous)
    }

    /// Puts the record at the end.
    pub fn push_back<T>(&mut self, slab: &mut Slab<T>, index: usize, links: LinksOf<T>) {
        self.insert_after(slab, self.back(), index, links);
    }

    /// Puts the record behind `after`, or first when that is nothing.
    #[inline]
    pub fn insert_after<T>(
        &mut self,
        slab: &mut Slab<T>,
        after: Option<usize>,
        index: usize,
        links: LinksOf<T>,
    ) {
        let this = index as u32 + 1;
        let (previous, next) = match after {
            Some(after) => (after as u32 + 1, links(&mut slab[after]).next),
            None => (0, self.head),
        };
        *links(&mut slab[index]) = Links { previous, next };
        match place(previous) {
            Some(previous) => links(&mut slab[previous]).next = this,
            None => self.head = this,
        }
        match place(next) {
            Some(next) => links(&mut slab[next]).previous = this,
            None => self.tail = this,
        }
        self.len += 1;
    }

    /// Takes the record off the list it is on.
    pub fn remove<T>(&mut self, slab: &mut Slab<T>, index: usize, links: LinksOf<T>) {
        let Links { previous, next } = core::mem::take(links(&mut slab[index]));
        match place(previous) {
            Some(previous) => links(&mut slab[previous]).next = next,
            None => self.head = next,
        }
        match place(next) {
            Some(next) => links(&mut slab[next]).previous = previous,
            None => self.tail = previous,
        }
        self.len -= 1;
    }

    /// Takes the first record off.
    pub fn pop_front<T>(&mut self, slab: &mut Slab<T>, links: LinksOf<T>) -> Option<usize> {
        let index = self.front()?;
        self.remove(slab, index, links);
        Some(index)
    }

    /// Puts the records in the order of their keys; those with equal keys stay in the order they were in.
    /// Merges runs of doubling length, so it needs no memory and n log n steps.
    pub fn sort_by_key<T>(&mut self, slab: &mut Slab<T>, key: fn(&T) -> u64, links: LinksOf<T>) {
        // The bin with number n holds a run of 2^n records in order, or none.
        let mut bins = [Self::default(); u32::BITS as usize];
        while let Some(index) = self.pop_front(slab, links) {
            let mut run = Self::default();
            run.push_back(slab, index, links);
            for bin in &mut bins {
                if bin.is_empty() {
                    *bin = run;
                    break;
                }
                run = Self::merged(slab, (core::mem::take(bin), run), key, links);
            }
        }
        for bin in bins {
            *self = Self::merged(slab, (bin, *self), key, links);
        }
    }

    fn merged<T>(
        slab: &mut Slab<T>,
        (mut first, mut second): (Self, Self),
        key: fn(&T) -> u64,
        links: LinksOf<T>,
    ) -> Self {
        let mut all = Self::default();
        loop {
            let from = match (first.front(), second.front()) {
                (Some(one), Some(other)) if key(&slab[other]) < key(&slab[one]) => &mut second,
                (Some(_), _) => &mut first,
                (None, _) => &mut second,
            };
            let Some(index) = from.pop_front(slab, links) else { return all };
            all.push_back(slab, index, links);
        }
    }

    /// Moves the first `count` records, of which `last` is the last, to a list of their own.
    #[must_use]
    pub fn split_front<T>(&mut self, slab: &mut Slab<T>, last: usize, count: u32, links: LinksOf<T>) -> Self {
        let front = Self { head: self.head, tail: last as u32 + 1, len: count };
        let next = core::mem::take(&mut links(&mut slab[last]).next);
        self.head = next;
        match place(next) {
            Some(next) => links(&mut slab[next]).previous = 0,
            None => self.tail = 0,
        }
        self.len -= count;
        front
    }
}

const fn place(link: u32) -> Option<usize> {
    match link {
        0 => None,
        above => Some(above as usize - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Record {
        links: Links,
    }

    fn links(record: &mut Record) -> &mut Links {
        &mut record.links
    }

    fn order(list: &List, slab: &Slab<Record>) -> Vec<usize> {
        let mut found = Vec::new();
        let mut at = list.front();
        while let Some(index) = at {
            found.push(index);
            at = List::after(slab, index, |record| &record.links);
        }
        assert_eq!(found.len(), list.len() as usize);
        found
    }

    #[test]
    fn records_join_leave_and_move_in_order() {
        let mut slab = Slab::with_capacity(8);
        let mut list = List::default();
        for index in 0..6 {
            assert_eq!(slab.insert(Record { links: Links::default() }).ok(), Some(index));
            list.push_back(&mut slab, index, links);
        }
        list.remove(&mut slab, 3, links);
        list.insert_after(&mut slab, Some(0), 3, links);
        assert_eq!(order(&list, &slab), [0, 3, 1, 2, 4, 5]);
        let front = list.split_front(&mut slab, 1, 3, links);
        assert_eq!((order(&front, &slab), order(&list, &slab)), (vec![0, 3, 1], vec![2, 4, 5]));
        let mut rest = list;
        let whole = rest.split_front(&mut slab, 5, 3, links);
        assert_eq!((order(&whole, &slab), rest.is_empty(), rest.back()), (vec![2, 4, 5], true, None));
        assert_eq!(list.pop_front(&mut slab, links), Some(2));
    }
}
