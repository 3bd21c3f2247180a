//! What the parts of the packet path cost by themselves, in the order of `src/`.
//!
//! The flow figures are taken at a million flows in a scattered order, so that nearly every lookup
//! misses the caches as it does on a loaded host; an order in which neighbours follow each other
//! would measure the prefetcher. Every bench asserts that it took the path that it is named after.
//!
//! Wall-clock figures of one machine: compare two revisions on the same one, never with a number
//! written down elsewhere.

mod fixture;
#[path = "load/packet.rs"]
#[expect(dead_code, reason = "the load bench uses all of it")]
mod packet;

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Duration;
use std::time::Instant;

use criterion::BenchmarkId;
use criterion::Criterion;
use criterion::Throughput;
use criterion::criterion_group;
use criterion::criterion_main;

use gwlbtun::flow::FlowKey;
use gwlbtun::flow::FlowTable;
use gwlbtun::flow::HashSeed;
use gwlbtun::flow::Learned;
use gwlbtun::flow::StoredHeader;
use gwlbtun::flow::TablePlan;
use gwlbtun::flow::Tally;
use gwlbtun::flow::TemplateId;
use gwlbtun::flow::Ttl;
use gwlbtun::flow::Way;
use gwlbtun::types::EndpointId;
use gwlbtun::types::EndpointRef;
use gwlbtun::types::EndpointSlot;
use gwlbtun::types::Generation;
use gwlbtun::types::Moment;
use gwlbtun::types::OuterPath;
use gwlbtun::wire::Addresses;
use gwlbtun::wire::Family;
use gwlbtun::wire::FiveTuple;
use gwlbtun::wire::checksum;
use gwlbtun::wire::checksum::Implementation;
use gwlbtun::wire::gwlb;
use gwlbtun::wire::inner;
use gwlbtun::wire::protocol;

use crate::fixture::Batch;
use crate::fixture::Fixture;

/// Flows of the table: the size that the memory goal is stated for.
const FLOWS: u32 = 1_000_000;

/// Step from one flow to the next that is used. Prime to [`FLOWS`], so that all have their turn.
const STRIDE: u32 = 611_953;

/// Data over which a checksum is taken: an IPv4 header, a small packet, an ordinary one, a jumbo
/// frame, a super-packet.
const CHECKSUM_BYTES: [usize; 5] = [20, 64, 1400, 8500, 65_000];

/// Flows that one call of [`FlowTable::expire`] looks at.
const EXPIRE_BATCH: usize = 64;

const TTL: Ttl = Ttl { tcp_secs: 350, other_secs: 120 };

fn parse(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wire/parse");
    group.throughput(Throughput::Elements(1));
    for (name, family, packet) in
        [("ipv4 udp", Family::V4, ipv4_udp_packet()), ("ipv6 udp", Family::V6, ipv6_udp_packet())]
    {
        let header = gwlb::Repr {
            endpoint: EndpointId(0x2b8e_e1d4_db0c_51c4),
            attachment: 0,
            cookie: [0xc0, 0, 0, 1],
            family,
        };
        let datagram = [&header.emit()[..], &packet[..]].concat();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let datagram = black_box(&datagram[..]);
                let meta = gwlb::parse(datagram, &gwlb::Profile::AWS).expect("a usual header");
                inner::parse(&datagram[meta.header_bytes..], meta.family).expect("a usual packet")
            });
        });
    }
    group.finish();
}

fn checksums(criterion: &mut Criterion) {
    // The wide one by its name, so that figures of a machine without it are not taken for it.
    let detected = Implementation::in_use().to_string();
    let mut group = criterion.benchmark_group("wire/checksum");
    for bytes in CHECKSUM_BYTES {
        let data: Vec<u8> = (0..=u8::MAX).cycle().take(bytes).collect();
        group.throughput(Throughput::Bytes(u64::try_from(bytes).expect("a small constant")));
        let scalar = BenchmarkId::new("scalar only", bytes);
        group.bench_with_input(scalar, &data, |bencher, data| {
            bencher.iter(|| checksum::scalar::sum(black_box(data)).finish());
        });
        let best = BenchmarkId::new(format!("up to {detected}"), bytes);
        group.bench_with_input(best, &data, |bencher, data| {
            bencher.iter(|| checksum::sum(black_box(data)).finish());
        });
    }
    group.finish();
}

fn flows(criterion: &mut Criterion) {
    let keys = keys();
    let mut group = criterion.benchmark_group("flow at 1M");
    group.throughput(Throughput::Elements(1));
    group.sample_size(10);
    group.bench_function("learn new", |bencher| {
        bencher.iter_custom(|flows| share(time_learning(&keys), flows));
    });
    group.bench_function("expire", |bencher| {
        bencher.iter_custom(|flows| share(time_expiry(&keys), flows));
    });

    let table = full_table(&keys);
    let mut next = scattered(&keys);
    let mut tally = Tally::default();
    group.bench_function("learn known", |bencher| {
        bencher.iter(|| {
            let (key, way) = next();
            let learned = table.learn(key, way, &stored_header(), at(1), &mut tally);
            assert_eq!(learned, Learned::Known);
        });
    });
    group.bench_function("find", |bencher| {
        bencher.iter(|| {
            let (key, way) = next();
            let header = table.find(key, way, at(1), &mut tally);
            assert!(header.is_some(), "the table holds every flow");
            header
        });
    });
    group.bench_function("find, 64 flows in turn", |bencher| {
        let mut few = keys.iter().take(64).cycle();
        bencher.iter(|| {
            let (key, way) = few.next().expect("a cycle");
            let header = table.find(key, *way, at(1), &mut tally);
            assert!(header.is_some(), "the table holds every flow");
            header
        });
    });
    assert_eq!(tally, Tally::default(), "one thread, and room for all");
    group.finish();
}

/// The packets of one download merged and cut again, checksums included. The figure is per batch,
/// the rate per packet.
fn super_packets(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wire/super-packet");
    let mut datagrams = Batch::Bulk.datagrams();
    let fixture = Fixture::new(Batch::Bulk);
    group.throughput(Throughput::Elements(Batch::Bulk.packets()));
    group.bench_function("merge", |bencher| bencher.iter(|| fixture::merge(&mut datagrams)));
    group.bench_function("cut", |bencher| bencher.iter(|| fixture.cut_first_frame()));
    group.finish();
}

/// A batch through the whole path, without I/O. The figure is per batch, the rate per packet.
fn paths(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("path");
    for batch in Batch::ALL {
        let mut fixture = Fixture::new(batch);
        group.throughput(Throughput::Elements(batch.packets()));
        group.bench_function(BenchmarkId::new("decap", batch.name()), |bencher| {
            bencher.iter(|| assert!(black_box(&mut fixture).decap() > 0));
        });
        group.bench_function(BenchmarkId::new("encap", batch.name()), |bencher| {
            bencher.iter(|| assert!(black_box(&mut fixture).encap() > 0));
        });
    }
    group.finish();
}

/// What `flows` iterations cost if all [`FLOWS`] cost `whole`: a figure at a million flows needs
/// a million flows, however few iterations criterion asks for.
fn share(whole: Duration, flows: u64) -> Duration {
    whole.div_f64(f64::from(FLOWS)) * u32::try_from(flows).expect("criterion asks for few")
}

/// Time to enter all flows into an empty table, its memory touched for the first time.
fn time_learning(keys: &[(FlowKey, Way)]) -> Duration {
    let table = empty_table();
    let mut next = scattered(keys);
    let mut tally = Tally::default();
    let start = now();
    for _ in 0..FLOWS {
        let (key, way) = next();
        let learned = table.learn(key, way, &stored_header(), at(0), &mut tally);
        assert_eq!(learned, Learned::New { evicted: None });
    }
    start.elapsed()
}

/// Time to forget all flows of a full table, in the batches of a worker's turn.
fn time_expiry(keys: &[(FlowKey, Way)]) -> Duration {
    let table = full_table(keys);
    let mut tally = Tally::default();
    let mut gone = 0;
    let start = now();
    while !table.is_empty() {
        for shard in 0..table.shards() {
            let later = at(1000);
            table.expire(shard, EXPIRE_BATCH, &TTL, later, &mut tally, |_| gone += 1);
        }
    }
    let spent = start.elapsed();
    assert_eq!(gone, FLOWS, "every flow once");
    spent
}

fn full_table(keys: &[(FlowKey, Way)]) -> FlowTable {
    let table = empty_table();
    let mut tally = Tally::default();
    for (key, way) in keys {
        table.learn(key, *way, &stored_header(), at(0), &mut tally);
    }
    assert_eq!(table.len(), keys.len());
    table
}

fn empty_table() -> FlowTable {
    let flows_max = usize::try_from(FLOWS).expect("a small constant");
    FlowTable::new(TablePlan::new(flows_max, 1), HashSeed::fixed(1))
}

/// The flows in an order in which neighbours are far apart, for ever.
fn scattered<'a>(keys: &'a [(FlowKey, Way)]) -> impl FnMut() -> (&'a FlowKey, Way) {
    let mut at = 0;
    move || {
        at = (at + STRIDE) % FLOWS;
        let (key, way) = &keys[usize::try_from(at).expect("an index")];
        (key, *way)
    }
}

fn keys() -> Vec<(FlowKey, Way)> {
    let endpoint = EndpointRef { slot: EndpointSlot(0), generation: Generation::default() };
    let tuple = |flow: u32| FiveTuple {
        addresses: Addresses::V4 {
            src: (0x0a00_0000 + flow / 16).to_be_bytes(),
            dst: [198, 51, 100, 1],
        },
        protocol: protocol::TCP,
        src_port: 40_000 + u16::try_from(flow % 16).expect("below 16"),
        dst_port: 443,
    };
    (0..FLOWS).map(|flow| FlowKey::new(endpoint, &tuple(flow))).collect()
}

fn stored_header() -> StoredHeader {
    StoredHeader {
        template: TemplateId::new(0),
        cookie: [0xc0, 0, 0, 1],
        outer: OuterPath {
            local: Ipv4Addr::new(10, 9, 0, 2),
            remote: Ipv4Addr::new(10, 9, 0, 1),
            remote_port: 60_000,
        },
    }
}

/// 18 bytes over UDP over IPv4: the smallest packet that Ethernet carries unpadded.
fn ipv4_udp_packet() -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17, 0, 0];
    packet.extend([10, 1, 0, 1, 10, 2, 0, 1]);
    packet.extend([0x27, 0x10, 0x14, 0x51, 0, 26, 0, 0]);
    packet.extend([0; 18]);
    packet
}

fn ipv6_udp_packet() -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 26, 17, 64];
    packet.extend([0xfd; 16]);
    packet.extend([0xfc; 16]);
    packet.extend([0x27, 0x10, 0x14, 0x51, 0, 26, 0, 0]);
    packet.extend([0; 18]);
    packet
}

const fn at(secs: u64) -> Moment {
    Moment::from_secs(secs)
}

#[expect(clippy::disallowed_methods, reason = "a bench measures time; the rule is for src")]
fn now() -> Instant {
    Instant::now()
}

criterion_group!(benches, parse, checksums, super_packets, flows, paths);
criterion_main!(benches);
