//! The mesh is a wire: what goes in comes out, byte by byte.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use weft::{
    lab::raw::RawSocket,
    netlink::{Mac, container::INTERFACE},
};

use crate::{
    Case,
    fastpath::{open_mesh, wait_for_carrier},
    mesh::{Mesh, MeshConfig, Must as _, PATIENCE},
};

pub(crate) const CASES: &[Case] = &[
    ("frames_of_every_size_arrive_unchanged", 90, every_size),
    ("tagged_llc_and_multicast_frames_arrive_unchanged", 150, odd_kinds),
    ("frames_arrive_unchanged_under_each_cipher", 90, each_cipher),
    ("frames_arrive_unchanged_in_the_clear", 90, in_the_clear),
    ("frames_arrive_unchanged_by_the_fast_path_and_beside_it", 90, fast),
    ("jumbo_frames_arrive_unchanged_over_a_jumbo_underlay", 60, jumbo),
    ("jumbo_frames_arrive_unchanged_over_an_ordinary_underlay", 60, jumbo_over_ordinary),
    ("frames_up_to_jumbo_arrive_unchanged_through_a_relay", 60, relayed),
    ("an_address_that_moves_to_another_host_is_followed_at_once", 60, moved),
];

const LOCAL: [u8; 2] = [0x88, 0xb5];

struct Ends {
    from: Mac,
    to: Mac,
    mtu: usize,
    out: RawSocket,
    inn: RawSocket,
}

fn ends(mesh: &Mesh, from: usize, to: usize) -> Ends {
    mesh.reaches(from, to, Duration::from_secs(4));
    let link = |index: usize| mesh.containers[index].link(INTERFACE).must("look").must("weft0");
    let open = |index: usize| RawSocket::open(&mesh.containers[index], INTERFACE).must("open");
    let (near, far) = (link(from), link(to));
    let mtu = usize::try_from(near.mtu).must("an MTU");
    Ends { from: near.mac.must("MAC"), to: far.mac.must("MAC"), mtu, out: open(from), inn: open(to) }
}

/// Bytes that differ from place to place and from frame to frame.
fn fill(frame: &mut Vec<u8>, size: usize) {
    let start = frame.len();
    frame.extend((start..size).map(|place| (place * 31 + size * 17 + place / 251) as u8));
}

impl Ends {
    fn frame(&self, destination: Mac, kind: &[u8], size: usize) -> Vec<u8> {
        let mut frame = [&destination[..], &self.from, kind].concat();
        fill(&mut frame, size);
        frame
    }

    /// Sends frames of different sizes; each comes out once, unchanged, and nothing else does.
    #[track_caller]
    fn pass(&mut self, frames: &[Vec<u8>]) {
        let sizes: BTreeMap<usize, &Vec<u8>> = frames.iter().map(|frame| (frame.len(), frame)).collect();
        assert_eq!(sizes.len(), frames.len(), "the test tells them apart by size");
        let (inn, out) = (&mut self.inn, &self.out);
        let from = self.from;
        let got = thread::scope(|scope| {
            let end = Instant::now() + Duration::from_secs(10);
            let reader = scope.spawn(move || {
                // Ours by source and kind: the kernels speak ARP, ND and UDP meanwhile.
                let ours = |frame: &[u8]| {
                    let other = frame
                        .get(12..14)
                        .is_none_or(|kind| [[0x08, 0x00], [0x08, 0x06], [0x86, 0xdd]].iter().any(|ip| kind == ip));
                    frame[6..12] == from && !other
                };
                let mut got = inn.collect(end, frames.len(), ours).must("receive");
                let late = Instant::now() + Duration::from_millis(300);
                got.extend(inn.collect(late, usize::MAX, ours).must("receive"));
                got
            });
            for (number, frame) in frames.iter().enumerate() {
                out.send(frame).must(&format!("send a frame of {} bytes", frame.len()));
                // The receiving socket holds about a hundred, and a busy machine lets its reader wait.
                if number % 16 == 15 {
                    thread::sleep(Duration::from_millis(10));
                }
            }
            reader.join().expect("no panic")
        });
        let mut missing = sizes.clone();
        for frame in &got {
            let sent = sizes.get(&frame.len());
            assert!(sent == Some(&frame), "a frame of {} bytes was never sent so", frame.len());
            assert!(missing.remove(&frame.len()).is_some(), "{} bytes came twice", frame.len());
        }
        assert!(missing.is_empty(), "never came: {:?}", missing.keys().collect::<Vec<_>>());
    }
}

fn every_size() {
    every_size_both_ways(&Mesh::start(&MeshConfig::star(2)));
}

fn every_size_both_ways(mesh: &Mesh) {
    let mut ends = ends(mesh, 0, 1);
    let to = ends.to;
    let frames: Vec<_> = (14..=ends.mtu + 14).map(|size| ends.frame(to, &LOCAL, size)).collect();
    ends.pass(&frames);
    let mut back = self::ends(mesh, 1, 0);
    let to = back.to;
    let frames: Vec<_> = (14..=back.mtu + 14).rev().map(|size| back.frame(to, &LOCAL, size)).collect();
    back.pass(&frames);
}

const GROUP: Mac = [0x01, 0x00, 0x5e, 0x01, 0x02, 0x03];
const GROUP6: Mac = [0x33, 0x33, 0, 0, 0x12, 0x34];
const CISCO: Mac = [0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcc];
const EVERYBODY: Mac = [0xff; 6];

fn odd_kinds() {
    let mesh = Mesh::start(&MeshConfig::star(2));
    let mut ends = ends(&mesh, 0, 1);
    let to = ends.to;
    odd(&mut ends, &[to, GROUP, GROUP6, CISCO, EVERYBODY], 1);
}

fn each_cipher() {
    for cipher in ["aes-256-gcm", "chacha20-poly1305", "nacl"] {
        let args = vec!["--cipher".into(), cipher.into()];
        let mesh = Mesh::start(&MeshConfig { args, ..MeshConfig::star(2) });
        mesh.wait_established(PATIENCE);
        mesh.all_reach(&[0, 1], Duration::from_secs(2));
        for (router, other) in [(0, 1), (1, 0)] {
            mesh.wait_for_peer(router, other, PATIENCE, |peer| peer["cipher"] == cipher && peer["encrypted"] == true);
        }
        let mut ends = ends(&mesh, 0, 1);
        let to = ends.to;
        let frames: Vec<_> = (14..=ends.mtu + 14).map(|size| ends.frame(to, &LOCAL, size)).collect();
        ends.pass(&frames);
    }
}

/// Sleeve without a seal.
fn in_the_clear() {
    let mesh = Mesh::start(&MeshConfig { args: vec!["--no-fast-path".into()], ..open_mesh(2) });
    wait_for_carrier(&mesh, 0, 1, "sleeve", PATIENCE);
    mesh.wait_for_peer(0, 1, PATIENCE, |peer| peer["encrypted"] == false && peer["cipher"].is_null());
    every_size_both_ways(&mesh);
    let mut ends = ends(&mesh, 0, 1);
    let to = ends.to;
    odd(&mut ends, &[to, GROUP6, EVERYBODY], 7);
    wait_for_carrier(&mesh, 0, 1, "sleeve", Duration::ZERO);
}

fn fast() {
    let mesh = Mesh::start(&open_mesh(2));
    wait_for_carrier(&mesh, 0, 1, "fast", PATIENCE);
    mesh.all_reach(&[0, 1], Duration::from_secs(2));
    let taken = || mesh.counter(0, "frames_in") + mesh.counter(1, "frames_in");
    let before = taken();
    every_size_both_ways(&mesh);
    assert!(taken() - before < 100, "the routers carried {} of 2,800 frames", taken() - before);
    let mut ends = ends(&mesh, 0, 1);
    let to = ends.to;
    odd(&mut ends, &[to, GROUP6, EVERYBODY], 7);
    wait_for_carrier(&mesh, 0, 1, "fast", PATIENCE);
}

/// Plain, tagged and LLC frames to each of these destinations: of every `step`th size, and always
/// of the smallest that holds its headers and of the largest.
#[track_caller]
fn odd(ends: &mut Ends, destinations: &[Mac], step: usize) {
    let largest = ends.mtu + 14;
    let sizes = |smallest: usize| {
        (smallest..=largest).filter(move |&size| size == smallest || (largest - size).is_multiple_of(step))
    };
    for &destination in destinations {
        let frames: Vec<_> = sizes(14).map(|size| ends.frame(destination, &LOCAL, size)).collect();
        ends.pass(&frames);
        // A VLAN tag (IEEE 802.1Q) with priority, one with a service tag outside (802.1ad), and
        // a priority tag without a VLAN.
        for tag in
            [&[0x81, 0x00, 0xa0, 0x7b][..], &[0x88, 0xa8, 0x00, 0x64, 0x81, 0x00, 0x00, 0x7b], &[0x81, 0, 0x60, 0]]
        {
            let kind = [tag, &LOCAL].concat();
            // Of the tags the kernel takes only that of 802.1Q for no part of the MTU.
            let more = if kind[..2] == [0x81, 0x00] { 4 } else { 0 };
            let frames: Vec<_> =
                sizes(12 + kind.len()).map(|size| ends.frame(destination, &kind, size + more)).collect();
            ends.pass(&frames);
        }
        // LLC: the length in the place of the type, then the SAPs. Above 1500 it would be a type.
        let frames: Vec<_> = sizes(17)
            .filter(|&size| size <= 1514)
            .map(|size| {
                let length = u16::try_from(size - 14).must("a length").to_be_bytes();
                ends.frame(destination, &[length[0], length[1], 0x42, 0x42, 0x03], size)
            })
            .collect();
        ends.pass(&frames);
    }
}

fn with_mtu(underlay: u32, overlay: &str, hosts: &[(usize, usize)], count: usize) -> Mesh {
    let mut config = MeshConfig::graph(count, hosts);
    config.lab.mtu = underlay;
    config.args = vec!["--mtu".into(), overlay.into()];
    Mesh::start(&config)
}

fn jumbo_sizes(ends: &mut Ends) {
    let (to, mtu) = (ends.to, ends.mtu);
    assert_eq!(mtu, 8950);
    // In portions that the receiving socket has room for.
    let sizes: Vec<usize> = (14..=mtu + 14).collect();
    for sizes in sizes.chunks(1000) {
        let frames: Vec<_> = sizes.iter().map(|&size| ends.frame(to, &LOCAL, size)).collect();
        ends.pass(&frames);
    }
}

fn jumbo() {
    let mesh = with_mtu(9000, "8950", &[(0, 1)], 2);
    jumbo_sizes(&mut ends(&mesh, 0, 1));
}

fn jumbo_over_ordinary() {
    let mesh = with_mtu(1500, "8950", &[(0, 1)], 2);
    jumbo_sizes(&mut ends(&mesh, 0, 1));
}

fn relayed() {
    let mesh = with_mtu(1500, "8950", &[(0, 1), (1, 2)], 3);
    mesh.wait_established(PATIENCE);
    for (from, to) in [(0, 2), (2, 0)] {
        mesh.wait_for_peer(from, to, PATIENCE, |peer| peer["carrier"] == "relay");
        let mut ends = ends(&mesh, from, to);
        assert_eq!(ends.mtu, 8950);
        let to = ends.to;
        odd(&mut ends, &[to], 13);
    }
}

/// How often each socket gets a frame that somebody sends once.
fn heard(sender: &RawSocket, frame: &[u8], at: &mut [RawSocket]) -> Vec<usize> {
    for socket in &mut *at {
        socket.drain().must("drain");
    }
    sender.send(frame).must("send");
    thread::sleep(Duration::from_millis(200));
    let count = |socket: &mut RawSocket| {
        let soon = Instant::now() + Duration::from_millis(50);
        socket.collect(soon, usize::MAX, |got| got == frame).must("receive").len()
    };
    at.iter_mut().map(count).collect()
}

/// A machine with an address of its own behind one host turns up behind another: from its first
/// frame on, what is for it goes there, and not to where it was.
fn moved() {
    let mesh = Mesh::start(&MeshConfig::star(3));
    mesh.wait_established(PATIENCE);
    mesh.all_reach(&[0, 1, 2], Duration::from_secs(4));
    let open = |index: usize| RawSocket::open(&mesh.containers[index], INTERFACE).must("open");
    let mover: Mac = [0x02, 0x10, 0x20, 0x30, 0x40, 0x50];
    let own = mesh.containers[2].link(INTERFACE).must("look").must("weft0").mac.must("a MAC");
    let for_it = [&mover[..], &own, &LOCAL, b"for whoever moves".as_slice()].concat();
    let here = [&[0xff; 6], &mover[..], &LOCAL, b"here I am".as_slice()].concat();
    let (out, senders) = (open(2), [open(0), open(1)]);
    let mut at = [open(0), open(1)];
    for round in 0..6 {
        let place = round % 2;
        senders[place].send(&here).must("send");
        // The frame that tells it is under way for a moment.
        thread::sleep(Duration::from_millis(100));
        let mut expected = vec![0, 0];
        expected[place] = 1;
        assert_eq!(heard(&out, &for_it, &mut at), expected, "round {round}");
    }
}
