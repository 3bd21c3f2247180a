//! Tests of the whole table: against a model, under floods and threads, and its size.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::thread;

use proptest::prelude::*;

use super::*;
use crate::flow::TemplateId;
use crate::flow::Templates;
use crate::flow::shard::CANDIDATES_MAX;
use crate::types::EndpointRef;
use crate::types::EndpointSlot;
use crate::types::FlowKind;
use crate::types::Generation;
use crate::types::OuterPath;
use crate::wire::Addresses;
use crate::wire::Family;
use crate::wire::FiveTuple;

const SEED: HashSeed = HashSeed::fixed(2);
const TTL: Ttl = Ttl { tcp_secs: 350, other_secs: 120 };

fn endpoint(slot: u16, generation: u32) -> EndpointRef {
    EndpointRef { slot: EndpointSlot(slot), generation: Generation(generation) }
}

/// The `number`th of many TCP flows.
fn tuple(family: Family, number: u32) -> FiveTuple {
    let addresses = match family {
        Family::V4 => {
            Addresses::V4 { src: (0x0a00_0000 + (number >> 12)).to_be_bytes(), dst: [192, 0, 2, 1] }
        }
        Family::V6 => Addresses::V6 {
            src: (0x2001_0db8_u128 << 96 | u128::from(number >> 12)).to_be_bytes(),
            dst: [0xfd; 16],
        },
    };
    FiveTuple {
        addresses,
        protocol: 6,
        src_port: 1024 + u16::try_from(number & 0xfff).unwrap(),
        dst_port: 443,
    }
}

/// The kind of a flow, by the numbers of IANA.
fn kind(tuple: &FiveTuple) -> FlowKind {
    let kinds = if tuple.family() == Family::V4 { FlowKind::V4 } else { FlowKind::V6 };
    match tuple.protocol {
        6 => kinds[0],
        17 => kinds[1],
        _ => kinds[2],
    }
}

fn key(family: Family, number: u32) -> (FlowKey, Way) {
    key_of(endpoint(1, 1), family, number)
}

fn key_of(endpoint: EndpointRef, family: Family, number: u32) -> (FlowKey, Way) {
    FlowKey::new(endpoint, &tuple(family, number))
}

fn header(cookie: u32) -> StoredHeader {
    StoredHeader {
        template: TemplateId::new(0),
        cookie: cookie.to_be_bytes(),
        outer: OuterPath {
            local: Ipv4Addr::new(10, 1, 0, 1),
            remote: Ipv4Addr::new(10, 1, 0, 2),
            remote_port: 60_000,
        },
    }
}

fn table(flows_max: usize, shards: usize) -> FlowTable {
    FlowTable::new(TablePlan { shards, ..TablePlan::new(flows_max, 1) }, SEED)
}

/// Enters flow `number` as the load balancer does with one packet each way.
fn learn_both_ways(table: &FlowTable, family: Family, number: u32, now: Moment) {
    let (key, way) = key(family, number);
    let tally = &mut Tally::default();
    let new = table.learn(&key, way, &header(number), now, tally);
    assert!(matches!(new, Learned::New { evicted: None }), "{new:?}");
    let back = table.learn(&key, way.opposite(), &header(number), now, tally);
    assert_eq!(back, Learned::Answered);
    let again = table.learn(&key, way, &header(number), now, tally);
    assert_eq!(again, Learned::Known, "an answer is news once");
}

/// Sum of what the shards hold, which `len` must equal when nobody is at work.
fn flows_in_shards(table: &FlowTable) -> usize {
    let flows = table.shards.iter().map(|shard| shard.0.lock().unwrap().len());
    flows.sum()
}

/// Forgets everything that is due: until one look at every flow finds none.
fn expire_all(table: &FlowTable, now: Moment, mut removed: impl FnMut(Removed)) {
    for shard in 0..table.shards() {
        let mut found = true;
        while found {
            found = false;
            table.expire(shard, usize::MAX, &TTL, now, &mut Tally::default(), |flow| {
                found = true;
                removed(flow);
            });
        }
    }
}

/// What a table should do, written without regard to memory or time.
#[derive(Default)]
struct Model {
    flows: HashMap<(EndpointRef, FiveTuple), ModelFlow>,
    /// The latest life that has had a flow: those before it have ended.
    generation: u32,
}

struct ModelFlow {
    /// Headers under the direction as it stands in the packet.
    headers: HashMap<FiveTuple, StoredHeader>,
    seen_secs: u32,
}

impl Model {
    /// The flow's name: whichever direction was learned first.
    fn name(&self, endpoint: EndpointRef, tuple: &FiveTuple) -> (EndpointRef, FiveTuple) {
        let back = (endpoint, tuple.reversed());
        if self.flows.contains_key(&back) { back } else { (endpoint, *tuple) }
    }

    fn learn(
        &mut self,
        endpoint: EndpointRef,
        tuple: &FiveTuple,
        header: StoredHeader,
        secs: u32,
    ) -> bool {
        let name = self.name(endpoint, tuple);
        let is_new = !self.flows.contains_key(&name);
        self.generation = endpoint.generation.0;
        let flow = self
            .flows
            .entry(name)
            .or_insert_with(|| ModelFlow { headers: HashMap::new(), seen_secs: 0 });
        let before = flow.headers.insert(*tuple, header);
        if before.is_some_and(|before| before.cookie != header.cookie) {
            flow.headers.retain(|_, kept| kept.cookie == header.cookie);
        }
        flow.seen_secs = secs;
        is_new
    }

    fn find(
        &mut self,
        endpoint: EndpointRef,
        tuple: &FiveTuple,
        secs: u32,
    ) -> Option<StoredHeader> {
        let name = self.name(endpoint, tuple);
        let flow = self.flows.get_mut(&name)?;
        flow.seen_secs = secs;
        let own = flow.headers.get(tuple);
        own.or_else(|| flow.headers.get(&tuple.reversed())).copied()
    }

    fn expire(&mut self, now_secs: u32) -> Vec<Removed> {
        let mut removed = Vec::new();
        self.flows.retain(|(endpoint, tuple), flow| {
            let ttl_secs = if tuple.protocol == 6 { 350 } else { 120 };
            let has_ended = endpoint.generation.0 < self.generation;
            let stays = now_secs <= flow.seen_secs + ttl_secs && !has_ended;
            if !stays {
                removed.push(Removed { endpoint: *endpoint, kind: kind(tuple) });
            }
            stays
        });
        removed
    }
}

#[derive(Clone, Debug)]
enum Op {
    Learn(FiveTuple, u32),
    Find(FiveTuple),
    Expire,
    Wait(u32),
    NextGeneration,
}

/// One of few packets: both families, TCP and UDP, both directions, equal ends.
fn few_tuples() -> impl Strategy<Value = FiveTuple> {
    let end = || (0_u8..2, 0_u16..2);
    (any::<bool>(), any::<bool>(), end(), end()).prop_map(|(is_v4, is_tcp, from, to)| FiveTuple {
        addresses: if is_v4 {
            Addresses::V4 { src: [from.0; 4], dst: [to.0; 4] }
        } else {
            Addresses::V6 { src: [from.0; 16], dst: [to.0; 16] }
        },
        protocol: if is_tcp { 6 } else { 17 },
        src_port: from.1,
        dst_port: to.1,
    })
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        8 => (few_tuples(), 0_u32..3).prop_map(|(tuple, cookie)| Op::Learn(tuple, cookie)),
        8 => few_tuples().prop_map(Op::Find),
        2 => Just(Op::Expire),
        2 => (0_u32..150).prop_map(Op::Wait),
        1 => Just(Op::NextGeneration),
    ];
    prop::collection::vec(op, 1..300)
}

proptest! {
    #[test]
    fn the_table_does_what_a_naive_model_does(ops in ops(), seed: u64) {
        let plan = TablePlan { shards: 4, ..TablePlan::new(1000, 1) };
        let table = FlowTable::new(plan, HashSeed::fixed(seed));
        let mut model = Model::default();
        let mut tally = Tally::default();
        let (mut secs, mut generation) = (1000, 0);
        for op in ops {
            let here = endpoint(3, generation);
            let now = Moment::from_secs(u64::from(secs));
            match op {
                Op::Learn(tuple, cookie) => {
                    let (key, way) = FlowKey::new(here, &tuple);
                    let learned = table.learn(&key, way, &header(cookie), now, &mut tally);
                    let expected = if model.learn(here, &tuple, header(cookie), secs) {
                        Learned::New { evicted: None }
                    } else {
                        Learned::Known
                    };
                    let is_known = matches!(learned, Learned::Known | Learned::Answered);
                    prop_assert!(learned == expected || is_known && expected == Learned::Known);
                }
                Op::Find(tuple) => {
                    let (key, way) = FlowKey::new(here, &tuple);
                    let found = table.find(&key, way, now, &mut tally);
                    prop_assert_eq!(found, model.find(here, &tuple, secs));
                }
                Op::Expire => {
                    let mut removed = Vec::new();
                    expire_all(&table, now, |flow| removed.push(flow));
                    let mut expected = model.expire(secs);
                    let order = |flow: &Removed| (flow.endpoint.generation, flow.kind.index());
                    removed.sort_by_key(order);
                    expected.sort_by_key(order);
                    prop_assert_eq!(removed, expected);
                }
                Op::Wait(more) => secs += more,
                Op::NextGeneration => generation += 1,
            }
            prop_assert_eq!(table.len(), model.flows.len());
        }
        prop_assert_eq!(flows_in_shards(&table), model.flows.len());
        prop_assert_eq!(tally, Tally::default());
    }
}

#[test]
fn a_header_makes_the_full_round() {
    let templates = Templates::default();
    let geneve = *b"0123456789abcdefghijklmnopqrstuvwxyzCOOK";
    let cookie = *b"COOK";
    let stored =
        StoredHeader { template: templates.intern(&geneve, 36).unwrap(), cookie, ..header(0) };
    let table = table(100, 1);
    let now = Moment::from_secs(1);
    let (key, way) = key(Family::V6, 7);
    table.learn(&key, way, &stored, now, &mut Tally::default());
    let found = table.find(&key, way.opposite(), now, &mut Tally::default());
    let found = found.unwrap();
    assert_eq!(found.outer, stored.outer);
    let mut out = [0; 64];
    assert_eq!(templates.write_before(found.template, found.cookie, &mut out[..40]), Some(40));
    assert_eq!(out[..40], geneve);
}

#[test]
fn a_torn_down_endpoint_takes_its_flows_along() {
    let table = table(100, 1);
    let now = Moment::from_secs(1);
    let tally = &mut Tally::default();
    let tuple = tuple(Family::V4, 1);
    let (old, way) = FlowKey::new(endpoint(5, 1), &tuple);
    let (new, _) = FlowKey::new(endpoint(5, 2), &tuple);
    table.learn(&old, way, &header(1), now, tally);
    assert_eq!(table.find(&new, way, now, tally), None);
    let mut removed = Vec::new();
    expire_all(&table, Moment::from_secs(500), |flow| removed.push(flow));
    let expected = Removed { endpoint: endpoint(5, 1), kind: kind(&tuple) };
    assert_eq!(removed, [expected], "counted for the life that it belonged to");
}

#[test]
fn a_flow_goes_when_idle_and_not_a_second_early() {
    for (protocol, ttl_secs) in [(6, 350), (17, 120), (1, 120), (50, 120)] {
        let mut tuple = tuple(Family::V4, 1);
        tuple.protocol = protocol;
        let (key, way) = FlowKey::new(endpoint(1, 1), &tuple);
        let table = table(100, 1);
        let tally = &mut Tally::default();
        table.learn(&key, way, &header(1), Moment::from_secs(10), tally);
        table.find(&key, way.opposite(), Moment::from_secs(20), tally);
        expire_all(&table, Moment::from_secs(20 + ttl_secs), |_| {});
        assert_eq!(table.len(), 1, "the host's packet counts, protocol {protocol}");
        expire_all(&table, Moment::from_secs(21 + ttl_secs), |_| {});
        assert!(table.is_empty(), "protocol {protocol}");
    }
}

#[test]
fn expiry_looks_at_as_many_flows_as_it_is_told() {
    let table = table(1000, 1);
    for number in 0..100 {
        learn_both_ways(&table, Family::V4, number, Moment::from_secs(1));
    }
    let later = Moment::from_secs(1000);
    let mut removed = 0;
    for round in 1..=20 {
        table.expire(0, 5, &TTL, later, &mut Tally::default(), |_| removed += 1);
        assert_eq!(removed, 5 * round);
    }
    assert!(table.is_empty());
    table.expire(0, 5, &TTL, later, &mut Tally::default(), |_| removed += 1);
    assert_eq!(removed, 100);
}

#[test]
fn answered_flows_survive_a_flood() {
    let table = FlowTable::new(TablePlan::new(12_000, 2), SEED);
    let now = Moment::from_secs(1);
    for number in 0..5000 {
        learn_both_ways(&table, Family::V4, number, now);
        learn_both_ways(&table, Family::V6, number, now);
    }
    let mut tally = Tally::default();
    let (mut evicted, mut refused) = (0, 0);
    let soon = Moment::from_secs(100);
    for number in 1_000_000..1_100_000 {
        let family = [Family::V4, Family::V6][usize::try_from(number % 2).unwrap()];
        let (key, way) = key(family, number);
        match table.learn(&key, way, &header(0), soon, &mut tally) {
            Learned::New { evicted: None } => {}
            Learned::New { evicted: Some(_) } => evicted += 1,
            Learned::Full => refused += 1,
            Learned::Known | Learned::Answered | Learned::Pinned => panic!("{number} is new"),
        }
    }
    assert_eq!(table.len(), 12_000, "the flood fills the table and no more");
    assert_eq!(flows_in_shards(&table), 12_000);
    assert_eq!(evicted + refused, 98_000);
    assert_eq!(tally.evicted, evicted);
    assert!(evicted > refused, "{evicted} got in, {refused} did not");
    for number in 0..5000 {
        for family in [Family::V4, Family::V6] {
            let (key, way) = key(family, number);
            for way in [way, way.opposite()] {
                let found = table.find(&key, way, soon, &mut tally);
                assert_eq!(found, Some(header(number)), "{family:?} {number}");
            }
        }
    }
}

#[test]
fn answered_flows_go_only_when_idle() {
    let table = table(100, 1);
    for number in 0..100 {
        learn_both_ways(&table, Family::V4, number, Moment::from_secs(u64::from(number)));
    }
    let mut tally = Tally::default();
    let (newcomer, way) = key(Family::V6, 0);
    // The first 16 were seen at 0 … 15 s; the oldest has been idle for 120 s at 121 s.
    let mut learn = |secs| {
        let now = Moment::from_secs(secs);
        table.learn(&newcomer, way, &header(0), now, &mut tally)
    };
    assert_eq!(learn(99), Learned::Full);
    for _ in 0..5 {
        // The hand has gone on to the flows seen at 16 s and later.
        assert_eq!(learn(120), Learned::Full);
    }
    let Learned::New { evicted: Some(gone) } = learn(300) else {
        panic!("all are idle at 300 s");
    };
    assert_eq!(gone.kind, FlowKind::V4Tcp);
    assert_eq!(tally.evicted, 1);
    assert_eq!(table.len(), 100);
}

/// Looks at flows since the last call.
fn take_looks(table: &FlowTable) -> usize {
    let looks =
        |shard: &OwnLines<Mutex<Shard>>| std::mem::take(&mut shard.0.lock().unwrap().looked_at);
    table.shards.iter().map(looks).sum()
}

/// Flows of an endpoint, in one direction each if they are odd, which all must be there later.
#[derive(Clone, Copy)]
struct Tenant {
    endpoint: EndpointRef,
    flows: u32,
}

impl Tenant {
    fn enter(self, table: &FlowTable, now: Moment) {
        let tally = &mut Tally::default();
        for number in 0..self.flows {
            let (key, way) = key_of(self.endpoint, Family::V4, number);
            let new = table.learn(&key, way, &header(number), now, tally);
            assert!(matches!(new, Learned::New { .. }), "{new:?}");
            if number % 2 == 0 {
                table.learn(&key, way.opposite(), &header(number), now, tally);
            }
        }
    }

    /// How many of its flows are gone: of those that go both ways, and of those that go one.
    fn lost(self, table: &FlowTable, now: Moment) -> [u32; 2] {
        let mut lost = [0; 2];
        for number in 0..self.flows {
            let (key, way) = key_of(self.endpoint, Family::V4, number);
            let found = table.find(&key, way, now, &mut Tally::default());
            assert!(found.is_none_or(|found| found == header(number)));
            lost[usize::from(number % 2 == 1)] += u32::from(found.is_none());
        }
        lost
    }
}

/// Spoofs so many flows that nobody answers, no two of them the same. Returns how many got in, and
/// the most looks at flows that a thousand of them took.
fn flood(table: &FlowTable, endpoint: EndpointRef, flows: u32, now: Moment) -> (u32, usize) {
    let (mut entered, mut looks_max) = (0, 0);
    take_looks(table);
    for number in 0..flows {
        let (key, way) = key_of(endpoint, Family::V4, 1 << 24 | number);
        let learned = table.learn(&key, way, &header(0), now, &mut Tally::default());
        entered += u32::from(matches!(learned, Learned::New { .. }));
        if number % 1000 == 999 {
            looks_max = looks_max.max(take_looks(table));
        }
    }
    (entered, looks_max)
}

/// The most looks that a thousand new flows may take: each at its candidates, and one shard of 64
/// in sixteen clears its index, which is all of a shard's flows.
const LOOKS_MAX: usize = 1000 * CANDIDATES_MAX + 4 * 16_384;

/// A flood through one endpoint against 10,000 flows of a tenant, half of them answered.
fn flood_against(tenant: Tenant, floods: EndpointRef, spoofed: u32, flows_max: usize) -> [u32; 2] {
    let table = FlowTable::new(TablePlan::new(flows_max, 2), SEED);
    let now = Moment::from_secs(1000);
    tenant.enter(&table, now);
    let soon = Moment::from_secs(1060);
    let (entered, looks_max) = flood(&table, floods, spoofed, soon);
    let lost = tenant.lost(&table, soon);
    eprintln!("{entered} got in, {lost:?} lost, at most {looks_max} looks for a thousand");
    assert_eq!((table.len(), flows_in_shards(&table)), (flows_max, flows_max));
    assert!(u64::from(entered) > u64::from(spoofed) * 95 / 100, "{entered} of {spoofed}");
    assert!(looks_max <= LOOKS_MAX, "{looks_max} looks");
    lost
}

#[test]
fn r13_spoofed_flows_take_no_other_tenants_flow() {
    let tenant = Tenant { endpoint: endpoint(2, 1), flows: 10_000 };
    let lost = flood_against(tenant, endpoint(1, 1), 100_000, 24_000);
    assert_eq!(lost, [0, 0], "two-way and one-way");
}

#[test]
fn r13_spoofed_flows_of_the_same_endpoint_take_no_answered_one() {
    let tenant = Tenant { endpoint: endpoint(1, 1), flows: 10_000 };
    let [two_way, one_way] = flood_against(tenant, endpoint(1, 1), 100_000, 24_000);
    assert_eq!(two_way, 0);
    assert!(one_way > 4_500, "{one_way}: nothing tells them from the flood");
}

#[test]
#[ignore = "takes minutes: .ci/run full"]
fn r13_four_million_spoofed_flows_take_nothing_either() {
    for floods in [1, 2] {
        let tenant = Tenant { endpoint: endpoint(2, 1), flows: 20_000 };
        let lost = flood_against(tenant, endpoint(floods, 1), 4_000_000, 65_536);
        assert_eq!(lost[0], 0, "10,000 answered flows, and endpoint {floods} floods");
        assert!(lost[1] == 0 || floods == 2, "{lost:?}: 10,000 one-way flows of another tenant");
    }
}

#[test]
fn who_needs_its_share_gets_it_back_and_no_more() {
    let table = FlowTable::new(TablePlan::new(40_000, 1), SEED);
    let now = Moment::from_secs(1000);
    // One endpoint may have all of the table while nobody else wants any.
    let lent = Tenant { endpoint: endpoint(1, 1), flows: 40_000 };
    lent.enter(&table, now);
    assert_eq!(lent.lost(&table, now), [0, 0]);
    let wants = Tenant { endpoint: endpoint(2, 1), flows: 15_000 };
    wants.enter(&table, now);
    assert_eq!(wants.lost(&table, now), [0, 0], "its share is half of the table");
    // Who floods gets no more than its share back, and beyond that displaces itself.
    flood(&table, lent.endpoint, 50_000, now);
    assert_eq!(wants.lost(&table, now), [0, 0]);
    flood(&table, wants.endpoint, 50_000, now);
    assert_eq!(lent.lost(&table, now)[0], 0, "20,000 answered flows are within its share");
    let flows = [lent, wants].map(|tenant| table.shares.flows_of(tenant.endpoint).unwrap());
    assert!(flows[0] >= 20_000 && flows[1] > 18_000, "{flows:?}");
    assert_eq!(flows[0] + flows[1], 40_000);
}

#[test]
fn a_share_is_had_even_where_all_flows_are_answered_and_those_go_last() {
    let table = FlowTable::new(TablePlan::new(10_000, 1), SEED);
    let now = Moment::from_secs(1000);
    for number in 0..10_000 {
        learn_both_ways(&table, Family::V4, number, now);
    }
    let late = endpoint(2, 1);
    let tally = &mut Tally::default();
    for number in 0..10_000 {
        let (key, way) = key_of(late, Family::V4, number);
        for way in [way, way.opposite()] {
            table.learn(&key, way, &header(number), now, tally);
        }
    }
    let of_late = table.shares.flows_of(late).unwrap();
    assert!((4_900..=5_000).contains(&of_late), "{of_late} of 5,000");
    // A spoofed flow goes before any that is answered, its own endpoint's too.
    let third = endpoint(3, 1);
    flood(&table, third, 20_000, now);
    let of_third = table.shares.flows_of(third).unwrap();
    assert!((100..1500).contains(&of_third), "{of_third}: it displaces mostly itself");
    assert_eq!(table.len(), 10_000);
}

#[test]
fn flows_of_an_ended_endpoint_go_first_and_count_for_nobody() {
    let table = FlowTable::new(TablePlan::new(20_000, 1), SEED);
    let now = Moment::from_secs(1000);
    let ended = Tenant { endpoint: endpoint(1, 1), flows: 10_000 };
    let other = Tenant { endpoint: endpoint(2, 1), flows: 10_000 };
    ended.enter(&table, now);
    other.enter(&table, now);
    table.end(ended.endpoint);
    let next = Tenant { endpoint: endpoint(1, 2), flows: 7_000 };
    next.enter(&table, now);
    assert_eq!(next.lost(&table, now), [0, 0], "the old life's flows are not its own");
    assert_eq!(other.lost(&table, now), [0, 0], "and nobody else's make room");
    assert_eq!(table.shares.flows_of(ended.endpoint), None);
    // What is left of an ended life goes when it is looked at, however young.
    table.end(next.endpoint);
    expire_all(&table, now, |flow| assert_eq!(flow.endpoint.slot, EndpointSlot(1)));
    assert_eq!(table.len(), 10_000);
    assert_eq!(other.lost(&table, now), [0, 0]);
}

#[test]
fn many_endpoints_within_their_shares_lose_nothing_to_two_that_flood() {
    let table = FlowTable::new(TablePlan::new(40_000, 1), SEED);
    let now = Moment::from_secs(1000);
    let tenants = (10..60).map(|slot| Tenant { endpoint: endpoint(slot, 1), flows: 600 });
    flood(&table, endpoint(1, 1), 40_000, now);
    tenants.clone().for_each(|tenant| tenant.enter(&table, now));
    flood(&table, endpoint(2, 1), 40_000, now);
    flood(&table, endpoint(1, 1), 40_000, now);
    for tenant in tenants {
        assert_eq!(tenant.lost(&table, now), [0, 0], "{:?}", tenant.endpoint);
    }
    let [one, two] = [1, 2].map(|slot| table.shares.flows_of(endpoint(slot, 1)).unwrap());
    assert_eq!(one + two, 10_000, "what is left is theirs");
    assert!(one.abs_diff(two) < 1_000, "{one} and {two}: about as much each");
}

#[test]
fn another_source_is_counted_or_refused() {
    let moved = |number: u8| {
        let mut header = header(7);
        header.outer.remote = Ipv4Addr::new(10, 1, 0, number);
        header
    };
    let (key, way) = key(Family::V4, 1);
    let now = Moment::from_secs(1);
    for (sources, then, retaught) in
        [(Sources::Any, Learned::Known, 1), (Sources::Pinned, Learned::Pinned, 0)]
    {
        let table = FlowTable::new(TablePlan { sources, ..TablePlan::new(100, 1) }, SEED);
        let mut tally = Tally::default();
        table.learn(&key, way, &moved(2), now, &mut tally);
        assert_eq!(table.learn(&key, way, &moved(3), now, &mut tally), then);
        let wins = if sources == Sources::Any { 3 } else { 2 };
        assert_eq!(table.find(&key, way, now, &mut tally), Some(moved(wins)));
        assert_eq!(tally.retaught, retaught, "{sources:?}");
    }
}

/// R14: who knows the seed can choose flows that collide; the seed of the next run undoes it.
#[test]
fn r14_flows_that_collide_under_one_seed_do_not_under_another() {
    // One group of buckets of one shard: 12 bits of the hash.
    let group = |hasher: &KeyHasher, number| {
        let hash = hasher.hash(&key(Family::V4, number).0);
        (hash >> SHARD_BITS_AT & 63, hash & 0x3f)
    };
    let [known, other] = [2, 3].map(|seed| KeyHasher::new(HashSeed::fixed(seed)));
    let collide: Vec<u32> =
        (0..1 << 20).filter(|&number| group(&known, number) == (5, 7)).take(40).collect();
    assert_eq!(collide.len(), 40, "chosen by who knows the seed");
    let mut groups: Vec<_> = collide.iter().map(|&number| group(&other, number)).collect();
    groups.sort_unstable();
    groups.dedup();
    assert!(groups.len() >= 37, "{groups:?}");
    let shards: std::collections::HashSet<_> = groups.iter().map(|group| group.0).collect();
    assert!(shards.len() > 20, "{} shards", shards.len());
}

#[test]
fn the_bound_is_exact_and_may_be_small() {
    for flows_max in [0, 1, 63, 64, 65, 128, 1000, 5000] {
        let table = FlowTable::new(TablePlan::new(flows_max, 4), SEED);
        for number in 0..u32::try_from(2 * flows_max + 10).unwrap() {
            let (key, way) = key(Family::V4, number);
            let learned = table.learn(&key, way, &header(0), Moment::ZERO, &mut Tally::default());
            assert!(flows_max > 0 || learned == Learned::Full);
        }
        assert_eq!(table.len(), flows_max);
        assert_eq!(table.flows_max(), flows_max);
        assert_eq!(flows_in_shards(&table), flows_max);
    }
}

#[test]
fn shards_follow_workers_and_size() {
    for (flows_max, workers, shards) in [
        (1_000_000, 1, 64),
        (1_000_000, 4, 64),
        (1_000_000, 5, 128),
        (1_000_000, 192, 4096),
        (1_048_576, 1, 64),
        (1_048_577, 1, 128),
        (16_000_000, 2, 1024),
        (4096, 1, 64),
        (4095, 1, 32),
        (64, 1, 1),
        (0, 1, 1),
    ] {
        let plan = TablePlan::new(flows_max, workers);
        assert_eq!(plan.shards, shards, "{flows_max} flows, {workers} workers");
    }
}

#[test]
fn flows_spread_over_shards_and_those_over_buckets() {
    let hasher = KeyHasher::new(SEED);
    // One shard's flows must differ in the bits that choose buckets: 256 groups of them here.
    let mut counts = vec![[0_u32; 256]; 64];
    for number in 0..1_000_000 {
        let hash = hasher.hash(&key(Family::V4, number).0);
        let shard = usize::try_from(hash >> SHARD_BITS_AT & 63).unwrap();
        counts[shard][usize::try_from(hash & 255).unwrap()] += 1;
    }
    for groups in counts {
        let flows: u32 = groups.iter().sum();
        assert!(flows.abs_diff(15_625) < 6 * 125, "{flows} in a shard");
        for flows in groups {
            assert!(flows.abs_diff(61) < 7 * 8, "{flows} in a group of buckets");
        }
    }
}

/// The reference adds protocol, addresses and ports: whoever knows that can put every flow into one
/// bucket. These tuples all have one sum there.
#[test]
fn b12_flows_chosen_to_collide_in_the_reference_spread_here() {
    let hasher = KeyHasher::new(SEED);
    let mut counts = [0_u32; 64];
    for number in 0..64_000_u16 {
        let [high, low] = number.to_be_bytes();
        let addresses = Addresses::V4 { src: [10, 1, high, low], dst: [10, 2, !high, !low] };
        let tuple = FiveTuple { addresses, protocol: 17, src_port: 7, dst_port: 9 };
        let (key, _) = FlowKey::new(endpoint(1, 1), &tuple);
        counts[usize::try_from(hasher.hash(&key) >> SHARD_BITS_AT & 63).unwrap()] += 1;
    }
    for flows in counts {
        assert!(flows.abs_diff(1000) < 6 * 32, "{flows} in a shard: {counts:?}");
    }
}

#[test]
fn workers_share_the_table() {
    const FLOWS: u32 = 5000;
    let table = FlowTable::new(TablePlan::new(20_000, 2), SEED);
    let now = Moment::from_secs(1);
    let work = |own_way: bool| {
        let mut tally = Tally::default();
        let mut entered = 0;
        for number in 0..FLOWS {
            let (key, way) = key(Family::V4, number);
            let way = if own_way { way } else { way.opposite() };
            let learned = table.learn(&key, way, &header(number), now, &mut tally);
            entered += usize::from(learned == Learned::New { evicted: None });
            let found = table.find(&key, way, now, &mut tally);
            assert_eq!(found, Some(header(number)));
            let shard = usize::try_from(number).unwrap() % table.shards();
            table.expire(shard, 4, &TTL, now, &mut tally, |_| panic!("none is idle"));
        }
        entered
    };
    let entered = thread::scope(|scope| {
        let threads = [true, false].map(|own_way| scope.spawn(move || work(own_way)));
        threads.map(|thread| thread.join().unwrap())
    });
    assert_eq!(entered[0] + entered[1], 5000, "each flow was new to one of them");
    assert_eq!(table.len(), 5000);
    assert_eq!(flows_in_shards(&table), 5000);
    let mut gone = 0;
    expire_all(&table, Moment::from_secs(1000), |_| gone += 1);
    assert_eq!((gone, table.len()), (5000, 0));
}

#[test]
fn waiting_for_a_lock_is_counted() {
    let table = table(100, 1);
    let (key, way) = key(Family::V4, 1);
    let is_counted = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_counted.load(Ordering::Relaxed) {
                let guard = table.shards[0].0.lock();
                thread::yield_now();
                drop(guard);
            }
        });
        let mut tally = Tally::default();
        while tally.contended == 0 {
            table.find(&key, way, Moment::ZERO, &mut tally);
        }
        is_counted.store(true, Ordering::Relaxed);
    });
}

/// Names the test to itself when it runs again as a process of its own.
const MEMORY_TEST: &str = "flow::table::tests::a_million_flows_fit";
const MEMORY_CHILD: &str = "GWLBTUN_TEST_MEMORY_OF";

/// Resident memory of this process that no file backs, in bytes: its own pages of code come and
/// go with what runs.
fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() * 1024
}

/// Measured: 71.3 MB for 1,000,000 IPv4 flows and 95.3 MB for as many IPv6 flows.
///
/// Other tests allocate in the same process, so each family is measured in a process of its own.
#[test]
fn a_million_flows_fit() {
    for (family, name, megabytes_max) in [(Family::V4, "v4", 92), (Family::V6, "v6", 116)] {
        match env::var(MEMORY_CHILD) {
            Ok(wanted) if wanted == name => {
                let grown = grown_by_a_million_flows(family);
                assert!(grown <= megabytes_max * 1_000_000, "{grown} bytes for {name}");
            }
            Ok(_) => {}
            Err(_) => {
                let status = Command::new(env::current_exe().unwrap())
                    .args(["--exact", MEMORY_TEST, "--nocapture"])
                    .env(MEMORY_CHILD, name)
                    .status();
                assert!(status.unwrap().success(), "{name}");
            }
        }
    }
}

fn grown_by_a_million_flows(family: Family) -> u64 {
    let before = resident_bytes();
    let table = FlowTable::new(TablePlan::new(1_000_000, 2), SEED);
    let reserved = resident_bytes() - before;
    assert!(reserved < 4_000_000, "{reserved} bytes before the first flow");
    for number in 0..1_000_000 {
        learn_both_ways(&table, family, number, Moment::from_secs(1));
    }
    assert_eq!(table.len(), 1_000_000, "no shard overflowed");
    let grown = resident_bytes() - before;
    eprintln!("{family:?}: {reserved} bytes reserved, {grown} bytes with 1,000,000 flows");
    grown
}
