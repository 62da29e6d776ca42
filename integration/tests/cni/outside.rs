//! What pods send to outside of the mesh: in the host's name where the configuration says `ipMasq`, else in
//! their own; a host that knows nothing of the mesh says what it sees.

use std::{
    net::{IpAddr, SocketAddr},
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use weft::lab::wait_until;

use crate::{
    busybox::PATH,
    driven::{code, keys},
    witness::{PORT, PROTOCOLS, Protocol, Witness, seen},
    world::{Must as _, PATIENCE, Served, World, addresses, both},
};

const TABLE: &str = "weft-masquerade";
/// The host that is outside.
const OUTSIDE: usize = 2;
/// Within this what somebody deletes is back.
const PUT_BACK: Duration = Duration::from_secs(1);

/// Keys of a network whose pods reach outside in their own name.
pub(crate) fn plain() -> Value {
    let mut keys = keys();
    assert_eq!(keys["ipMasq"], true, "by default they do so in the host's");
    keys["ipMasq"] = json!(false);
    keys
}

/// A pod that is asked, and asks.
struct Pod {
    served: Served,
    own: [IpAddr; 2],
    _witness: Witness,
}

impl Pod {
    fn new(world: &World, host: usize, name: &str, keys: Value) -> Self {
        let served = Served::new(name);
        let result = world.driver(host, "1.0.0", keys).add(&served.pod).must("ADD");
        let witness = Witness::start(served.container.namespace(), name);
        Self { own: both(&addresses(&result)), served, _witness: witness }
    }

    /// Who answers, and whom it takes this one for.
    #[track_caller]
    fn asks(&self, protocol: Protocol, to: IpAddr) -> (String, IpAddr) {
        let seen = seen(self.served.container.namespace(), protocol, SocketAddr::new(to, PORT));
        (seen.by, seen.from)
    }
}

fn underlay(world: &World, host: usize) -> [IpAddr; 2] {
    let host = world.lab.host(host);
    [host.v4().into(), host.v6()]
}

fn table(world: &World, host: usize) -> Option<String> {
    let output = world.try_tool(host, &["nft", "list", "table", "inet", TABLE], "");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

pub(crate) fn as_asked() {
    let mut world = World::beside(1);
    refused_if_it_cannot_be(&world);
    let _outside = Witness::start(world.lab.host(OUTSIDE).namespace(), "outside");
    let [v4, v6] = underlay(&world, 0).map(|ip| ip.to_string());
    // So that who comes in its own name is answered.
    world.tool(OUTSIDE, &["ip", "route", "add", "10.32.0.0/12", "via", &v4], "");
    world.tool(OUTSIDE, &["ip", "-6", "route", "add", "fd00:32::/64", "via", &v6], "");

    let plain = Pod::new(&world, 0, "plain", plain());
    assert_eq!(table(&world, 0), None, "nothing is laid for who did not ask");
    let (one, far) = (Pod::new(&world, 0, "one", keys()), Pod::new(&world, 1, "far", keys()));
    let outside = || "outside".to_owned();
    for (family, to) in underlay(&world, OUTSIDE).into_iter().enumerate() {
        for protocol in PROTOCOLS {
            assert_eq!(plain.asks(protocol, to), (outside(), plain.own[family]));
            assert_eq!(one.asks(protocol, to), (outside(), underlay(&world, 0)[family]));
            assert_eq!(far.asks(protocol, to), (outside(), underlay(&world, 1)[family]));
        }
    }
    // Among themselves never, whether the host's filter of IP looks at bridges or not.
    for filtered in [false, true] {
        (0..2).for_each(|host| world.set_bridge_filter(host, filtered));
        for (from, to) in [(&one, &far), (&far, &one), (&one, &plain), (&plain, &one), (&far, &plain)] {
            for (family, address) in to.own.into_iter().enumerate() {
                for protocol in PROTOCOLS {
                    let name = to.served.pod.id.clone();
                    assert_eq!(from.asks(protocol, address), (name, from.own[family]), "filtered: {filtered}");
                }
            }
        }
    }
    stays(&mut world, &one);

    let driver = world.driver(0, "1.0.0", keys());
    driver.del(&plain.served.pod, None).must("DEL");
    assert!(table(&world, 0).is_some(), "one is still there");
    driver.del(&one.served.pod, None).must("DEL");
    assert_eq!(table(&world, 0), None, "the table goes with the last pod");
    assert!(table(&world, 1).is_some());
    world.routers[1].command(["down"]).must("down");
    assert!(wait_until(PATIENCE, || world.routers[1].exited().must("look").is_some()));
    assert_eq!(table(&world, 1), None, "nothing is left");
}

/// It is there without the router, and comes back when somebody takes it away.
fn stays(world: &mut World, one: &Pod) {
    let outside = underlay(world, OUTSIDE)[0];
    let fine = |world: &World, when: &str| {
        for protocol in PROTOCOLS {
            assert_eq!(one.asks(protocol, outside).1, underlay(world, 0)[0], "{when}");
        }
    };
    let whole = table(world, 0).must("the table");
    assert_eq!(whole.matches("masquerade fully-random").count(), 2, "{whole}");
    for change in [
        &["delete", "table", "inet", TABLE][..],
        &["flush", "chain", "inet", TABLE, "leaving"],
        &["flush", "set", "inet", TABLE, "sources4"],
        &["flush", "ruleset"],
    ] {
        world.tool(0, &[&["nft"][..], change].concat(), "");
        assert!(wait_until(PUT_BACK, || table(world, 0).as_ref() == Some(&whole)), "after {change:?}");
        fine(world, &format!("after {change:?}"));
    }
    world.routers[0].kill().must("kill");
    fine(world, "without a router");
    world.routers[0].launch().must("start again");
    world.ready(0);
    assert_eq!(table(world, 0).as_ref(), Some(&whole));
    fine(world, "after a start");
}

/// A pod that would go in its own name is not made.
fn refused_if_it_cannot_be(world: &World) {
    // Somebody else owns a table of that name: the kernel lets nobody change it.
    let start = || Command::new("nft").arg("-i").env("PATH", PATH).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
    let mut owner = world.lab.host(0).namespace().run(start).must("enter the host").must("run nft");
    let mut stdin = owner.stdin.take().must("its input");
    std::io::Write::write_all(&mut stdin, format!("add table inet {TABLE} {{ flags owner; }}\n").as_bytes())
        .must("write");
    assert!(wait_until(PATIENCE, || table(world, 0).is_some()), "somebody's table is there");
    let pod = Served::new("refused");
    code(world.driver(0, "1.1.0", keys()).add(&pod.pod), 103, "ipMasq");
    assert!(pod.container.link("eth0").must("look inside").is_none());
    world.nothing_is_left();
    let status = world.json(0, &["status"]);
    assert_eq!(status["verdict"], "ok", "nobody is there who should be masqueraded: {status}");
    drop(stdin);
    owner.wait().must("wait for nft");
}
