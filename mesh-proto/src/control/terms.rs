//! How two ends agree on what the fast path is between them (fastpath F5, F19).

/// What one end is ready for, with one other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Terms {
    /// VXLAN in the clear.
    pub plain: bool,
    /// VXLAN in WireGuard.
    pub sealed: bool,
}

impl Terms {
    /// No fast path at all.
    pub const NONE: Self = Self { plain: false, sealed: false };
    /// In the clear only.
    pub const PLAIN: Self = Self { plain: true, sealed: false };
    /// Sealed only.
    pub const SEALED: Self = Self { plain: false, sealed: true };
}

/// What the fast path is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cover {
    /// VXLAN in the clear.
    Plain,
    /// VXLAN in WireGuard.
    Sealed,
}

/// What two ends have, as both work it out: in the clear only where both want that, else sealed where
/// both can, else nothing.
#[must_use]
pub const fn agree(ours: Terms, theirs: Terms) -> Option<Cover> {
    if ours.plain && theirs.plain {
        Some(Cover::Plain)
    } else if ours.sealed && theirs.sealed {
        Some(Cover::Sealed)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Terms = Terms { plain: true, sealed: true };

    #[test]
    fn all_that_two_ends_may_want() {
        let all = [Terms::NONE, Terms::PLAIN, Terms::SEALED, BOTH];
        let agreed = all.map(|ours| all.map(|theirs| agree(ours, theirs)));
        let (none, plain, sealed) = (None, Some(Cover::Plain), Some(Cover::Sealed));
        assert_eq!(
            agreed,
            [
                [none, none, none, none],
                [none, plain, none, plain],
                [none, none, sealed, sealed],
                [none, plain, sealed, plain],
            ]
        );
    }

    #[test]
    fn both_ends_come_to_the_same_and_never_to_more_than_one_wants() {
        for bits in 0..16_u8 {
            let bit = |at: u8| bits >> at & 1 == 1;
            let (a, b) = (Terms { plain: bit(0), sealed: bit(1) }, Terms { plain: bit(2), sealed: bit(3) });
            assert_eq!(agree(a, b), agree(b, a));
            if agree(a, b) == Some(Cover::Plain) {
                assert!(a.plain && b.plain, "in the clear only where both want it: {a:?} {b:?}");
            }
            // An older peer says nothing of a seal.
            let older = Terms { sealed: false, ..b };
            assert_ne!(agree(a, older), Some(Cover::Sealed));
        }
    }
}
