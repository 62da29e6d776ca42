//! The name server over its real sockets, with resolvers behind it that do what resolvers do.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use mesh_proto::control::names::Names;
use mesh_proto::id::{Incarnation, PeerId};
use mesh_proto::wire::names::Addresses;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

use super::forward::{Forward, framed};
use super::resolvers::Resolvers;
use super::serve::{Responder, Sockets, serve_tcp, serve_udp};
use super::zone::Zone;
use crate::router::MeshNames;

/// A resolver on the loopback interface, and how often it was asked.
struct Resolver {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Resolver {
    /// One that answers as it is told, over UDP and TCP; with nothing it stays silent.
    async fn start(answer: impl Fn(&Message, bool) -> Option<Message> + Send + Sync + 'static) -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = tcp.local_addr().expect("bound");
        let udp = UdpSocket::bind(address).await.expect("bound");
        let (asked, answer) = (Arc::new(AtomicUsize::new(0)), Arc::new(answer));
        let mut tasks = JoinSet::new();
        let (count, make) = (Arc::clone(&asked), Arc::clone(&answer));
        tasks.spawn(async move {
            let mut buffer = [0; 4096];
            loop {
                let (length, from) = udp.recv_from(&mut buffer).await.expect("received");
                count.fetch_add(1, Ordering::SeqCst);
                let query = Message::from_vec(&buffer[..length]).expect("a query");
                if let Some(answer) = make(&query, false) {
                    udp.send_to(&answer.to_vec().expect("encoded"), from).await.expect("sent");
                }
            }
        });
        let count = Arc::clone(&asked);
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.expect("accepted");
                let length = stream.read_u16().await.expect("a length");
                let mut query = vec![0; length.into()];
                stream.read_exact(&mut query).await.expect("a query");
                count.fetch_add(1, Ordering::SeqCst);
                let query = Message::from_vec(&query).expect("a query");
                if let Some(answer) = answer(&query, true) {
                    stream.write_all(&framed(&answer.to_vec().expect("encoded"))).await.expect("sent");
                }
            }
        });
        Self { address, asked, _tasks: tasks }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn answered(query: &Message, code: ResponseCode, addresses: u8) -> Message {
    let mut message = query.clone().into_response();
    message.metadata.response_code = code;
    let name = query.queries[0].name().clone();
    let record = |last| Record::from_rdata(name.clone(), 60, RData::A(A(Ipv4Addr::new(192, 0, 2, last))));
    message.add_answers((0..addresses).map(record));
    message
}

/// A name server that knows `many.weft.local` by 50 addresses, and where it is.
fn server(resolvers: &[&Resolver]) -> (SocketAddr, JoinSet<()>) {
    let addresses = Addresses::new((0..50).map(|last| IpAddr::from([10, 32, 0, last])));
    let mut names = Names::new(PeerId([1; 16]), Incarnation(1), [0; 32], Duration::ZERO);
    names.set_own(&BTreeMap::from([("many".parse().expect("a name"), addresses.into())]));
    let fixed = Resolvers::fixed(resolvers.iter().map(|resolver| resolver.address).collect());
    let responder = Arc::new(Responder {
        zone: Zone::new("weft.local", Vec::new(), MeshNames::new(names)).expect("a domain"),
        forward: Forward::new(fixed),
    });
    let sockets = Sockets::bind("127.0.0.1:0".parse().expect("loopback")).expect("bound");
    let (address, mut tasks) = (sockets.address(), JoinSet::new());
    tasks.spawn(serve_udp(sockets.udp, Arc::clone(&responder)));
    tasks.spawn(serve_tcp(sockets.tcp, responder));
    (address, tasks)
}

fn query(name: &str, id: u16) -> Message {
    let mut message = Message::query();
    message.metadata.id = id;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), RecordType::A));
    message
}

async fn ask(server: SocketAddr, query: &Message) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
    socket.connect(server).await.expect("connected");
    socket.send(&query.to_vec().expect("encoded")).await.expect("sent");
    let mut buffer = [0; 65_535];
    let length = tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut buffer)).await.expect("in time");
    Message::from_vec(&buffer[..length.expect("received")]).expect("an answer")
}

async fn read_answer(stream: &mut TcpStream) -> Message {
    let read = async {
        let length = stream.read_u16().await.expect("an answer");
        let mut answer = vec![0; length.into()];
        stream.read_exact(&mut answer).await.expect("all of it");
        Message::from_vec(&answer).expect("an answer")
    };
    tokio::time::timeout(Duration::from_secs(10), read).await.expect("in time")
}

#[tokio::test]
async fn what_is_not_the_meshs_is_asked_of_the_resolver_as_it_came() {
    let resolver = Resolver::start(|query, _| {
        assert_eq!(query.metadata.message_type, MessageType::Query);
        let payload = query.edns.as_ref().map(Edns::max_payload);
        assert_eq!(payload, Some(4000), "the extension came through");
        // A resolver that answers in letters of its own.
        let mut answer = answered(query, ResponseCode::NoError, 3);
        answer.queries[0].name = query.queries[0].name().to_lowercase();
        Some(answer)
    })
    .await;
    let (server, _tasks) = server(&[&resolver]);
    let mut asked = query("ExAmple.com.", 77);
    let mut edns = Edns::new();
    edns.set_max_payload(4000).set_version(0);
    asked.set_edns(edns);
    let answer = ask(server, &asked).await;
    assert_eq!((answer.metadata.id, answer.answers.len()), (77, 3));
    assert!(answer.queries[0].name().eq_case(asked.queries[0].name()), "in the letters of the question");
    assert_eq!(resolver.asked(), 1);
}

#[tokio::test]
async fn a_resolver_that_is_silent_or_fails_is_not_waited_for_and_comes_last_then() {
    let silent = Resolver::start(|_, _| None).await;
    let failing = Resolver::start(|query, _| Some(answered(query, ResponseCode::ServFail, 0))).await;
    let good = Resolver::start(|query, _| Some(answered(query, ResponseCode::NoError, 1))).await;
    let (server, _tasks) = server(&[&silent, &failing, &good]);
    let start = Instant::now();
    let answer = ask(server, &query("example.com.", 1)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!((silent.asked(), failing.asked(), good.asked()), (1, 1, 1));
    for id in 2..5 {
        let answer = ask(server, &query(&format!("n{id}.example.com."), id)).await;
        assert_eq!((answer.metadata.id, answer.answers.len()), (id, 1));
    }
    assert_eq!((silent.asked(), good.asked()), (1, 4), "who was silent is not asked before the others");
}

#[tokio::test]
async fn what_a_resolver_has_said_is_not_asked_again_until_it_is_too_old_and_failures_are() {
    let resolver = Resolver::start(|query, _| {
        let name = query.queries[0].name().to_lowercase().to_string();
        let soa = |minimum| {
            let [server, admin] =
                ["ns.example.com.", "root.example.com."].map(|name| Name::from_ascii(name).expect("a name"));
            let data = SOA::new(server, admin, 1, 7200, 600, 86_400, minimum);
            Record::from_rdata(Name::from_ascii("example.com.").expect("a name"), 300, RData::SOA(data))
        };
        let mut answer = match name.split_once('.').expect("two labels").0 {
            "failing" => answered(query, ResponseCode::ServFail, 0),
            "there" => answered(query, ResponseCode::NoError, 2),
            "none" | "soon" => answered(query, ResponseCode::NXDomain, 0),
            _ => answered(query, ResponseCode::NoError, 0),
        };
        match name.starts_with("soon") {
            true => answer.add_authority(soa(1)),
            false => answer.add_authority(soa(60)),
        };
        Some(answer)
    })
    .await;
    let (server, _tasks) = server(&[&resolver]);
    for (name, code, records, asked) in [
        ("there.example.com.", ResponseCode::NoError, 2, 1),
        ("none.example.com.", ResponseCode::NXDomain, 0, 1),
        ("bare.example.com.", ResponseCode::NoError, 0, 1),
        // Each of them twice: that a server cannot tell now is no answer.
        ("failing.example.com.", ResponseCode::ServFail, 0, 6),
    ] {
        let before = resolver.asked();
        for id in 1..4 {
            let mut asked = query(name, id);
            asked.queries[0].name =
                Name::from_ascii(if id == 2 { name.to_uppercase() } else { name.to_owned() }).expect("a name");
            let answer = ask(server, &asked).await;
            assert_eq!((answer.metadata.id, answer.metadata.response_code), (id, code), "{name}");
            assert_eq!(answer.answers.len(), records, "{name}");
            assert!(answer.queries[0].name().eq_case(asked.queries[0].name()), "in the letters of the question");
        }
        assert_eq!(resolver.asked() - before, asked, "{name}");
        // Over TCP it is the same answer.
        let mut stream = TcpStream::connect(server).await.expect("connected");
        stream.write_all(&framed(&query(name, 9).to_vec().expect("encoded"))).await.expect("sent");
        assert_eq!(read_answer(&mut stream).await.metadata.response_code, code);
        assert_eq!(resolver.asked() - before > asked, code == ResponseCode::ServFail, "{name}");
    }
    let before = resolver.asked();
    let soon = || async { ask(server, &query("soon.example.com.", 1)).await.metadata.response_code };
    assert_eq!(
        (soon().await, soon().await, resolver.asked() - before),
        (ResponseCode::NXDomain, ResponseCode::NXDomain, 1)
    );
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!((soon().await, resolver.asked() - before), (ResponseCode::NXDomain, 2));
}

#[tokio::test]
async fn when_none_knows_the_client_is_told_before_it_gives_up() {
    let refusing = Resolver::start(|query, _| Some(answered(query, ResponseCode::Refused, 0))).await;
    let (with_one, _tasks) = server(&[&refusing]);
    assert_eq!(ask(with_one, &query("example.com.", 1)).await.metadata.response_code, ResponseCode::Refused);
    let (without, _tasks) = server(&[]);
    assert_eq!(ask(without, &query("example.com.", 1)).await.metadata.response_code, ResponseCode::ServFail);
    let silent = Resolver::start(|_, _| None).await;
    let (server, _tasks) = server(&[&silent]);
    let start = Instant::now();
    assert_eq!(ask(server, &query("example.com.", 1)).await.metadata.response_code, ResponseCode::ServFail);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(silent.asked(), 2);
    let mut alone = query("example.com.", 1);
    alone.metadata.recursion_desired = false;
    assert_eq!(ask(server, &alone).await.metadata.response_code, ResponseCode::Refused);
}

#[tokio::test]
async fn fifty_records_are_cut_over_udp_and_whole_over_tcp_however_many_ask_at_once() {
    let resolver = Resolver::start(|query, tcp| {
        let mut answer = answered(query, ResponseCode::NoError, if tcp { 200 } else { 2 });
        answer.metadata.truncation = !tcp;
        Some(answer)
    })
    .await;
    let (server, _tasks) = server(&[&resolver]);
    let answer = ask(server, &query("many.weft.local.", 1)).await;
    assert!(answer.metadata.truncation && (25..50).contains(&answer.answers.len()), "{}", answer.answers.len());
    let answer = ask(server, &query("example.com.", 1)).await;
    assert!(answer.metadata.truncation, "the resolver's word is passed on");
    let mut stream = TcpStream::connect(server).await.expect("connected");
    // All are asked at once, the mesh's and others, and the client closes its end.
    for id in 0..20 {
        let name = if id % 2 == 0 { "many.weft.local." } else { "example.com." };
        stream.write_all(&framed(&query(name, id).to_vec().expect("encoded"))).await.expect("sent");
    }
    stream.shutdown().await.expect("closed");
    let mut ids = Vec::new();
    for _ in 0..20 {
        let answer = read_answer(&mut stream).await;
        let expected = if answer.metadata.id % 2 == 0 { 50 } else { 200 };
        assert_eq!(answer.answers.len(), expected);
        assert!(!answer.metadata.truncation);
        ids.push(answer.metadata.id);
    }
    ids.sort_unstable();
    assert_eq!(ids, (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn nonsense_stops_nothing() {
    let (server, _tasks) = server(&[]);
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
    for length in [0, 1, 11, 12, 13, 40, 600] {
        for fill in [0, 1, 0x3f, 0x7f, 0xc0, 0xff] {
            socket.send_to(&vec![fill; length], server).await.expect("sent");
        }
    }
    let mut stream = TcpStream::connect(server).await.expect("connected");
    stream.write_all(&[0, 3, 1, 2, 3]).await.expect("sent");
    let mut end = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut end)).await;
    closed.expect("it is closed at once").expect("read");
    assert!(end.is_empty());
    assert_eq!(ask(server, &query("many.weft.local.", 9)).await.metadata.id, 9);
}
