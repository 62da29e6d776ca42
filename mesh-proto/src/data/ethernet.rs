//! Where an Ethernet header ends.

/// Most VLAN tags (IEEE 802.1Q, 802.1ad) that are looked behind.
const TAGS_MAX: usize = 2;

/// Longest Ethernet header that is looked behind, in bytes.
pub(crate) const HEADER_MAX: usize = 14 + 4 * TAGS_MAX;

/// Length of the Ethernet header with its tags, and the type of what follows. `None` of a frame
/// that ends before, or has more tags.
pub(crate) fn header(frame: &[u8]) -> Option<(usize, u16)> {
    let mut at = 12;
    for _ in 0..=TAGS_MAX {
        let kind = u16::from_be_bytes(*frame.get(at..)?.first_chunk()?);
        at += 2;
        if !matches!(kind, 0x8100 | 0x88a8) {
            return Some((at, kind));
        }
        at += 2;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_ends_behind_no_more_than_two_tags() {
        for (tags, expected) in [(0, Some((14, 0x0800))), (1, Some((18, 0x0800))), (2, Some((22, 0x0800))), (3, None)] {
            let tags: Vec<u8> = [0x81, 0, 0, 7, 0x88, 0xa8, 0, 8, 0x81, 0, 0, 9][..4 * tags].to_vec();
            let frame = [&[2; 12][..], &tags, &[8, 0]].concat();
            assert_eq!(header(&frame), expected);
            for length in 0..frame.len() {
                assert_eq!(header(&frame[..length]), None, "cut at {length}");
            }
        }
    }
}
