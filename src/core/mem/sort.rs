//! Putting things in order, in little code.
//!
//! Why it exists: the standard library's sort is made of some ten functions that are compiled anew for each
//! type, 8 KB a type on ARM: for the twenty types sorted here together a fifteenth of the program. What is
//! sorted here is short, or in order already. Always true: no memory is taken; the work is at most that of
//! a heapsort, n log n, in whatever order a peer has brought the items; equal items come in any order.

use core::cmp::Ordering;

/// Puts items in rising order.
pub fn sort<T: Ord>(items: &mut [T]) {
    sort_by(items, Ord::cmp);
}

/// Puts items in the rising order of their keys.
pub fn sort_by_key<T, K: Ord>(items: &mut [T], key: impl Fn(&T) -> K) {
    sort_by(items, |one, other| key(one).cmp(&key(other)));
}

/// Puts items in the order that `compare` says.
pub fn sort_by<T>(items: &mut [T], compare: impl Fn(&T, &T) -> Ordering) {
    if items.is_sorted_by(|one, next| compare(one, next).is_le()) {
        return;
    }
    let len = items.len();
    // The first steps make a heap, the others take the largest from it.
    for step in (0..len + len / 2).rev() {
        let top = step.checked_sub(len);
        if top.is_none() {
            items.swap(0, step);
        }
        sink(&mut items[..step.min(len)], top.unwrap_or(0), &compare);
    }
}

/// Moves an item down to where none below it is larger.
fn sink<T>(items: &mut [T], mut at: usize, compare: &impl Fn(&T, &T) -> Ordering) {
    loop {
        let mut child = 2 * at + 1;
        if child >= items.len() {
            return;
        }
        if child + 1 < items.len() && compare(&items[child], &items[child + 1]).is_lt() {
            child += 1;
        }
        if compare(&items[at], &items[child]).is_ge() {
            return;
        }
        items.swap(at, child);
        at = child;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_order_is_that_of_the_standard_library(items in prop::collection::vec(0_u32..300, 0..200)) {
            let (mut sorted, mut expected) = (items.clone(), items.clone());
            sort(&mut sorted);
            expected.sort_unstable();
            prop_assert_eq!(&sorted, &expected);
            sort_by_key(&mut sorted, |item| core::cmp::Reverse(*item));
            expected.reverse();
            prop_assert_eq!(&sorted, &expected);
        }
    }
}
