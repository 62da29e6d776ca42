//! A flow arrives in the order in which it was sent.

use std::{net::UdpSocket, time::Duration};

use weft::lab::traffic::ECHO_PORT;

use crate::{
    Case,
    mesh::{Mesh, MeshConfig, Must as _, PATIENCE},
};

pub(crate) const CASES: &[Case] = &[("flows_keep_their_order_from_their_first_datagram_on", 60, flows)];

/// New flows of each family. What moves a flow from one queue to another does so at its first answer.
const FLOWS: usize = 200;
/// Datagrams that each sends as fast as it can, as many as fit into a socket: the answers to the first come while
/// the last still wait.
const BURST: u32 = 200;

/// Numbers of the datagrams of one new flow, as their echoes came back.
fn burst(socket: &UdpSocket) -> Vec<u32> {
    socket.set_read_timeout(Some(Duration::from_millis(100))).must("set the timeout");
    let mut came = Vec::new();
    let mut bytes = [0; 4];
    for number in 0..BURST {
        socket.send(&number.to_be_bytes()).must("send");
    }
    // Some are lost where a buffer is full; the last may be.
    while came.last() != Some(&(BURST - 1)) && socket.recv(&mut bytes).is_ok() {
        came.push(u32::from_be_bytes(bytes));
    }
    came
}

fn flows() {
    let mesh = Mesh::start(&MeshConfig::star(2));
    mesh.wait_established(PATIENCE);
    mesh.all_reach(&[0, 1], Duration::from_secs(4));
    let (mut sent, mut arrived) = (0, 0);
    for flow in 0..FLOWS {
        for to in mesh.ips(1) {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = mesh.containers[0].run(|| UdpSocket::bind(any)).must("open a socket");
            socket.connect((to, ECHO_PORT)).must("connect");
            let came = burst(&socket);
            assert!(came.is_sorted(), "flow {flow} to {to} was overtaken by itself: {came:?}");
            (sent, arrived) = (sent + u64::from(BURST), arrived + came.len() as u64);
        }
    }
    assert!(arrived * 10 > sent * 9, "{arrived} of {sent}");
}
