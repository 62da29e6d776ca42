use core::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::panel::Seat;
use crate::ring::{Holder, Order, Reg};
use crate::store::StoredVote;

fn id() -> impl Strategy<Value = Id> {
    prop_oneof![(1u8..4).prop_map(|peer| Id([peer; 16])), any::<[u8; 16]>().prop_map(Id)]
}

fn owner() -> impl Strategy<Value = Owner> {
    (id(), prop_oneof![Just(1), any::<u64>()]).prop_map(|(peer, life)| Owner { peer, life })
}

fn net() -> impl Strategy<Value = Net> {
    let v4 = (any::<[u8; 4]>(), 0u8..=32).prop_map(|(bits, len)| (IpAddr::from(bits), len));
    let v6 = (any::<[u8; 16]>(), 0u8..=128).prop_map(|(bits, len)| (IpAddr::from(bits), len));
    prop_oneof![v4, v6].prop_map(|(address, len)| Net(IpNet::new(address, len).unwrap()))
}

/// Mostly numbers that mean something.
fn few16() -> impl Strategy<Value = u16> {
    prop_oneof![0u16..3, any::<u16>()]
}

fn few32() -> impl Strategy<Value = u32> {
    prop_oneof![0u32..70, any::<u32>()]
}

fn run() -> impl Strategy<Value = WireRun> {
    let holder = prop_oneof![Just(Holder::Nobody), Just(Holder::Disputed), owner().prop_map(Holder::One)];
    (few16(), few32(), few32(), any::<u64>(), any::<u64>(), holder).prop_map(|(range, lo, hi, term, epoch, holder)| {
        WireRun { range, lo, hi, reg: Reg { order: Order { term, epoch }, holder } }
    })
}

fn ballot() -> impl Strategy<Value = Ballot> {
    (any::<u64>(), id(), any::<u64>()).prop_map(|(round, proposer, life)| Ballot { round, proposer, life })
}

fn network() -> impl Strategy<Value = Network> {
    let list = |of| proptest::collection::vec(of, 0..4);
    (
        any::<[u8; 16]>(),
        list(net().boxed()),
        proptest::collection::vec(id(), 0..4),
        proptest::collection::vec(owner(), 0..4),
    )
        .prop_map(|(name, ranges, voters, shares)| Network { id: NetworkId(name), ranges, voters, shares })
}

fn accepted() -> impl Strategy<Value = Accepted> {
    (ballot(), network()).prop_map(|(ballot, network)| Accepted { ballot, network })
}

fn wanted() -> impl Strategy<Value = Wanted> {
    (few16(), few32(), few32(), proptest::option::of(net())).prop_map(|(range, lo, hi, address)| Wanted {
        range,
        lo,
        hi,
        address,
    })
}

fn request() -> impl Strategy<Value = Request> {
    (any::<[u64; 2]>(), wanted(), any::<u32>(), any::<u32>()).prop_map(|([life, seq], wanted, need, has)| Request {
        life,
        seq,
        wanted,
        need,
        has,
    })
}

fn panel() -> impl Strategy<Value = Panel> {
    let list = || proptest::collection::vec(id(), 0..4);
    (prop_oneof![0u64..4, any::<u64>()], list(), list()).prop_map(|(version, voters, before)| Panel {
        version,
        voters,
        before,
    })
}

fn next_panel() -> impl Strategy<Value = NextPanel> {
    (ballot(), panel()).prop_map(|(ballot, panel)| NextPanel { ballot, panel })
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..4, Just(1 << 44), Just((1 << 44) + (1 << 16)), any::<u64>()]
}

fn term() -> impl Strategy<Value = Term> {
    (number(), number()).prop_map(|(term, nonce)| Term { term, nonce })
}

fn about_voters() -> impl Strategy<Value = Body> {
    let runs = || proptest::collection::vec(run(), 0..5);
    let blocks = proptest::collection::vec((few16(), few32(), few32()), 0..4)
        .prop_map(|list| list.into_iter().map(|(range, lo, hi)| BlockRuns { range, lo, hi }).collect());
    let votes = proptest::collection::vec((run(), term()), 0..4).prop_map(|list| {
        let stored = |(run, promised): (WireRun, Term)| StoredVote {
            lo: run.lo,
            hi: run.hi,
            vote: crate::voter::Vote { promised, reg: run.reg },
        };
        list.into_iter().map(stored).collect()
    });
    let seat = (number(), proptest::option::of(ballot()), proptest::option::of(next_panel()))
        .prop_map(|(version, promised, accepted)| Seat { version, promised, accepted });
    let place = proptest::option::of((few16(), few32()));
    let found = proptest::option::of(proptest::collection::vec(owner(), 0..4));
    prop_oneof![
        panel().prop_map(Body::Panel),
        (number(), term(), blocks).prop_map(|(version, term, blocks)| Body::BlockPrepare(Prepare {
            version,
            term,
            blocks
        })),
        (number(), runs(), ages()).prop_map(|(nonce, runs, kept)| Body::BlockPromise { nonce, runs, kept }),
        (number(), term(), runs()).prop_map(|(version, term, runs)| Body::BlockAccept { version, term, runs }),
        number().prop_map(|nonce| Body::BlockAccepted { nonce }),
        (number(), number(), panel()).prop_map(|(nonce, term, panel)| Body::Behind { nonce, term, panel }),
        (number(), number(), runs()).prop_map(|(id, version, runs)| Body::Witness { id, version, runs }),
        (number(), number()).prop_map(|(id, version)| Body::Witnessed { id, version }),
        (panel(), number(), few16(), few32()).prop_map(|(panel, life, range, from)| Body::SeatFetch {
            panel,
            life,
            range,
            from
        }),
        (number(), number(), seat, few16(), few32(), votes, place, found, proptest::option::of(any::<bool>()), ages())
            .prop_map(|(version, life, seat, range, from, runs, next, found, sure, kept)| {
                Body::SeatState(SeatState { version, life, seat, range, from, runs, next, found, sure, kept })
            }),
        (number(), ballot()).prop_map(|(version, ballot)| Body::PanelPrepare { version, ballot }),
        (number(), ballot(), proptest::option::of(next_panel()))
            .prop_map(|(version, ballot, accepted)| Body::PanelPromise { version, ballot, accepted }),
        (number(), next_panel()).prop_map(|(version, next)| Body::PanelAccept { version, next }),
        (number(), ballot()).prop_map(|(version, ballot)| Body::PanelAccepted { version, ballot }),
        (proptest::collection::vec((owner(), any::<bool>()), 0..4), any::<bool>()).prop_map(|(lives, want)| {
            let lives = lives.into_iter().map(|(owner, cleared)| Removed { owner, cleared }).collect();
            Body::Gone { lives, want }
        }),
        (number(), number(), number(), proptest::option::of(number()))
            .prop_map(|(version, nonce, life, dead_after)| Body::Lease { version, nonce, life, dead_after }),
        (number(), number(), proptest::option::of(number())).prop_map(|(version, nonce, dead_after)| Body::Leased {
            version,
            nonce,
            dead_after
        }),
        (number(), number()).prop_map(|(version, nonce)| Body::Unleased { version, nonce }),
        (number(), number(), proptest::collection::vec(owner(), 0..4), any::<bool>())
            .prop_map(|(version, nonce, lives, binding)| Body::Silent { version, nonce, lives, binding }),
        (number(), number(), proptest::collection::vec(owner(), 0..4))
            .prop_map(|(version, nonce, lives)| Body::SilentToo { version, nonce, lives }),
        claims().prop_map(Body::Strays),
        claims().prop_map(Body::Theirs),
        Just(Body::PanelAsk),
        (proptest::collection::vec(kept(), 0..4), any::<bool>()).prop_map(|(lists, want)| Body::Kept { lists, want }),
        (number(), age()).prop_map(|(panel, age)| Body::Keeping { panel, age }),
    ]
}

fn age() -> impl Strategy<Value = KeptAge> {
    (owner(), number()).prop_map(|(owner, version)| KeptAge { owner, version })
}

fn ages() -> impl Strategy<Value = Option<Vec<KeptAge>>> {
    proptest::option::of(proptest::collection::vec(age(), 0..4))
}

fn kept() -> impl Strategy<Value = KeptList> {
    let run = (net(), number()).prop_map(|(first, more)| KeptRun { first, more });
    (owner(), number(), proptest::collection::vec(run, 0..4)).prop_map(|(owner, version, runs)| KeptList {
        owner,
        version,
        runs,
    })
}

fn claims() -> impl Strategy<Value = Vec<Claim>> {
    proptest::collection::vec((net(), ".*").prop_map(|(address, owner)| Claim { address, owner }), 0..4)
}

pub(crate) fn body() -> impl Strategy<Value = Body> {
    let runs = || proptest::collection::vec(run(), 0..5);
    let parts = proptest::collection::vec((any::<u16>(), any::<u8>()), 0..5)
        .prop_map(|list| list.into_iter().map(|(range, bucket)| Part { range, bucket }).collect());
    let digest = proptest::collection::vec(any::<u64>(), 0..70).prop_map(|buckets| vec![RangeDigest { buckets }]);
    let why = prop_oneof![
        Just(Refusal::Nothing),
        Just(Refusal::BlockInUse),
        Just(Refusal::NotMine),
        ".*".prop_map(Refusal::InUse),
    ];
    prop_oneof![
        about_voters(),
        (any::<u32>(), proptest::collection::vec(net(), 0..4), number(), proptest::option::of(any::<bool>()))
            .prop_map(|(named, ranges, life, observer)| Body::Seeking { named, ranges, life, observer }),
        (number(), any::<bool>(), number(), number(), proptest::option::of(number()), proptest::option::of(number()))
            .prop_map(|(root, untouched, ranges, removed, dead_after, kept)| Body::Here {
                root,
                untouched,
                ranges,
                removed,
                dead_after,
                kept
            }),
        Just(Body::Fetch),
        (network(), panel()).prop_map(|(network, panel)| Body::Founded(network, panel)),
        digest.prop_map(Body::Digest),
        (runs(), parts).prop_map(|(runs, want)| Body::Delta { runs, want }),
        ballot().prop_map(Body::Prepare),
        (ballot(), proptest::option::of(accepted()), any::<u32>(), number())
            .prop_map(|(ballot, accepted, named, life)| Body::Promise { ballot, accepted, named, life }),
        ballot().prop_map(Body::Promised),
        accepted().prop_map(Body::Accept),
        ballot().prop_map(Body::AcceptedBallot),
        request().prop_map(Body::Request),
        (any::<u64>(), any::<u64>(), why).prop_map(|(seq, life, why)| Body::Refused { seq, life, why }),
        (any::<u64>(), runs()).prop_map(|(id, runs)| Body::Grant(Grant { id, runs })),
        any::<u64>().prop_map(|id| Body::Confirm { id }),
    ]
}

proptest! {
    #[test]
    fn messages_read_back(body in body(), network in proptest::option::of(any::<[u8; 16]>())) {
        let message = Message { network: network.map(NetworkId), body };
        prop_assert_eq!(Message::decode(&message.encode()), Ok(message));
    }

    #[test]
    fn arbitrary_bytes_are_read_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let _ = Message::decode(&bytes);
        if let Some(first) = bytes.first_mut() {
            *first = VERSION;
        }
        let _ = Message::decode(&bytes);
    }
}

#[test]
fn version_2_stays_as_it_is() {
    let hex = |body: Body| {
        let message = Message { network: Some(NetworkId([0xaa; 16])), body };
        let bytes = message.encode();
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        text.replace(&"aa".repeat(16), "<network>").replace(&"11".repeat(16), "<peer>")
    };
    let peer = Id([0x11; 16]);
    let owner = Owner { peer, life: 3 };
    let reg = Reg { order: Order { term: 1, epoch: 2 }, holder: Holder::One(owner) };
    let run = WireRun { range: 0, lo: 5, hi: 9, reg };
    let wanted = Wanted { range: 0, lo: 0, hi: 16, address: None };
    let request = Request { life: 3, seq: 8, wanted, need: 1, has: 0 };
    assert_eq!(hex(Body::Fetch), "028250<network>820280");
    let here = Body::Here { root: 1, untouched: true, ranges: 2, removed: 3, dead_after: Some(4), kept: None };
    assert_eq!(hex(here), "028250<network>82018501f5020304");
    assert_eq!(
        hex(Body::Grant(Grant { id: 1, runs: vec![run] })),
        "028250<network>820d8182018184000509828201028201818250<peer>03"
    );
    assert_eq!(hex(Body::Request(request)), "028250<network>820b81850308830000100100");
    assert_eq!(hex(Body::Confirm { id: 1 }), "028250<network>820e8101");
}

#[test]
fn the_longest_messages_fit() {
    let owner = Owner { peer: Id([255; 16]), life: u64::MAX };
    let order = Order { term: u64::MAX, epoch: u64::MAX };
    let run = WireRun { range: u16::MAX, lo: u32::MAX, hi: u32::MAX, reg: Reg { order, holder: Holder::One(owner) } };
    let part = Part { range: u16::MAX, bucket: u8::MAX };
    let want = vec![part; crate::range::MAX_RANGES * 64];
    let message =
        Message { network: Some(NetworkId([255; 16])), body: Body::Delta { runs: vec![run; MAX_RUNS], want } };
    assert!(message.encode().len() <= MAX_MESSAGE, "{}", message.encode().len());
}
