//! Lists of objects for operators.

/// All objects of a kind. Each is in a numbered place, and a place may be empty. The number of a place does not change
/// while its object exists, so a list can be continued in a later turn of the event loop.
pub trait Objects<T>: Iterator<Item = T> + Sized {
    /// Returns the number of places that objects of the kind have used since the start.
    fn places(&self) -> usize;

    /// Returns the object in a place, in constant time; `None` if the place is empty.
    fn at(&self, place: usize) -> Option<T>;

    /// Returns only those objects for which `is_wanted` returns `true`, from the first place on. They keep their places.
    fn only(self, is_wanted: impl Fn(&T) -> bool) -> impl Objects<T> {
        objects(self.places(), move |place| self.at(place).filter(&is_wanted))
    }
}

/// Returns the objects in places 0 to `places - 1`. `at` returns the object in a place.
pub fn objects<T>(places: usize, at: impl Fn(usize) -> Option<T>) -> impl Objects<T> {
    InPlaces { next: 0, places, at }
}

struct InPlaces<F> {
    /// The next place of the iterator.
    next: usize,
    places: usize,
    at: F,
}

impl<T, F: Fn(usize) -> Option<T>> Objects<T> for InPlaces<F> {
    fn places(&self) -> usize {
        self.places
    }

    fn at(&self, place: usize) -> Option<T> {
        (self.at)(place)
    }
}

impl<T, F: Fn(usize) -> Option<T>> Iterator for InPlaces<F> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        while self.next < self.places {
            self.next += 1;
            if let Some(object) = (self.at)(self.next - 1) {
                return Some(object);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_keep_their_places_when_others_are_left_out() {
        let stored = [Some(3), None, Some(4), Some(5)];
        let odd = objects(stored.len(), |place| stored[place]).only(|number| number % 2 == 1);
        assert_eq!(
            (odd.places(), odd.at(0), odd.at(1), odd.at(2), odd.at(3)),
            (4, Some(3), None, None, Some(5))
        );
        assert_eq!(odd.collect::<Vec<_>>(), [3, 5]);
    }
}
