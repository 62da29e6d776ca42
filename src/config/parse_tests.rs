use super::super::KEYS;
use super::super::gather::{Given, Source};
use super::*;

fn settings(pairs: &[(&'static str, &[&str])]) -> Result<Settings, Problems> {
    let given = pairs
        .iter()
        .map(|(key, values)| {
            let values = values.iter().map(|&value| value.to_owned()).collect();
            (*key, Given { values, source: Source::Flag })
        })
        .collect();
    Settings::parse(&given, "host1", Path::new("/"))
}

#[test]
fn nothing_given_gives_the_documented_defaults() {
    let settings = settings(&[]).expect("valid");
    assert_eq!(settings.name, "host1");
    assert_eq!(settings.port, 6783);
    assert_eq!(settings.listen, None);
    assert_eq!(settings.ranges[0].to_string(), "10.32.0.0/12");
    assert_eq!(settings.ranges.len(), 2);
    assert!(!settings.ranges_given);
    assert_eq!(settings.tap(), "weft-tap");
    assert!(settings.discovery);
}

#[test]
fn the_default_ipv6_range_is_of_the_network() {
    assert_eq!(default_v6_range("a"), default_v6_range("a"));
    assert_ne!(default_v6_range("a"), default_v6_range("b"));
    assert_eq!(range(&default_v6_range("a").to_string()), Ok(default_v6_range("a")));
}

#[test]
fn every_mistake_is_reported_at_once_with_flag_value_and_remedy() {
    let error = settings(&[
        ("mtu", &["99999"]),
        ("port", &["0"]),
        ("range", &["10.32.0.1/12", "127.0.0.0/8"]),
        ("peer", &["good", "bad:port", "1.2.3"]),
        ("bridge", &["a-bridge-too-long"]),
        ("cipher", &["rot13"]),
        ("metrics", &["6782"]),
    ])
    .expect_err("nine mistakes");
    let text = error.to_string();
    assert_eq!(error.0.len(), 9, "{text}");
    assert!(text.contains("--mtu 99999: expected `auto` or a number"), "{text}");
    assert!(text.contains("did you mean 10.32.0.0/12?"), "{text}");
    assert!(text.contains("--peer bad:port: `port` is not a port"), "{text}");
    assert!(text.contains("--range 127.0.0.0/8: overlaps"), "{text}");
}

#[test]
fn hosts_are_split_from_ports() {
    for (text, host, port) in [
        ("h", "h", None),
        ("h.example:1", "h.example", Some(1)),
        ("192.0.2.1:65535", "192.0.2.1", Some(65_535)),
        ("::1", "::1", None),
        ("[::1]", "::1", None),
        ("[2001:db8::1]:6783", "2001:db8::1", Some(6783)),
    ] {
        assert_eq!(host_port(text), Ok((host.to_owned(), port)), "{text}");
    }
    for text in ["", ":1", "h:", "h:0", "h:65536", "[::1", "[h]:1", "[::1]x", "a b", "1.2.3.4.5", "-h"] {
        assert!(host_port(text).is_err(), "{text}");
    }
}

#[test]
fn one_range_a_family_is_the_most() {
    let error = settings(&[("range", &["10.0.0.0/8", "192.168.0.0/16"])]).expect_err("two");
    assert!(error.to_string().contains("--range 192.168.0.0/16: 10.0.0.0/8"));
    assert!(settings(&[("range", &["10.0.0.0/8", "fd00::/64"])]).is_ok());
}

#[test]
fn an_mtu_below_what_ipv6_needs_is_refused_only_with_an_ipv6_range() {
    assert!(settings(&[("mtu", &["1000"])]).is_err());
    assert!(settings(&[("mtu", &["1000"]), ("range", &["10.0.0.0/8"])]).is_ok());
}

#[test]
fn the_port_stands_in_listen_or_in_port() {
    let both = settings(&[("listen", &["192.0.2.1:7000"]), ("port", &["7000"])]).expect("same");
    assert_eq!((both.listen, both.port), (Some([192, 0, 2, 1].into()), 7000));
    assert!(settings(&[("listen", &["192.0.2.1:7000"]), ("port", &["7001"])]).is_err());
    assert!(settings(&[("listen", &["localhost"])]).is_err());
    assert_eq!(settings(&[("listen", &["::"])]).expect("any").listen, None);
}

#[test]
fn addresses_to_advertise_take_the_port_of_the_router() {
    let settings = settings(&[("port", &["7000"]), ("advertise", &["203.0.113.1", "[2001:db8::1]:1"])]).expect("valid");
    assert_eq!(settings.advertise[0].to_string(), "203.0.113.1:7000");
    assert_eq!(settings.advertise[1].to_string(), "[2001:db8::1]:1");
}

#[test]
fn a_hostname_that_is_no_name_falls_back() {
    let settings = Settings::parse(&Gathered::new(), "bad name\u{1b}", Path::new("/")).expect("valid");
    assert_eq!(settings.name, "weft");
}

#[test]
fn auto_offers_every_sealing_suite_and_a_choice_only_itself() {
    assert!(Cipher::Auto.suites().contains(&Suite::ChaCha20Poly1305));
    assert!(!Cipher::Auto.suites().contains(&Suite::Plain));
    assert_eq!(Cipher::Only(Suite::Nacl).suites(), [Suite::Nacl]);
}

#[test]
fn every_key_has_a_value_that_can_be_compared() {
    let keys: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
    let values = settings(&[]).expect("valid").values();
    assert_eq!(values.iter().map(|(key, _)| *key).collect::<Vec<_>>(), keys);
    // And each value is the key's own: given a new one, it is what differs.
    let other = [
        ("name", "n"),
        ("network", "n"),
        ("peer", "p"),
        ("listen", "192.0.2.1"),
        ("port", "7"),
        ("advertise", "192.0.2.1"),
        ("range", "10.0.0.0/8"),
        ("ipalloc-init", "observer"),
        ("dead-after", "2h"),
        ("secret-file", "s"),
        ("data-dir", "d"),
        ("socket", "s"),
        ("metrics", "127.0.0.1:1"),
        ("docker-socket", "d"),
        ("bridge", "b"),
        ("mtu", "1300"),
        ("cipher", "nacl"),
        ("busy-poll", "0"),
        ("no-discovery", "true"),
        ("no-fast-path", "true"),
        ("trusted-subnet", "192.0.2.0/24"),
        ("dns-listen", "192.0.2.1:53"),
        ("dns-domain", "mesh.example"),
        ("dns-resolv-conf", "r"),
        ("detach", "true"),
        ("log-level", "debug"),
        ("log-format", "json"),
    ];
    assert_eq!(other.map(|(key, _)| key)[..], keys[..]);
    for (key, value) in other {
        let changed = settings(&[(key, &[value])]).expect(key).values();
        let differ: Vec<&str> = values.iter().zip(&changed).filter(|(a, b)| a != b).map(|((key, _), _)| *key).collect();
        // The default IPv6 range is made of the network's name.
        let expected = if key == "network" { vec!["network", "range"] } else { vec![key] };
        assert_eq!(differ, expected);
    }
}

/// Everything that each key does not take, and a word of what is said about it.
#[test]
fn every_key_refuses_what_it_cannot_take_and_names_it() {
    let long = "x".repeat(64);
    let long_domain = "x.".repeat(40) + "x";
    let long_path = format!("/{}", "x".repeat(96));
    let table: &[(&'static str, &[&str], &str)] = &[
        ("name", &["", "a b", "a/b", "ü", "a\u{1b}[2J", &long], "1 to 63"),
        ("network", &["", "a b", &long], "1 to 63"),
        (
            "peer",
            &["", ":6783", "host:", "host:0", "host:65536", "host:x", "a b", "[::1", "[host]:1", "1.2.3"],
            "expected HOST",
        ),
        (
            "peer",
            &["0.0.0.0", "0.0.0.0:6783", "::", "[::]:1", "224.0.0.1", "ff02::1", "255.255.255.255"],
            "nobody can be dialled",
        ),
        ("peer", &["fe80::1", "[fe80::1]:6783"], "link-local"),
        ("peer", &["10.32.0.1", "10.47.255.255:6783"], "10.32.0.0/12, the containers' range"),
        ("listen", &["", "localhost", "1.2.3", "host:1", "192.0.2.1:0", "192.0.2.1:x"], "address of this host"),
        ("listen", &["224.0.0.1", "[ff02::1]:6783"], "multicast"),
        ("port", &["", "0", "65536", "-1", "6783x", "0x1a7f", "6783 6784"], "1 to 65535"),
        ("port", &["tcp://10.0.0.1:6783"], "enableServiceLinks"),
        ("advertise", &["", "host", "1.2.3", "192.0.2.1:0"], "expected"),
        ("advertise", &["0.0.0.0", "[::]:6783", "239.1.1.1"], "nobody can be dialled"),
        ("advertise", &["127.0.0.1", "[::1]:6783", "::ffff:127.0.0.1"], "loopback"),
        ("advertise", &["10.32.7.7:6783"], "the containers' range"),
        ("range", &["", "10.32.0.0", "10.32.0.0/33", "fd00::/129", "host/8", "10.32.0.0/-1"], "expected a range"),
        ("range", &["10.32.0.1/12", "fd00::1/64"], "did you mean"),
        ("range", &["0.0.0.0/0", "10.0.0.0/7", "10.32.0.0/31", "10.32.0.0/32", "fd00::/125", "::/0"], "prefix length"),
        ("range", &["127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/8", "fe80::/64", "ff00::/16"], "meaning of its own"),
        (
            "ipalloc-init",
            &["", "none", "consensus", "consensus=0", "consensus=1001", "consensus=-1", "seed", "seed=", "seed=host1"],
            "consensus=N",
        ),
        ("ipalloc-init", &["seed=00112233445566778899aabbccddeef", "observer=1", "quorum=3"], "consensus=N"),
        ("dead-after", &["", "0", "10", "9s", "0m", "366d", "-1h", "1.5h", "1hh", "h", "Never", "1w"], "10s to 365d"),
        ("secret-file", &[""], "expected a path"),
        ("data-dir", &[""], "expected a path"),
        ("socket", &[""], "expected a path"),
        ("socket", &[&long_path], "96 bytes"),
        ("docker-socket", &[""], "expected a path"),
        ("docker-socket", &[&long_path], "96 bytes"),
        (
            "metrics",
            &["", "6782", ":6782", "localhost:6782", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536"],
            "ADDR:PORT",
        ),
        ("bridge", &["", "a-long-name-", "a b", "a/b", ".", "..", "all", "default", "-b", "ü"], "interface name"),
        ("mtu", &["", "0", "575", "65522", "99999999999", "-1", "1400.5", "Auto", "jumbo"], "expected `auto`"),
        ("mtu", &["576", "1279"], "IPv6 needs"),
        ("cipher", &["", "none", "plain", "AES-256-GCM", "rot13"], "aes-256-gcm"),
        ("busy-poll", &["", "-1", "1001", "100us", "never", "0.5"], "0 to 1000 microseconds"),
        ("no-discovery", &["", "maybe", "2", "TRUE"], "true or false"),
        ("no-fast-path", &["", "maybe"], "true or false"),
        ("trusted-subnet", &["", "10.0.0.0", "10.0.0.0/33", "host/8"], "expected a CIDR"),
        ("trusted-subnet", &["10.0.0.1/8"], "did you mean"),
        (
            "dns-listen",
            &["", "53", ":53", "localhost:53", "192.0.2.1", "192.0.2.1:0", "fd00::1:x"],
            "address of this host",
        ),
        ("dns-listen", &["0.0.0.0:53", "[::]:53", "224.0.0.1:53"], "each address"),
        ("dns-domain", &["", ".", "a..b", "weft local", "-.ü"], "cannot be a name"),
        ("dns-domain", &[&long_domain], "at most 63"),
        ("dns-resolv-conf", &[""], "expected a path"),
        ("detach", &["", "maybe"], "true or false"),
        ("log-level", &["", "verbose", "INFO", "3"], "error, warn, info"),
        ("log-format", &["", "xml", "JSON"], "text or json"),
    ];
    for (key, values, word) in table {
        for value in *values {
            let error = settings(&[(*key, &[value])]).expect_err(&format!("{key} = {value:?}"));
            assert_eq!(error.0.len(), 1, "{error}");
            let Problem { what, why } = &error.0[0];
            assert!(
                what.starts_with(&format!("--{key}"))
                    && (what.contains(value) || ["no-discovery", "no-fast-path", "detach"].contains(key)),
                "{what}"
            );
            assert!(why.contains(word), "{key} = {value:?}: {word:?} is not in {why:?}");
        }
    }
    let tried: std::collections::BTreeSet<&str> = table.iter().map(|(key, ..)| *key).collect();
    assert_eq!(tried, KEYS.iter().map(|key| key.name).collect());
}
