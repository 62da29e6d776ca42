//! The lab itself: an underlay that does what it was told, or the tests above it prove nothing.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use weft::lab::{Lab, LabConfig, NatConfig, NatKind, frame, nat_public, wire::Impairment};

use crate::{Case, mesh::Must as _};

pub(crate) const CASES: &[Case] = &[
    ("hosts_reach_each_other_by_ipv4_and_ipv6", 10, plain),
    ("a_cut_holds_both_ways_or_one_way_until_healed", 10, cuts),
    ("loss_and_duplication_are_about_what_was_asked_for", 20, loss_and_duplication),
    ("held_back_frames_are_overtaken", 10, reordering),
    ("delay_is_added_to_every_frame", 10, delay),
    ("packets_above_the_path_mtu_vanish_and_icmp_tells_if_asked", 10, path_mtu),
    ("hosts_behind_a_translator_reach_out_and_are_not_reached", 10, translation),
    ("the_capture_holds_what_was_sent_and_can_be_sent_again", 10, capture),
];

fn lab(hosts: usize) -> Lab {
    Lab::new(&LabConfig::hosts(hosts)).must("make the lab")
}

const PORT: u16 = 5000;

fn socket(lab: &Lab, host: usize, v6: bool) -> UdpSocket {
    let host = lab.host(host);
    let ip = if v6 { host.v6() } else { IpAddr::V4(host.v4()) };
    let open = || -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind((ip, PORT))?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        Ok(socket)
    };
    host.namespace().run(open).must("enter the host").must("bind")
}

/// What arrives until nothing has for a fifth of a second.
fn drain(socket: &UdpSocket) -> Vec<(Vec<u8>, SocketAddr)> {
    let mut all = Vec::new();
    let mut buffer = [0; 65_536];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        all.push((buffer[..length].to_vec(), from));
    }
    all
}

fn plain() {
    let lab = lab(2);
    for v6 in [false, true] {
        let (a, b) = (socket(&lab, 0, v6), socket(&lab, 1, v6));
        let to = b.local_addr().must("address");
        a.send_to(b"over", to).must("send");
        // Larger than the MTU: the kernel fragments, and the wire carries fragments.
        a.send_to(&[7; 4000], to).must("send");
        let got = drain(&b);
        assert_eq!(got.len(), 2, "{got:?}");
        assert_eq!(got[0], (b"over".to_vec(), a.local_addr().must("address")));
        assert_eq!(got[1].0, [7; 4000]);
    }
}

fn cuts() {
    let lab = lab(3);
    let sockets: Vec<UdpSocket> = (0..3).map(|host| socket(&lab, host, false)).collect();
    let arrives = |from: usize, to: usize| {
        let address = sockets[to].local_addr().must("address");
        sockets[from].send_to(b"x", address).must("a cut is silent to the sender");
        drain(&sockets[to]).len() == 1
    };
    lab.wire().cut(0, 1);
    assert_eq!([arrives(0, 1), arrives(1, 0), arrives(0, 2), arrives(2, 1)], [false, false, true, true]);
    lab.wire().heal(0, 1);
    lab.wire().impair_one_way(0, 1, Impairment::cut());
    assert_eq!([arrives(0, 1), arrives(1, 0)], [false, true]);
    lab.wire().heal_all();
    assert!(arrives(0, 1));
}

fn loss_and_duplication() {
    let lab = lab(2);
    let (a, b) = (socket(&lab, 0, false), socket(&lab, 1, false));
    let send = |rule| {
        lab.wire().impair_one_way(0, 1, rule);
        let to = b.local_addr().must("address");
        let mut got = Vec::new();
        for number in 0..2000_u32 {
            a.send_to(&number.to_be_bytes(), to).must("send");
            if number % 50 == 49 {
                std::thread::sleep(Duration::from_millis(2));
                b.set_nonblocking(true).must("set");
                got.extend(drain(&b));
                b.set_nonblocking(false).must("set");
            }
        }
        got.extend(drain(&b));
        let distinct: BTreeSet<_> = got.iter().map(|(bytes, _)| bytes.clone()).collect();
        (got.len(), distinct.len())
    };
    let (all, distinct) = send(Impairment { loss: 0.1, ..Impairment::default() });
    assert!(all == distinct && (1700..1900).contains(&all), "{all} of 2000 at 10 % loss");
    let (all, distinct) = send(Impairment { duplicate: 0.1, ..Impairment::default() });
    assert!(distinct == 2000 && (2100..2300).contains(&all), "{all}, {distinct} at 10 % twice");
    let (all, distinct) = send(Impairment::default());
    assert_eq!((all, distinct), (2000, 2000));
}

fn reordering() {
    let lab = lab(2);
    let (a, b) = (socket(&lab, 0, false), socket(&lab, 1, false));
    lab.wire().impair(0, 1, Impairment { reorder: 0.2, ..Impairment::default() });
    let to = b.local_addr().must("address");
    for number in 0..200_u32 {
        a.send_to(&number.to_be_bytes(), to).must("send");
        std::thread::sleep(Duration::from_micros(200));
    }
    let got: Vec<Vec<u8>> = drain(&b).into_iter().map(|(bytes, _)| bytes).collect();
    assert_eq!(got.len(), 200);
    assert!(!got.is_sorted(), "some were overtaken");
}

fn delay() {
    let lab = lab(2);
    let (a, b) = (socket(&lab, 0, false), socket(&lab, 1, false));
    let delay = Duration::from_millis(30);
    lab.wire().impair_one_way(0, 1, Impairment { delay, ..Impairment::default() });
    let start = Instant::now();
    a.send_to(b"x", b.local_addr().must("address")).must("send");
    b.recv_from(&mut [0; 8]).must("receive");
    let took = start.elapsed();
    assert!(took >= delay && took < delay * 3, "{took:?}");
}

fn path_mtu() {
    let lab = lab(2);
    for v6 in [false, true] {
        let (a, b) = (socket(&lab, 0, v6), socket(&lab, 1, v6));
        a.connect(b.local_addr().must("address")).must("connect");
        let headers = if v6 { 48 } else { 28 };
        lab.wire().impair(0, 1, Impairment::path_mtu(1300, false));
        a.send(&vec![1; 1300 - headers]).must("send");
        a.send(&vec![2; 1301 - headers]).must("send");
        assert_eq!(drain(&b).len(), 1, "only what fits");
        a.send(&vec![1; 1301 - headers]).must("nobody was told");
        lab.wire().impair(0, 1, Impairment::path_mtu(1300, true));
        a.send(&vec![1; 1301 - headers]).must("send");
        std::thread::sleep(Duration::from_millis(50));
        let told = a.send(&vec![1; 1301 - headers]).map_err(|error| error.raw_os_error());
        assert_eq!(told, Err(Some(libc::EMSGSIZE)), "the kernel has heard of it");
        a.send(&vec![1; 1301 - headers]).must("send");
        assert_eq!(drain(&b).len(), 1, "fragmented to fit");
    }
}

fn translation() {
    let kinds = [NatKind::Restricted, NatKind::Symmetric];
    for kind in kinds {
        let nats = vec![NatConfig { kind, timeout: Duration::from_secs(30), hosts: vec![2] }];
        let lab = Lab::new(&LabConfig { nats, ..LabConfig::hosts(3) }).must("make the lab");
        let sockets: Vec<UdpSocket> = (0..3).map(|host| socket(&lab, host, false)).collect();
        let address = |host: usize| sockets[host].local_addr().must("address");
        sockets[2].send_to(b"out", address(0)).must("send");
        let got = drain(&sockets[0]);
        assert_eq!(got.len(), 1, "{kind:?}");
        let (_, seen_as) = &got[0];
        assert_eq!(seen_as.ip(), IpAddr::V4(nat_public(0)), "{kind:?}");
        sockets[0].send_to(b"back", *seen_as).must("send");
        assert_eq!(drain(&sockets[2]), [(b"back".to_vec(), address(0))], "{kind:?}");
        sockets[1].send_to(b"stranger", *seen_as).must("send");
        assert_eq!(drain(&sockets[2]), [], "{kind:?}: it has not written to that host");
        sockets[2].send_to(b"out", address(1)).must("send");
        let (_, seen_by_other) = drain(&sockets[1]).pop().must("arrives");
        assert_eq!(seen_by_other == *seen_as, kind != NatKind::Symmetric, "{kind:?}");
        lab.wire().forget_nat(0);
        std::thread::sleep(Duration::from_millis(20));
        sockets[0].send_to(b"late", *seen_as).must("send");
        assert_eq!(drain(&sockets[2]), [], "{kind:?}: forgotten");
    }
}

fn capture() {
    let lab = lab(2);
    let (a, b) = (socket(&lab, 0, true), socket(&lab, 1, true));
    let to = b.local_addr().must("address");
    lab.wire().start_capture(1 << 20);
    a.send_to(b"marker", to).must("send");
    assert_eq!(drain(&b).len(), 1);
    let (frames, overwritten) = lab.wire().take_capture();
    assert_eq!(overwritten, 0);
    let mut sent = frames.iter().filter_map(|captured| {
        // The kernel's own multicast reports are in it, too.
        Some((captured.from, &captured.frame, frame::datagram(&captured.frame)?))
    });
    let (from, frame, datagram) = sent.next().must("a datagram");
    assert!(from == 0 && sent.next().is_none());
    assert_eq!(&frame[datagram.payload], b"marker");
    lab.wire().inject(1, frame.clone());
    lab.inject_datagram(1, datagram.source, PORT, b"forged").must("inject");
    let got: Vec<Vec<u8>> = drain(&b).into_iter().map(|(bytes, _)| bytes).collect();
    assert_eq!(got, [b"marker".to_vec(), b"forged".to_vec()]);
}
