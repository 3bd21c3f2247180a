//! Instructions of the parts of the packet path, counted by valgrind: a figure that does not depend
//! on what else the machine does, for changes that are too small for a clock.
//!
//! Each subject runs twice under callgrind, once with more repetitions than the other time. The
//! difference is free of start and set-up, whatever the compiler has inlined. Without arguments the
//! program runs itself under valgrind for all subjects and prints a table.
//!
//! Valgrind counts instructions, not time: a cache miss costs nothing here. Compare with `micro`.

mod fixture;
#[path = "load/packet.rs"]
#[expect(dead_code, reason = "the load bench uses all of it")]
mod packet;

use std::error::Error;
use std::hint::black_box;
use std::io::Write;
use std::net::Ipv4Addr;
use std::process::Command;
use std::process::ExitCode;

use clap::Parser;
use gwlbtun::flow::FlowKey;
use gwlbtun::flow::FlowTable;
use gwlbtun::flow::HashSeed;
use gwlbtun::flow::StoredHeader;
use gwlbtun::flow::TablePlan;
use gwlbtun::flow::Tally;
use gwlbtun::flow::TemplateId;
use gwlbtun::flow::Way;
use gwlbtun::types::EndpointRef;
use gwlbtun::types::EndpointSlot;
use gwlbtun::types::Generation;
use gwlbtun::types::Moment;
use gwlbtun::types::OuterPath;
use gwlbtun::wire::Family;
use gwlbtun::wire::checksum;
use gwlbtun::wire::gwlb;
use gwlbtun::wire::inner;

use crate::fixture::Batch;
use crate::fixture::Fixture;

type Failure = Box<dyn Error>;

/// Repetitions of the two runs.
const FEW: u64 = 200;
const MANY: u64 = 700;

/// Instructions per packet of the parts of the packet path.
#[derive(Debug, Parser)]
#[command(name = "callgrind")]
struct Args {
    /// Repeats one subject: what runs under valgrind.
    #[arg(long, num_args = 2, value_names = ["SUBJECT", "TIMES"])]
    callgrind: Option<Vec<String>>,
    /// What cargo adds for every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is counted.
#[derive(Clone, Copy)]
enum Part {
    /// GENEVE header, AWS's options, inner headers.
    Parse,
    /// The sum over the inner packet.
    Checksum,
    /// Packets of a download merged, checksums included.
    Merge,
    /// The super-packet that they became cut again, checksums included.
    Cut,
    /// The header of a known flow entered into the flow table.
    Learn,
    /// The header of a known flow looked up in the flow table.
    Find,
    /// All from the received batch to the planned writes.
    Decap,
    /// All from the read batch to the planned sends.
    Encap,
}

impl Part {
    const ALL: [Self; 8] = [
        Self::Parse,
        Self::Checksum,
        Self::Merge,
        Self::Cut,
        Self::Learn,
        Self::Find,
        Self::Decap,
        Self::Encap,
    ];

    /// Whether there is something to do for this part.
    const fn is_in(self, batch: Batch) -> bool {
        match self {
            Self::Merge | Self::Cut => matches!(batch, Batch::Bulk),
            Self::Parse | Self::Checksum | Self::Learn | Self::Find | Self::Decap | Self::Encap => {
                true
            }
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Parse => "parse",
            Self::Checksum => "checksum",
            Self::Merge => "merge",
            Self::Cut => "cut",
            Self::Learn => "flow learn",
            Self::Find => "flow find",
            Self::Decap => "decap",
            Self::Encap => "encap",
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match args.callgrind.as_deref() {
        Some([subject, times]) => repeat(subject, times),
        _ => count_all(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("callgrind: {error}");
            ExitCode::FAILURE
        }
    }
}

fn subjects() -> impl Iterator<Item = (String, Batch, Part)> {
    Batch::ALL.into_iter().flat_map(|batch| {
        let parts = Part::ALL.into_iter().filter(move |part| part.is_in(batch));
        parts.map(move |part| (format!("{}, {}", part.name(), batch.name()), batch, part))
    })
}

/// Prints the table.
fn count_all() -> Result<(), Failure> {
    let mut out = std::io::stdout();
    writeln!(out, "{:<32}{:>24}", "part, packets", "instructions per packet")?;
    for (subject, batch, _) in subjects() {
        let more = count(&subject, MANY)? - count(&subject, FEW)?;
        let packets = batch.packets() * (MANY - FEW);
        writeln!(out, "{subject:<32}{:>24}", more.div_ceil(packets))?;
    }
    Ok(())
}

/// Instructions of a whole process that repeats a subject.
fn count(subject: &str, times: u64) -> Result<u64, Failure> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(["--callgrind", subject, &times.to_string()])
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(
            format!("\"{subject}\" under valgrind ended with {}: {said}", output.status).into()
        );
    }
    let collected = said
        .lines()
        .find_map(|line| line.split_once("Collected : "))
        .ok_or_else(|| format!("valgrind counted nothing: {said}"))?;
    Ok(collected.1.trim().parse()?)
}

/// Runs a subject so many times.
fn repeat(subject: &str, times: &str) -> Result<(), Failure> {
    let times: u64 = times.parse()?;
    let (_, batch, part) = subjects()
        .find(|(name, _, _)| name == subject)
        .ok_or_else(|| format!("no subject \"{subject}\""))?;
    let mut datagrams = batch.datagrams();
    let flows = Flows::of(&datagrams);
    let mut fixture = Fixture::new(batch);
    for _ in 0..times {
        match part {
            Part::Parse => datagrams.iter().for_each(|datagram| parse(datagram)),
            Part::Checksum => datagrams.iter().for_each(|datagram| {
                black_box(checksum::sum(black_box(&datagram[packet::GENEVE_BYTES..])).finish());
            }),
            Part::Merge => fixture::merge(&mut datagrams),
            Part::Cut => fixture.cut_first_frame(),
            Part::Learn => flows.learn(),
            Part::Find => flows.find(),
            Part::Decap => assert!(fixture.decap() > 0),
            Part::Encap => assert!(fixture.encap() > 0),
        }
    }
    Ok(())
}

/// A flow table that knows the flows of some packets.
struct Flows {
    table: FlowTable,
    keys: Vec<(FlowKey, Way)>,
    header: StoredHeader,
}

impl Flows {
    fn of(datagrams: &[Vec<u8>]) -> Self {
        let slot = EndpointSlot(0);
        let endpoint = EndpointRef { slot, generation: Generation::default() };
        let key = |datagram: &Vec<u8>| {
            let packet = &datagram[packet::GENEVE_BYTES..];
            let inner = inner::parse(packet, Family::V4).expect("a usual packet");
            FlowKey::new(endpoint, &inner.tuple)
        };
        let outer = OuterPath {
            local: Ipv4Addr::new(10, 9, 0, 2),
            remote: Ipv4Addr::new(10, 9, 0, 1),
            remote_port: 60_000,
        };
        let flows = Self {
            table: FlowTable::new(TablePlan::new(1000, 1), HashSeed::fixed(1)),
            keys: datagrams.iter().map(key).collect(),
            header: StoredHeader { template: TemplateId::new(0), cookie: [0xc0, 0, 0, 1], outer },
        };
        flows.learn();
        flows
    }

    fn learn(&self) {
        for (key, way) in black_box(&self.keys) {
            let tally = &mut Tally::default();
            black_box(self.table.learn(key, *way, &self.header, Moment::from_secs(1), tally));
        }
    }

    fn find(&self) {
        for (key, way) in black_box(&self.keys) {
            let found = self.table.find(key, *way, Moment::from_secs(1), &mut Tally::default());
            assert!(black_box(found).is_some(), "the table knows the flow");
        }
    }
}

fn parse(datagram: &[u8]) {
    let datagram = black_box(datagram);
    let meta = gwlb::parse(datagram, &gwlb::Profile::AWS).expect("a usual header");
    let packet = &datagram[meta.header_bytes..];
    black_box(inner::parse(packet, meta.family).expect("a usual packet"));
}
