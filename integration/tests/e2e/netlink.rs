//! The kernel's network configuration: what is made, adopted, refused and removed.

use std::{future::Future, pin::pin, task::Poll, time::Duration};

use weft::{
    lab::Container,
    netlink::{Mac, Monitor, NetNs, Netlink, Notice, Route, Topic, VethPeer, container},
};

use crate::{Case, mesh::Must as _};

pub(crate) const CASES: &[Case] = &[
    ("a_bridge_is_created_once_and_adopted_with_new_settings", 10, bridge_is_adopted),
    ("a_name_that_belongs_to_something_else_is_refused", 10, foreign_names_are_refused),
    ("plugging_a_container_in_twice_changes_nothing", 10, plugging_is_idempotent),
    ("a_half_removed_container_interface_is_made_anew", 10, leftovers_are_replaced),
    ("a_container_without_ipv6_gets_its_ipv6_address_all_the_same", 10, ipv6_is_switched_on),
    ("addresses_and_routes_come_and_go_idempotently", 10, addresses_and_routes),
    ("the_kernel_tells_what_changes", 10, changes_are_told),
    ("notices_that_do_not_fit_are_said_to_be_lost", 20, lost_notices),
];

const MAC: Mac = [0x02, 1, 2, 3, 4, 5];

fn in_new_host<T: Send>(work: impl AsyncFnOnce(Netlink) -> weft::netlink::Result<T> + Send) -> T {
    let host = NetNs::create("host").must("make a namespace");
    Netlink::block_on_in(&host, work).must("netlink")
}

fn bridge_is_adopted() {
    in_new_host(async |netlink| {
        let made = netlink.ensure_bridge("weft", 1410, MAC).await?;
        assert!(made.up && made.mtu == 1410 && made.mac == Some(MAC), "{made:?}");
        let peer = VethPeer { name: "far", mac: [2, 9, 9, 9, 9, 9], namespace: None };
        netlink.add_veth("near", 1410, &peer).await?;
        netlink.enslave("near", &made, 1410).await?;
        let adopted = netlink.ensure_bridge("weft", 1300, MAC).await?;
        assert_eq!((adopted.index, adopted.mtu), (made.index, 1300));
        assert_eq!(adopted.mac, Some(MAC), "a port does not change the bridge's address");
        let ports = netlink.bridge_ports(adopted.index).await?;
        assert_eq!(ports.iter().map(|port| port.name.as_str()).collect::<Vec<_>>(), ["near"]);
        assert!(netlink.addresses(&adopted).await?.is_empty(), "the bridge is silent");
        Ok(())
    });
}

fn foreign_names_are_refused() {
    in_new_host(async |netlink| {
        let peer = VethPeer { name: "far", mac: MAC, namespace: None };
        netlink.add_veth("weft", 1500, &peer).await?;
        let error = netlink.ensure_bridge("weft", 1410, MAC).await.expect_err("a veth").to_string();
        assert!(error.contains("weft") && error.contains("--bridge"), "{error}");
        let error = netlink.add_veth("weft", 1500, &peer).await.expect_err("taken").to_string();
        assert!(error.contains("choose another"), "{error}");
        let error = netlink.need_link("nonesuch").await.expect_err("missing").to_string();
        assert!(error.contains("nonesuch"), "{error}");
        Ok(())
    });
}

fn plugging_is_idempotent() {
    let box_ = Container::new("box").must("make a container");
    in_new_host(async |netlink| {
        netlink.ensure_bridge("weft", 1410, MAC).await?;
        let addresses = [net("10.32.0.5/12"), net("fd00::5/64")];
        let mac = container::container_mac(addresses[0].addr());
        let plug = container::Plug {
            namespace: box_.namespace(),
            bridge: "weft",
            interface: container::INTERFACE,
            mac,
            mtu: 1410,
            addresses: &addresses,
            routes: &[Route::MULTICAST_V4],
            hairpin: false,
            alias: None,
            only_complete: false,
        };
        let first = container::plug(&netlink, &plug).await?;
        let second = container::plug(&netlink, &plug).await?;
        assert!(!first.adopted && second.adopted);
        assert_eq!((first.link, &first.host_interface), (second.link, &second.host_interface));
        assert_eq!(second.addresses, addresses);
        assert!(first.host_interface.len() <= 15);
        // Whose it is can be said later, and what has gone is not made by who only completes.
        let held = container::Plug { alias: Some("cni:net/id/eth0"), only_complete: true, ..plug };
        assert!(container::plug(&netlink, &held).await?.adopted);
        let end = netlink.need_link(&first.host_interface).await?;
        assert_eq!(end.alias.as_deref(), Some("cni:net/id/eth0"));
        assert!(container::unplug(&netlink, &second.host_interface).await?);
        assert!(container::plug(&netlink, &held).await.is_err());
        assert!(netlink.link(&first.host_interface).await?.is_none());
        assert!(!container::unplug(&netlink, &second.host_interface).await?);
        let inside = Netlink::open_in(box_.namespace())?;
        assert!(inside.link(container::INTERFACE).await?.is_none(), "both ends are gone");
        Ok(())
    });
}

fn leftovers_are_replaced() {
    let box_ = Container::new("box").must("make a container");
    in_new_host(async |netlink| {
        netlink.ensure_bridge("weft", 1410, MAC).await?;
        let addresses = [net("10.32.0.5/12")];
        let plug = container::Plug {
            namespace: box_.namespace(),
            bridge: "weft",
            interface: "eth1",
            mac: MAC,
            mtu: 1410,
            addresses: &addresses,
            routes: &[],
            hairpin: false,
            alias: None,
            only_complete: false,
        };
        let first = container::plug(&netlink, &plug).await?;
        let inside = Netlink::open_in(box_.namespace())?;
        // Somebody renames the container's end: the host end is a leftover.
        let link = inside.need_link("eth1").await?;
        inside.set_down(&link).await?;
        inside.rename(&link, "eth9").await?;
        let again = container::plug(&netlink, &plug).await?;
        assert!(!again.adopted);
        assert_eq!(again.host_interface, first.host_interface);
        // And an interface that is not ours is not touched.
        assert!(netlink.delete_link(&again.host_interface).await?);
        let peer = VethPeer { name: "other", mac: MAC, namespace: None };
        inside.add_veth("eth1", 1500, &peer).await?;
        let error = container::plug(&netlink, &plug).await.expect_err("foreign").to_string();
        assert!(error.contains("did not make"), "{error}");
        assert!(netlink.link(&first.host_interface).await?.is_none(), "nothing half-made is left");
        Ok(())
    });
}

fn ipv6_is_switched_on() {
    let box_ = Container::new("box").must("make a container");
    in_new_host(async |netlink| {
        netlink.ensure_bridge("weft", 1410, MAC).await?;
        Netlink::open_in(box_.namespace())?.sysctl("ipv6", "default", "disable_ipv6", "1")?;
        let addresses = [net("fd00::5/64")];
        let plug = container::Plug {
            namespace: box_.namespace(),
            bridge: "weft",
            interface: container::INTERFACE,
            mac: MAC,
            mtu: 1410,
            addresses: &addresses,
            routes: &[],
            hairpin: false,
            alias: None,
            only_complete: false,
        };
        assert_eq!(container::plug(&netlink, &plug).await?.addresses, addresses);
        Ok(())
    });
}

fn addresses_and_routes() {
    in_new_host(async |netlink| {
        let bridge = netlink.ensure_bridge("weft", 1410, MAC).await?;
        let peer = VethPeer { name: "far", mac: [2, 9, 9, 9, 9, 9], namespace: None };
        let port = netlink.add_veth("near", 1410, &peer).await?;
        netlink.enslave("near", &bridge, 1410).await?;
        netlink.set_up(&netlink.need_link("far").await?).await?;
        for address in [net("10.32.0.1/12"), net("fd00::1/64")] {
            netlink.add_address(&bridge, address).await?;
            netlink.add_address(&bridge, address).await?;
            assert!(netlink.local_addresses(&[]).await?.contains(&address));
            assert!(netlink.local_addresses(&["weft"]).await?.is_empty());
        }
        let gateway = "10.32.0.9".parse().must("an address");
        let default = Route::default_via(gateway);
        assert!(netlink.route_to(net("192.0.2.1/32").addr()).await?.is_none());
        netlink.add_route(&bridge, &default).await?;
        netlink.add_route(&bridge, &default).await?;
        let route = netlink.route_to(net("192.0.2.1/32").addr()).await?.must("a route");
        assert_eq!((route.link.index, route.gateway), (bridge.index, Some(gateway)));
        assert_eq!(netlink.mtu_towards(gateway).await?, Some(1410));
        let found = netlink.default_route_link().await?.must("a default route");
        assert_eq!(found.index, bridge.index);
        netlink.del_route(&bridge, &default).await?;
        netlink.del_route(&bridge, &default).await?;
        for address in [net("10.32.0.1/12"), net("fd00::1/64")] {
            netlink.del_address(&bridge, address).await?;
            netlink.del_address(&bridge, address).await?;
        }
        assert!(netlink.addresses(&bridge).await?.is_empty());
        assert!(port.index != bridge.index);
        Ok(())
    });
}

/// Reads notices until one is as wanted.
async fn told(monitor: &mut Monitor, what: &str, wanted: impl Fn(&Notice) -> bool) -> Notice {
    let mut seen = Vec::new();
    let search = async {
        loop {
            let notice = monitor.next().await.must("read");
            if wanted(&notice) {
                return notice;
            }
            seen.push(notice);
        }
    };
    match tokio::time::timeout(Duration::from_secs(2), search).await {
        Ok(notice) => notice,
        Err(_) => panic!("not told that {what}, only {seen:#?}"),
    }
}

fn changes_are_told() {
    in_new_host(async |netlink| {
        let topics = [Topic::Links, Topic::Addresses, Topic::Routes, Topic::Fdb];
        let mut monitor = netlink.monitor(&topics)?;
        let bridge = netlink.ensure_bridge("weft", 1410, MAC).await?;
        let link = |wanted: &'static str, is_gone| move |notice: &Notice| matches!(notice, Notice::Link { name, gone, .. } if name == wanted && *gone == is_gone);
        told(&mut monitor, "a bridge came", link("weft", false)).await;
        let peer = VethPeer { name: "far", mac: MAC, namespace: None };
        let port = netlink.add_veth("near", 1410, &peer).await?;
        netlink.set_master(&port, Some(&bridge)).await?;
        let entry = |gone| {
            move |notice: &Notice| match notice {
                Notice::Fdb(change) => {
                    change.gone == gone && change.port == port.index && change.bridge == Some(bridge.index)
                }
                _ => false,
            }
        };
        let Notice::Fdb(change) = told(&mut monitor, "the bridge knows the port", entry(false)).await else {
            unreachable!("as asked for")
        };
        assert!(change.permanent && !change.entered && Some(change.mac) == port.mac, "{change:?}");
        netlink.add_address(&bridge, net("10.32.0.1/12")).await?;
        told(&mut monitor, "an address came", |notice| *notice == Notice::Address { link: bridge.index }).await;
        told(&mut monitor, "a route came with it", |notice| *notice == Notice::Route).await;
        // A port that leaves is an interface still.
        netlink.set_master(&port, None).await?;
        told(&mut monitor, "the bridge forgets the port", entry(true)).await;
        told(&mut monitor, "the port changed", link("near", false)).await;
        netlink.delete_link("near").await?;
        told(&mut monitor, "the port is gone", link("near", true)).await;
        Ok(())
    });
}

fn lost_notices() {
    in_new_host(async |netlink| {
        let mut monitor = netlink.monitor(&[Topic::Addresses])?;
        let bridge = netlink.ensure_bridge("weft", 1410, MAC).await?;
        // Polled once, so that a reader waits; then nobody reads.
        let first = std::future::poll_fn(|context| Poll::Ready(pin!(monitor.next()).poll(context).is_ready())).await;
        assert!(!first, "nothing has changed yet");
        for round in 0..20_000_u32 {
            let [_, a, b, c] = (0x20_0001 + round % 2).to_be_bytes();
            let address = net(&format!("10.{a}.{b}.{c}/12"));
            netlink.add_address(&bridge, address).await?;
            netlink.del_address(&bridge, address).await?;
        }
        told(&mut monitor, "some were lost", |notice| *notice == Notice::Overrun).await;
        // And it goes on.
        netlink.add_address(&bridge, net("10.32.0.9/12")).await?;
        told(&mut monitor, "an address came", |notice| *notice == Notice::Address { link: bridge.index }).await;
        Ok(())
    });
}

fn net(text: &str) -> ipnet::IpNet {
    text.parse().must(text)
}
