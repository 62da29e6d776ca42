//! Names as programs ask for them: by the resolvers of glibc and musl, and services by SRV.

use std::{collections::BTreeSet, path::PathBuf, process::Command, time::Duration};

use weft::lab::{Container, wait_until};

use crate::{
    Case,
    mesh::{Mesh, Must as _, PATIENCE},
    names::{PROMISED, mesh},
};

pub(crate) const CASES: &[Case] = &[
    ("programs_of_glibc_and_of_musl_find_every_name", 90, programs),
    ("services_are_found_by_srv_on_every_host_and_go_with_their_hosts", 120, services),
];

/// A C library, and the compiler that makes programs with it.
const LIBRARIES: [(&str, &[&str]); 2] = [("glibc", &["cc"]), ("musl", &["musl-gcc", "-static"])];
/// What a program of any library is told of name servers.
const RESOLV_CONF: &str = "nameserver 127.0.0.1\nsearch weft.local\noptions ndots:1 timeout:2 attempts:2\n";
/// Puts a file in the place of the host's, for one program only.
const IN_ITS_PLACE: &str = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";

/// A program that resolves, on a host of a mesh.
struct Program<'a> {
    mesh: &'a Mesh,
    library: &'static str,
    path: PathBuf,
}

impl<'a> Program<'a> {
    fn build(mesh: &'a Mesh, (library, compiler): (&'static str, &[&str])) -> Self {
        let dir = mesh.lab.dir();
        std::fs::write(dir.join("resolver.c"), include_str!("resolver.c")).must("write");
        std::fs::write(dir.join("programs.conf"), RESOLV_CONF).must("write");
        let path = dir.join(library);
        let mut command = Command::new(compiler[0]);
        command.args(&compiler[1..]).arg("-o").arg(&path).arg(dir.join("resolver.c"));
        let output = command.output().must(&format!("run {}, which scripts/setup installs", compiler[0]));
        assert!(output.status.success(), "{library}: {}", String::from_utf8_lossy(&output.stderr));
        Self { mesh, library, path }
    }

    /// What it finds on a host; nothing if it says that there is nothing.
    #[track_caller]
    fn finds(&self, host: usize, args: &[&str]) -> BTreeSet<String> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", IN_ITS_PLACE]);
        command.arg(self.mesh.lab.dir().join("programs.conf")).arg(&self.path).args(args);
        let namespace = self.mesh.lab.host(host).namespace();
        let output = namespace.run(|| command.output()).must("enter the host").must("run the program");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // That there is no such name is an answer too; a file that could not be mounted is none.
        let answered = output.status.success() || !said.contains("mount");
        assert!(answered, "{} {args:?}: {said}", self.library);
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    }
}

fn programs() {
    let mesh = mesh(2);
    let container = Container::new("web").must("make");
    let web = mesh.attach_as(0, &container, "web");
    assert_eq!(web.len(), 2, "an address of each family: {web:?}");
    let many: Vec<String> = (1..=40).map(|last| format!("192.0.2.{last}")).collect();
    let add = ["dns", "add", "many"].map(str::to_owned).into_iter().chain(many.iter().cloned());
    mesh.routers[1].command(add).must("add");
    mesh.routers[1].command(["dns", "add", "db.prod", "192.0.2.7"]).must("add");
    let (many, db) = (many.into_iter().collect::<BTreeSet<_>>(), BTreeSet::from(["192.0.2.7".to_owned()]));
    mesh.all_are_told(&[0, 1], "web.weft.local", &web, PROMISED);
    mesh.all_are_told(&[0, 1], "many.weft.local", &many, PROMISED);
    mesh.all_are_told(&[0, 1], "db.prod.weft.local", &db, PROMISED);
    for library in LIBRARIES {
        let program = Program::build(&mesh, library);
        for host in 0..2 {
            // In full, and by the search list; with addresses of both families and of only one.
            for (name, expected) in [("web.weft.local", &web), ("WEB", &web), ("db.prod.weft.local", &db)] {
                assert_eq!(program.finds(host, &[name]), *expected, "{} on host {host}: {name}", library.0);
            }
            for name in ["none.weft.local", "none", "prod.weft.local"] {
                assert!(program.finds(host, &[name]).is_empty(), "{} on host {host}: {name}", library.0);
            }
            for address in &web {
                let name = program.finds(host, &["-x", address]);
                assert_eq!(name, BTreeSet::from(["web.weft.local".to_owned()]), "{} {address}", library.0);
            }
            // More than 512 bytes: glibc asks again over TCP, musl uses what it got.
            let found = program.finds(host, &["many.weft.local"]);
            assert!(found.is_subset(&many) && found.len() >= 25, "{} found {}", library.0, found.len());
            assert!(library.0 != "glibc" || found == many, "glibc found {} of 40", found.len());
        }
    }
}

fn services() {
    let mut mesh = mesh(3);
    let add = |mesh: &Mesh, router: usize, args: &[&str]| {
        mesh.routers[router].command([&["dns", "add"][..], args].concat()).must("add");
    };
    add(&mesh, 1, &["db", "192.0.2.7", "--service", "pg=5432", "--service", "53/udp"]);
    add(&mesh, 2, &["db", "192.0.2.8", "2001:db8::8", "--service", "pg=5433"]);
    let asked = "_pg._tcp.db.weft.local";
    let of = |hosts: &[usize]| -> BTreeSet<String> {
        let all = [
            (1, "0 1 5432 ip-192-0-2-7.db.weft.local."),
            (2, "0 1 5433 ip-192-0-2-8.db.weft.local."),
            (2, "0 1 5433 ip-2001-db8-0-0-0-0-0-8.db.weft.local."),
        ];
        all.into_iter().filter(|(host, _)| hosts.contains(host)).map(|(_, record)| record.to_owned()).collect()
    };
    let told = |mesh: &Mesh, host: usize, name: &str| -> BTreeSet<String> {
        mesh.dig(host, &[name, "SRV", "+short"]).lines().map(str::to_owned).collect()
    };
    for host in 0..3 {
        assert!(wait_until(PROMISED, || told(&mesh, host, asked) == of(&[1, 2])), "{:?}", told(&mesh, host, asked));
        let dug = mesh.dig(host, &[asked, "SRV"]);
        let besides: BTreeSet<String> = dug.section("ADDITIONAL").into_iter().collect();
        let expected = BTreeSet::from(["192.0.2.7", "192.0.2.8", "2001:db8::8"].map(str::to_owned));
        assert_eq!(besides, expected, "{}", dug.text());
        // Whoever has no room for them asks, and is told of the one address only.
        for (target, address) in [("ip-192-0-2-8", "192.0.2.8"), ("ip-2001-db8-0-0-0-0-0-8", "2001:db8::8")] {
            let found = mesh.addresses_of(host, &format!("{target}.db.weft.local"));
            assert_eq!(found, BTreeSet::from([address.to_owned()]), "{target}");
        }
        for (name, code) in [
            ("_53._udp.db.weft.local", "NOERROR"),
            ("_pg._udp.db.weft.local", "NXDOMAIN"),
            ("_http._tcp.db.weft.local", "NXDOMAIN"),
            ("_pg._tcp.none.weft.local", "NXDOMAIN"),
        ] {
            assert_eq!(mesh.dig(host, &[name, "SRV"]).code(), code, "{name} on host {host}");
        }
    }
    let list = mesh.routers[0].command(["dns", "list"]).must("list");
    assert!(list.contains("pg=5432/tcp") && list.contains("53/udp"), "{list}");
    // As many as fit, and all of them over TCP.
    let many: Vec<String> = (1..=40).map(|last| format!("192.0.2.{last}")).collect();
    let args = ["many"].into_iter().chain(many.iter().map(String::as_str)).chain(["--service", "http=80"]);
    add(&mesh, 1, &args.collect::<Vec<_>>());
    let all = || told(&mesh, 2, "_http._tcp.many.weft.local").len() == 40;
    assert!(wait_until(PROMISED, all), "dig asks again over TCP by itself");
    let dug = mesh.dig(2, &["_http._tcp.many.weft.local", "SRV", "+noedns", "+ignore"]);
    assert!(dug.has_flag("tc") && (5..40).contains(&dug.section("ANSWER").len()), "{}", dug.text());
    // A port that is taken away goes with its address; those of a host that is away are not told.
    mesh.routers[1].command(["dns", "remove", "many"]).must("remove");
    let gone = || mesh.dig(2, &["_http._tcp.many.weft.local", "SRV"]).code() == "NXDOMAIN";
    assert!(wait_until(PROMISED, gone));
    mesh.routers[2].kill().must("kill");
    mesh.wait_for_peer(0, 2, PATIENCE, |peer| peer["state"] != "established");
    let left = || told(&mesh, 0, asked) == of(&[1]);
    assert!(wait_until(Duration::from_secs(1), left), "{:?}", told(&mesh, 0, asked));
    assert_eq!(mesh.dig(0, &["ip-192-0-2-8.db.weft.local", "A"]).code(), "NXDOMAIN");
    mesh.routers[2].restart().must("start again");
    mesh.wait_established(PATIENCE);
    let back = || told(&mesh, 0, asked) == of(&[1, 2]);
    assert!(wait_until(PATIENCE, back), "{:?}", told(&mesh, 0, asked));
}
