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
    mesh::{Mesh, MeshConfig, Must as _, PATIENCE},
};

pub(crate) const CASES: &[Case] = &[
    ("frames_of_every_size_arrive_unchanged", 90, every_size),
    ("tagged_llc_and_multicast_frames_arrive_unchanged", 60, odd_kinds),
    ("jumbo_frames_arrive_unchanged_over_a_jumbo_underlay", 60, jumbo),
    ("jumbo_frames_arrive_unchanged_over_an_ordinary_underlay", 60, jumbo_over_ordinary),
    ("frames_arrive_unchanged_through_a_relay", 60, relayed),
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
                if number % 16 == 15 {
                    thread::sleep(Duration::from_millis(4));
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
    let mesh = Mesh::start(&MeshConfig::star(2));
    let mut ends = ends(&mesh, 0, 1);
    let to = ends.to;
    let frames: Vec<_> = (14..=ends.mtu + 14).map(|size| ends.frame(to, &LOCAL, size)).collect();
    ends.pass(&frames);
    let mut back = self::ends(&mesh, 1, 0);
    let to = back.to;
    let frames: Vec<_> = (14..=back.mtu + 14).rev().map(|size| back.frame(to, &LOCAL, size)).collect();
    back.pass(&frames);
}

fn odd_kinds() {
    let mesh = Mesh::start(&MeshConfig::star(2));
    let mut ends = ends(&mesh, 0, 1);
    let (to, mtu) = (ends.to, ends.mtu);
    let sizes = || (18..mtu).step_by(61);
    let group: Mac = [0x01, 0x00, 0x5e, 0x01, 0x02, 0x03];
    let group6: Mac = [0x33, 0x33, 0, 0, 0x12, 0x34];
    let cisco: Mac = [0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcc];
    for destination in [to, group, group6, cisco, [0xff; 6]] {
        let frames: Vec<_> = sizes().map(|size| ends.frame(destination, &LOCAL, size)).collect();
        ends.pass(&frames);
        // A VLAN tag (IEEE 802.1Q) with priority, one with a service tag outside (802.1ad), and
        // a priority tag without a VLAN.
        for tag in
            [&[0x81, 0x00, 0xa0, 0x7b][..], &[0x88, 0xa8, 0x00, 0x64, 0x81, 0x00, 0x00, 0x7b], &[0x81, 0, 0x60, 0]]
        {
            let kind = [tag, &LOCAL].concat();
            let frames: Vec<_> = sizes().map(|size| ends.frame(destination, &kind, size + 8)).collect();
            ends.pass(&frames);
        }
        // LLC: the length in the place of the type, then the SAPs.
        let frames: Vec<_> = sizes()
            .map(|size| {
                let length = u16::try_from(size - 14).must("a length").to_be_bytes();
                ends.frame(destination, &[length[0], length[1], 0x42, 0x42, 0x03], size)
            })
            .collect();
        ends.pass(&frames);
    }
    // The largest frame with a tag is four bytes longer.
    let kind = [0x81, 0x00, 0x00, 0x07, 0x88, 0xb5];
    let largest = ends.frame(to, &kind, mtu + 18);
    ends.pass(&[largest]);
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
    let frames: Vec<_> = (14..=mtu + 14)
        .step_by(149)
        .chain(mtu - 20..=mtu + 14)
        .collect::<std::collections::BTreeSet<usize>>()
        .into_iter()
        .map(|size| ends.frame(to, &LOCAL, size))
        .collect();
    ends.pass(&frames);
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
    let mesh = with_mtu(1500, "1410", &[(0, 1), (1, 2)], 3);
    mesh.wait_established(PATIENCE);
    let mut ends = ends(&mesh, 0, 2);
    let (to, mtu) = (ends.to, ends.mtu);
    let sizes = (14..=mtu + 14).step_by(23).chain([mtu + 14]);
    let sizes: std::collections::BTreeSet<usize> = sizes.collect();
    let frames: Vec<_> = sizes.into_iter().map(|size| ends.frame(to, &LOCAL, size)).collect();
    ends.pass(&frames);
}
