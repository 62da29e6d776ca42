//! Addresses of the underlay.

use core::net::SocketAddr;

/// The one form of an address: IPv4 never dressed as IPv6, no flow label. One peer has one
/// address, however the kernel or a peer wrote it.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(_) => address,
        SocketAddr::V6(mut v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::from((v4, v6.port())),
            None => {
                v6.set_flowinfo(0);
                SocketAddr::V6(v6)
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use core::net::SocketAddrV6;

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_peer_has_one_address_however_it_was_written() {
        assert_eq!(canonical(address("[::ffff:192.0.2.1]:5")), address("192.0.2.1:5"));
        assert_eq!(canonical(address("192.0.2.1:5")), address("192.0.2.1:5"));
        let labelled = SocketAddrV6::new("2001:db8::1".parse().unwrap(), 5, 7, 0);
        assert_eq!(canonical(labelled.into()), address("[2001:db8::1]:5"));
        assert_eq!(canonical(address("[fe80::1%4]:5")), address("[fe80::1%4]:5"));
    }
}
