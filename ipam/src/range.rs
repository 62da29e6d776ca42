//! The address space: ranges, cut into equal blocks.
//!
//! ```text
//!  10.32.0.0/12, 2^20 addresses
//!  ├ block 0 ─┼ block 1 ─┼ …                 … ┼ block 16383 ┤   64 addresses each
//!  offset 0    64         128                    2^20 - 1
//! ```
//!
//! A block is the unit of ownership (see [`crate::ring`]); an address is named by its range and
//! its *offset* from the first address of that range. A range of fewer than 2^14 addresses has
//! one block for each.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::ring::Hash;

/// A range has at most two to this power blocks.
pub(crate) const MAX_BLOCK_BITS: u32 = 14;

/// A network has at most so many ranges.
pub(crate) const MAX_RANGES: usize = 64;

/// One range, and how it is cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Range {
    net: IpNet,
    base: u128,
    host_bits: u32,
    block_bits: u32,
}

fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

impl Range {
    /// Cuts a range.
    ///
    /// # Errors
    /// If the address has bits below the prefix, or the range is larger than this can count.
    pub(crate) fn new(net: IpNet) -> Result<Self, String> {
        if net.trunc() != net {
            return Err(format!("range {net} has address bits below its prefix; write {}", net.trunc()));
        }
        let host_bits = u32::from(net.max_prefix_len() - net.prefix_len());
        if host_bits > 127 {
            return Err(format!("range {net} is too large; use a prefix of at least /1"));
        }
        Ok(Self { net, base: to_number(net.addr()), host_bits, block_bits: host_bits.saturating_sub(MAX_BLOCK_BITS) })
    }

    /// The range as a network.
    pub(crate) fn net(&self) -> IpNet {
        self.net
    }

    /// Number of blocks, 1 to 16,384.
    pub(crate) fn blocks(&self) -> u32 {
        1 << (self.host_bits - self.block_bits)
    }

    /// Addresses in a block.
    pub(crate) fn block_len(&self) -> u128 {
        1 << self.block_bits
    }

    /// Addresses in the range.
    pub(crate) fn len(&self) -> u128 {
        1 << self.host_bits
    }

    /// The address at an offset below [`Self::len`].
    pub(crate) fn address(&self, offset: u128) -> IpAddr {
        let number = self.base + offset;
        match self.net {
            IpNet::V4(_) => {
                // An IPv4 base plus an offset inside its range is below 2^32.
                IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX)))
            }
            IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(number)),
        }
    }

    /// The offset of an address, if the range has it.
    pub(crate) fn offset(&self, address: IpAddr) -> Option<u128> {
        self.net.contains(&address).then(|| to_number(address) - self.base)
    }

    /// First and last offset of a network that lies in this range.
    pub(crate) fn span(&self, net: IpNet) -> Option<(u128, u128)> {
        if !self.net.contains(&net) {
            return None;
        }
        let first = self.offset(net.network())?;
        let bits = u32::from(net.max_prefix_len() - net.prefix_len());
        Some((first, first + ((1 << bits) - 1)))
    }

    /// The block of an offset.
    pub(crate) fn block_of(&self, offset: u128) -> u32 {
        u32::try_from(offset >> self.block_bits).unwrap_or(u32::MAX)
    }

    /// First offset of a block (also of the one after the last).
    pub(crate) fn first_of(&self, block: u32) -> u128 {
        u128::from(block) << self.block_bits
    }

    /// Whether an offset is never given.
    pub(crate) fn is_reserved(&self, offset: u128) -> bool {
        is_reserved_in(self.net, offset, 0, self.len() - 1)
    }

    /// Addresses of the blocks `lo..hi` that can be given.
    pub(crate) fn usable(&self, lo: u32, hi: u32) -> u128 {
        if lo >= hi {
            return 0;
        }
        let all = self.first_of(hi) - self.first_of(lo);
        let first = u128::from(lo == 0 && self.is_reserved(0));
        let last = self.len() - 1;
        let last = u128::from(hi == self.blocks() && last > 0 && self.is_reserved(last));
        all - first - last
    }
}

/// Whether an offset is one of the reserved addresses of `net`, which spans `first..=last`.
///
/// IPv4: network and broadcast address, except in a /31 (RFC 3021) and a /32. IPv6: the
/// subnet-router anycast address (RFC 4291 §2.6.1), except in a /127 (RFC 6164) and a /128.
pub(crate) fn is_reserved_in(net: IpNet, offset: u128, first: u128, last: u128) -> bool {
    let host_bits = net.max_prefix_len() - net.prefix_len();
    match net {
        _ if host_bits < 2 => false,
        IpNet::V4(_) => offset == first || offset == last,
        IpNet::V6(_) => offset == first,
    }
}

/// All ranges of a network, sorted, so that every peer numbers them alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Universe {
    ranges: Vec<Range>,
}

impl Universe {
    /// Sorts and checks the configured ranges.
    ///
    /// # Errors
    /// If one cannot be used, two overlap, or there are too many.
    pub(crate) fn new(nets: &[IpNet]) -> Result<Self, String> {
        if nets.len() > MAX_RANGES {
            return Err(format!("{} ranges are configured; at most {MAX_RANGES} are possible", nets.len()));
        }
        let mut nets = nets.to_vec();
        nets.sort_unstable();
        for (at, one) in nets.iter().enumerate() {
            for other in &nets[at + 1..] {
                if one.contains(other) || other.contains(one) {
                    return Err(format!("ranges {one} and {other} overlap; keep one of them"));
                }
            }
        }
        let ranges = nets.into_iter().map(Range::new).collect::<Result<_, _>>()?;
        Ok(Self { ranges })
    }

    /// The ranges in their common order.
    pub(crate) fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// The ranges as networks, in their common order.
    pub(crate) fn nets(&self) -> Vec<IpNet> {
        self.ranges.iter().map(Range::net).collect()
    }

    /// The ranges as text.
    pub(crate) fn text(&self) -> String {
        let texts: Vec<String> = self.ranges.iter().map(|range| range.net.to_string()).collect();
        texts.join(", ")
    }

    /// A hash of the ranges; it never changes from version to version.
    pub(crate) fn hash(&self) -> u64 {
        let mut hash = Hash::default();
        for range in &self.ranges {
            hash.word(if range.net.addr().is_ipv4() { 4 } else { 6 });
            hash.word(u64::from(range.net.prefix_len()));
            hash.word((range.base >> 64) as u64);
            hash.word(range.base as u64);
        }
        hash.finish()
    }

    /// The range that contains a network, by its number.
    pub(crate) fn containing(&self, net: IpNet) -> Option<usize> {
        self.ranges.iter().position(|range| range.net.contains(&net))
    }

    /// Where an address is: number of the range and offset.
    pub(crate) fn find(&self, address: IpAddr) -> Option<(usize, u128)> {
        self.ranges.iter().enumerate().find_map(|(index, range)| Some((index, range.offset(address)?)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(text: &str) -> Range {
        Range::new(text.parse().unwrap()).unwrap()
    }

    #[test]
    fn large_ranges_have_16384_blocks_and_small_ones_a_block_an_address() {
        assert_eq!(range("10.32.0.0/12").blocks(), 16_384);
        assert_eq!(range("10.32.0.0/12").block_len(), 64);
        assert_eq!(range("fd00::/64").blocks(), 16_384);
        assert_eq!(range("fd00::/64").block_len(), 1 << 50);
        assert_eq!(range("10.0.0.0/24").blocks(), 256);
        assert_eq!(range("10.0.0.0/24").block_len(), 1);
        assert_eq!(range("10.0.0.1/32").blocks(), 1);
    }

    #[test]
    fn reserved_addresses_follow_the_family_and_the_size() {
        assert!(range("10.0.0.0/24").is_reserved(0));
        assert!(range("10.0.0.0/24").is_reserved(255));
        assert!(!range("10.0.0.0/31").is_reserved(0));
        assert!(!range("10.0.0.1/32").is_reserved(0));
        assert!(range("fd00::/64").is_reserved(0));
        assert!(!range("fd00::/64").is_reserved((1 << 64) - 1));
        assert!(!range("fd00::/127").is_reserved(0));
        assert_eq!(range("10.0.0.0/24").usable(0, 256), 254);
        assert_eq!(range("10.0.0.0/30").usable(0, 4), 2);
        assert_eq!(range("fd00::/112").usable(0, 16_384), 65_535);
        assert_eq!(range("10.0.0.1/32").usable(0, 1), 1);
    }

    #[test]
    fn unusable_ranges_are_refused_by_name() {
        let refuse = |texts: &[&str]| {
            let nets: Vec<IpNet> = texts.iter().map(|text| text.parse().unwrap()).collect();
            Universe::new(&nets).expect_err("unusable")
        };
        assert!(refuse(&["10.0.0.1/24"]).contains("10.0.0.0/24"));
        assert!(refuse(&["10.0.0.0/8", "10.1.0.0/16"]).contains("10.1.0.0/16"));
        assert!(refuse(&["::/0"]).contains("::/0"));
        assert!(refuse(&["10.0.0.0/24"; 2]).contains("overlap"));
    }

    proptest! {
        #[test]
        fn offsets_addresses_and_blocks_agree(
            v4 in any::<bool>(), prefix in 1u8..=128, bits in any::<u128>(), at in any::<u128>(),
        ) {
            let net = if v4 {
                IpNet::new(IpAddr::V4(Ipv4Addr::from_bits(bits as u32)), prefix.min(32)).unwrap()
            } else {
                IpNet::new(IpAddr::V6(Ipv6Addr::from_bits(bits)), prefix).unwrap()
            };
            let range = Range::new(net.trunc()).unwrap();
            let offset = at % range.len();
            let address = range.address(offset);
            prop_assert!(range.net().contains(&address));
            prop_assert_eq!(range.offset(address), Some(offset));
            let block = range.block_of(offset);
            prop_assert!(block < range.blocks());
            prop_assert!(range.first_of(block) <= offset);
            prop_assert!(offset < range.first_of(block + 1));
            prop_assert_eq!(range.block_len() * u128::from(range.blocks()), range.len());
            prop_assert_eq!(range.span(range.net()), Some((0, range.len() - 1)));
        }
    }
}
