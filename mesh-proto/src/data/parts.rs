//! Bytes that lie in several places, as one: what is joined is not copied.
//!
//! ```text
//!  arena   ░░░░░░▓▓▓▓▓▓░░░░▓▓▓▓▓▓░░░░▓▓▓░░░░        where a batch of datagrams was received
//!  parts   head │▓▓▓▓▓▓│▓▓▓▓▓▓│▓▓▓                  what one system call sends or writes
//! ```

/// Places in the arena that `Places` holds: a super-frame cut into the datagrams of an
/// Ethernet path has 48.
pub const PLACES: usize = 64;

/// Bytes that lie in several places.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    head: &'a [u8],
    arena: &'a [u8],
    places: &'a [(u32, u32)],
}

impl<'a> Parts<'a> {
    /// Bytes in one place.
    #[must_use]
    pub const fn whole(bytes: &'a [u8]) -> Self {
        Self { head: bytes, arena: &[], places: &[] }
    }

    pub(crate) fn new(head: &'a [u8], arena: &'a [u8], places: &'a Places) -> Self {
        Self { head, arena, places: places.all() }
    }

    /// The pieces, at most one more than [`PLACES`], in order.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let (head, arena, places) = (self.head, self.arena, self.places);
        let of_arena = places.iter().map(move |&(start, end)| &arena[start as usize..end as usize]);
        core::iter::once(head).chain(of_arena).filter(|part| !part.is_empty())
    }

    /// All of them, if they lie in one place.
    #[must_use]
    pub fn in_one_place(&self) -> Option<&'a [u8]> {
        let mut parts = self.iter();
        let first = parts.next().unwrap_or_default();
        parts.next().is_none().then_some(first)
    }

    /// Bytes in all.
    #[must_use]
    pub fn len(&self) -> usize {
        self.iter().map(<[u8]>::len).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// Copies all to the start of `to`, if there is room; gives their number.
    pub fn copy_to(&self, to: &mut [u8]) -> Option<usize> {
        let mut at = 0;
        for part in self.iter() {
            to.get_mut(at..at + part.len())?.copy_from_slice(part);
            at += part.len();
        }
        Some(at)
    }
}

/// Which places of an arena belong together. Neighbours become one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places {
    list: [(u32, u32); PLACES],
    count: usize,
    bytes: usize,
}

impl Places {
    pub(crate) const NONE: Self = Self { list: [(0, 0); PLACES], count: 0, bytes: 0 };

    /// Bytes in all places.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) const fn clear(&mut self) {
        (self.count, self.bytes) = (0, 0);
    }

    /// Adds a place; false if there are too many.
    pub(crate) fn push(&mut self, start: usize, len: usize) -> bool {
        let (start, end) = (start as u32, (start + len) as u32);
        if let Some(last) = self.list[..self.count].last_mut().filter(|last| last.1 == start) {
            last.1 = end;
        } else if let Some(free) = self.list.get_mut(self.count) {
            *free = (start, end);
            self.count += 1;
        } else {
            return false;
        }
        self.bytes += len;
        true
    }

    fn all(&self) -> &[(u32, u32)] {
        &self.list[..self.count]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one_part_and_all_are_copied_in_order() {
        let arena: Vec<u8> = (0..100).collect();
        let mut places = Places::NONE;
        for (start, len) in [(10, 5), (15, 5), (50, 2), (30, 1)] {
            assert!(places.push(start, len));
        }
        let parts = Parts::new(&[7, 7], &arena, &places);
        let list: Vec<_> = parts.iter().map(<[u8]>::len).collect();
        assert_eq!(list, [2, 10, 2, 1]);
        let mut out = [0; 16];
        assert_eq!(parts.copy_to(&mut out), Some(15));
        assert_eq!(out[..6], [7, 7, 10, 11, 12, 13]);
        assert_eq!(out[12..15], [50, 51, 30]);
        assert_eq!(parts.copy_to(&mut [0; 14]), None);
        assert_eq!(parts.len(), 15);
    }

    #[test]
    fn too_many_places_are_refused() {
        let mut places = Places::NONE;
        let taken = (0..100).filter(|n| places.push(n * 10, 1)).count();
        assert_eq!(taken, PLACES);
    }
}
