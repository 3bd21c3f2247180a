//! What workers saw of packets, as lines of the log: hex dumps for `-x`, and reasons of drops at
//! the level debug.

use std::fmt;
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use crate::log::Level;
use crate::log::Log;
use crate::log::Section;
use crate::types::DropReason;
use crate::types::LinkName;
use crate::wire::Addresses;
use crate::wire::FiveTuple;
use crate::wire::inner;
use crate::worker::mailbox::Sample;
use crate::worker::mailbox::SampleWish;
use crate::worker::mailbox::Sight;

/// Bytes in one line of a dump.
const DUMP_LINE: usize = 16;

/// Puts samples into the log.
#[derive(Debug)]
pub(super) struct Samples {
    log: Log,
    /// The level of dumps: with `-x` they are shown by default.
    packets: Level,
    hex_dump: bool,
}

impl Samples {
    pub(super) const fn new(log: Log, hex_dump: bool) -> Self {
        let packets = if hex_dump { Level::Info } else { Level::DebugDetail };
        Self { log, packets, hex_dump }
    }

    /// Which packets are worth a look: those whose lines are written.
    pub(super) fn wish(&self) -> SampleWish {
        SampleWish {
            packets: self.log.shows(Section::Geneve, self.packets),
            drops: self.log.shows(Section::Geneve, Level::Debug),
        }
    }

    /// Logs one sample.
    pub(super) fn show(&self, sample: &Sample) {
        let (event, level) = match (sample.sight, sample.dropped) {
            (Sight::Datagram(_), None) => ("packets from the load balancer", self.packets),
            (Sight::Packet(..), None) => ("packets from the host", self.packets),
            (Sight::Datagram(_), Some(_)) => ("drops from the load balancer", Level::Debug),
            (Sight::Packet(..), Some(_)) => ("drops from the host", Level::Debug),
        };
        self.log.held_back(event, sample.passed_over);
        if sample.len == 0 {
            return;
        }
        let dump =
            Dump(if sample.dropped.is_none() || self.hex_dump { &sample.bytes } else { &[] });
        let line = format_args!("{}{dump}", Headline(sample));
        self.log.event(Section::Geneve, level, event, line);
    }
}

/// What a sample is about, in one line.
struct Headline<'a>(&'a Sample);

impl fmt::Display for Headline<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sample { worker, sight, dropped, len, bytes, .. } = self.0;
        match (sight, dropped) {
            (Sight::Datagram(outer), None) => write!(
                f,
                "Worker {worker}: {len} bytes of GENEVE from {}:{} to {}.",
                outer.remote, outer.remote_port, outer.local
            ),
            (Sight::Datagram(outer), Some(reason)) => write!(
                f,
                "Worker {worker}: {len} bytes of GENEVE from {}:{} dropped, {reason}: {}",
                outer.remote,
                outer.remote_port,
                reason.explanation()
            ),
            (Sight::Packet(id, side), None) => {
                write!(f, "Worker {worker}: {len} bytes from {}.", LinkName::of(*id, *side))
            }
            (Sight::Packet(id, side), Some(reason)) => {
                let link = LinkName::of(*id, *side);
                match inner::parse_any(bytes) {
                    Ok(inner) if *reason == DropReason::FlowUnknown => write!(
                        f,
                        "Flow {} from {link} has not been seen coming in from GWLB - dropping.",
                        Tuple(&inner.tuple)
                    ),
                    _ => write!(
                        f,
                        "Worker {worker}: {len} bytes from {link} dropped, {reason}: {}",
                        reason.explanation()
                    ),
                }
            }
        }
    }
}

/// A flow, as people write it.
struct Tuple<'a>(&'a FiveTuple);

impl fmt::Display for Tuple<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FiveTuple { addresses, protocol, src_port, dst_port } = self.0;
        match addresses {
            Addresses::V4 { src, dst } => {
                let [src, dst] = [src, dst].map(|address| Ipv4Addr::from(*address));
                write!(f, "{src}:{src_port} -> {dst}:{dst_port}")?;
            }
            Addresses::V6 { src, dst } => {
                let [src, dst] = [src, dst].map(|address| Ipv6Addr::from(*address));
                write!(f, "[{src}]:{src_port} -> [{dst}]:{dst_port}")?;
            }
        }
        write!(f, " protocol {protocol}")
    }
}

/// Bytes in the way of `xxd`: offset, pairs of bytes, characters; a line break before each line.
struct Dump<'a>(&'a [u8]);

impl fmt::Display for Dump<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, line) in self.0.chunks(DUMP_LINE).enumerate() {
            write!(f, "\n{:04x}: ", number * DUMP_LINE)?;
            for place in 0..DUMP_LINE {
                match line.get(place) {
                    Some(byte) => write!(f, "{byte:02x}")?,
                    None => f.write_str("  ")?,
                }
                if place % 2 == 1 {
                    f.write_char(' ')?;
                }
            }
            f.write_char(' ')?;
            for &byte in line {
                let printable = byte.is_ascii_graphic() || byte == b' ';
                f.write_char(if printable { char::from(byte) } else { '.' })?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Thresholds;
    use crate::log::page::Page;
    use crate::types::EndpointId;
    use crate::types::OuterPath;
    use crate::types::Side;
    use crate::types::WorkerId;

    const DATAGRAM: Sight = Sight::Datagram(OuterPath {
        remote: Ipv4Addr::new(10, 0, 0, 1),
        remote_port: 60_000,
        local: Ipv4Addr::new(10, 0, 0, 2),
    });
    const PACKET: Sight = Sight::Packet(EndpointId(1), Side::Gwo);

    /// A UDP packet from 192.0.2.1 port 7 to 192.0.2.2 port 9 with the payload "ab".
    const UDP: [u8; 30] = [
        0x45, 0, 0, 30, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2, 0, 7, 0, 9, 0, 10, 0,
        0, b'a', b'b',
    ];

    fn sample(sight: Sight, dropped: Option<DropReason>, passed_over: u64) -> Sample {
        Sample::new(WorkerId(3), sight, dropped, &UDP, passed_over)
    }

    /// What the log shows of `samples`, less times and thread.
    fn lines(levels: &str, hex_dump: bool, samples: &[Sample]) -> Vec<String> {
        let page = Page::default();
        let (log, thread) = Log::start(Thresholds::parse(levels).0, page.clone()).unwrap();
        let shown = Samples::new(log, hex_dump);
        for sample in samples {
            shown.show(sample);
        }
        thread.finish();
        let after_the_thread = |line: &str| line.split_once('(').unwrap().1.to_owned();
        page.text().lines().map(after_the_thread).collect()
    }

    #[test]
    fn hex_dumps_of_both_sides() {
        let told = lines("all=info", true, &[sample(DATAGRAM, None, 0), sample(PACKET, None, 0)]);
        let dump = [
            "geneve,info) : : 0000: 4500 001e 0000 0000 4011 0000 c000 0201  E.......@.......",
            "geneve,info) : : 0010: c000 0202 0007 0009 000a 0000 6162       ............ab",
        ];
        assert_eq!(
            told,
            [
                "geneve,info) : : Worker 3: 30 bytes of GENEVE from 10.0.0.1:60000 to 10.0.0.2.",
                dump[0],
                dump[1],
                "geneve,info) : : Worker 3: 30 bytes from gwo-1.",
                dump[0],
                dump[1],
            ]
        );
    }

    #[test]
    fn drops_with_their_reason() {
        let samples = [
            sample(DATAGRAM, Some(DropReason::OptionMissing), 0),
            sample(PACKET, Some(DropReason::FlowUnknown), 0),
            sample(PACKET, Some(DropReason::Mtu), 4),
        ];
        let told = lines("geneve=debug", false, &samples);
        assert_eq!(
            told,
            [
                "geneve,debug) : : Worker 3: 30 bytes of GENEVE from 10.0.0.1:60000 dropped, \
                 option_missing: The endpoint id, the attachment id or the flow cookie is missing.",
                "geneve,debug) : : Flow 192.0.2.1:7 -> 192.0.2.2:9 protocol 17 from gwo-1 has not \
                 been seen coming in from GWLB - dropping.",
                "geneve,debug) : : Worker 3: 30 bytes from gwo-1 dropped, mtu: The packet is \
                 larger than the load balancer or the path takes.",
                "core,important) : : suppressed 4 more lines of drops from the host",
            ]
        );
    }

    #[test]
    fn what_is_not_shown_is_not_looked_at() {
        for (levels, hex_dump, packets, drops) in [
            ("all=info", false, false, false),
            ("all=info", true, true, false),
            ("geneve=debug", false, false, true),
            ("geneve=debugdetail", false, true, true),
            ("core=debugdetail", false, false, false),
            ("geneve=critical", true, false, false),
        ] {
            let (log, _) = Log::start(Thresholds::parse(levels).0, std::io::sink()).unwrap();
            let wish = Samples::new(log, hex_dump).wish();
            assert_eq!(wish, SampleWish { packets, drops }, "{levels} {hex_dump}");
        }
    }
}
