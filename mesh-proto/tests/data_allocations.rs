//! In steady state the data path allocates nothing: counted by the allocator itself.

mod data_net;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;
use std::time::Duration;

use data_net::*;
use mesh_proto::data::fence::Fence;
use mesh_proto::data::parts::Parts;
use mesh_proto::data::virtio::VirtioHeader;
use mesh_proto::data::{Hop, Sink};
use mesh_proto::handover::Command;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

#[expect(unsafe_code, reason = "an allocator is one")]
// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Holds what was sent in memory that was there before.
struct Fixed {
    datagrams: Vec<(SocketAddr, usize)>,
    bytes: Vec<u8>,
    frames: u64,
}

impl Sink for Fixed {
    fn datagram(&mut self, to: SocketAddr, bytes: &[u8]) {
        self.datagrams.push((to, bytes.len()));
        self.bytes.extend_from_slice(bytes);
    }
    fn frame(&mut self, _bytes: &[u8]) {
        self.frames += 1;
    }
    fn super_frame(&mut self, header: &VirtioHeader, bytes: Parts<'_>) {
        self.frames += (bytes.len() as u64).div_ceil(u64::from(header.gso_size).max(1 << 16));
    }
    fn quic(&mut self, _from: Hop, _bytes: &[u8]) {}
}

/// One frame from host `from` all the way, over as many hosts as it takes. Frames that came out.
fn carry(net: &mut Net, from: usize, frame: &[u8], wires: &mut [Fixed; 2], scratch: &mut [u8]) -> u64 {
    let now = net.now;
    let [here, there] = wires;
    let before = here.frames + there.frames;
    net.nodes[from].handle_frame(frame, now, here);
    net.nodes[from].flush(now, here);
    let mut source = addr(from);
    while !here.datagrams.is_empty() {
        let mut at = 0;
        let mut next = source;
        for i in 0..here.datagrams.len() {
            let (to, length) = here.datagrams[i];
            scratch[..length].copy_from_slice(&here.bytes[at..at + length]);
            at += length;
            let node = &mut net.nodes[node_of(to).expect("all addresses are hosts")];
            node.handle_datagram(source, &mut scratch[..length], now, there);
            node.flush(now, there);
            next = to;
        }
        here.datagrams.clear();
        here.bytes.clear();
        source = next;
        std::mem::swap(here, there);
    }
    here.frames + there.frames - before
}

#[test]
fn no_frame_costs_an_allocation_once_all_is_warm() {
    let mut net = Net::new(3);
    net.ready(&[(0, 1), (1, 2)]);
    for n in 0..3 {
        net.send(n, &frame(EVERYBODY, mac(n, 1), 60, n as u64));
    }
    net.run(ms(500));
    let fixed = || Fixed { datagrams: Vec::with_capacity(1024), bytes: Vec::with_capacity(1 << 20), frames: 0 };
    let mut wires = [fixed(), fixed()];
    let mut scratch = vec![0; 70_000];
    let kinds = [
        ("unicast", frame(mac(1, 1), mac(0, 1), 1400, 1), 1),
        ("relayed", frame(mac(2, 1), mac(0, 1), 1200, 2), 1),
        ("fragments", frame(mac(1, 1), mac(0, 1), 9000, 3), 1),
        ("relayed fragments", frame(mac(2, 1), mac(0, 1), 65_535, 4), 1),
        ("flood", frame(EVERYBODY, mac(0, 1), 100, 5), 2),
    ];
    for (name, frame, copies) in &kinds {
        // Warm-up: buffers of pools are made at first need. Fragments of many ids use many slots.
        for _ in 0..3 {
            carry(&mut net, 0, frame, &mut wires, &mut scratch);
        }
        let before = COUNT.with(Cell::get);
        for n in 0..1000u64 {
            net.now += Duration::from_micros(10);
            let came = carry(&mut net, 0, frame, &mut wires, &mut scratch);
            assert_eq!(came, *copies, "{name} {n}");
        }
        assert_eq!(COUNT.with(Cell::get) - before, 0, "allocations for 1000 × {name}");
    }
}

#[test]
fn no_super_frame_costs_an_allocation() {
    let mut net = Net::new(2);
    net.ready(&[(0, 1)]);
    // Its frames are looked into, and are from elsewhere.
    let fence = Fence::new([([10, 0, 0, 9].into(), [10, 0, 0, 99].into())]);
    net.command(1, Command::Fences([(id(0), fence.into())].into()));
    net.send(1, &frame(EVERYBODY, mac(1, 1), 60, 1));
    net.run(ms(500));
    let fixed = || Fixed { datagrams: Vec::with_capacity(1024), bytes: Vec::with_capacity(1 << 20), frames: 0 };
    let (mut wire, mut tap) = (fixed(), fixed());
    let (header, mut bytes) = super_frame(mac(1, 1), mac(0, 1), 60_000);
    for n in 0..1000 {
        let before = COUNT.with(Cell::get);
        net.now += Duration::from_micros(10);
        net.nodes[0].handle_super_frame(&header, &mut bytes, net.now, &mut wire);
        net.nodes[0].flush(net.now, &mut wire);
        let mut at = 0;
        for &(_, length) in &wire.datagrams {
            let place = at..at + length;
            at = place.end;
            net.nodes[1].handle_received(addr(0), &mut wire.bytes, place, net.now, &mut tap);
        }
        net.nodes[1].settle(&wire.bytes, &mut tap);
        assert_eq!((wire.datagrams.len(), tap.frames), (47, n + 1));
        wire.datagrams.clear();
        wire.bytes.clear();
        assert_eq!(COUNT.with(Cell::get) - before, 0, "allocations for super-frame {n}");
    }
}

#[test]
fn damaged_and_unknown_datagrams_cost_no_allocation() {
    let mut net = Net::new(2);
    net.ready(&[(0, 1)]);
    let good = net.capture.last().unwrap().clone();
    let to = node_of(good.to).unwrap();
    let mut bytes = good.bytes.clone();
    let mut sink = Fixed { datagrams: Vec::new(), bytes: Vec::new(), frames: 0 };
    let before = COUNT.with(Cell::get);
    for n in 0..1000 {
        bytes.copy_from_slice(&good.bytes);
        bytes[n % good.bytes.len()] ^= 1 | n as u8;
        net.nodes[to].handle_datagram(good.from, &mut bytes, net.now, &mut sink);
    }
    assert_eq!(COUNT.with(Cell::get) - before, 0);
}
