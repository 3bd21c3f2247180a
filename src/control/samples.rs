//! What workers saw of packets, as lines of the log: hex dumps for `-x`, and reasons of drops at
//! the level debug.

use std::fmt;
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use crate::log::Level;
use crate::log::Log;
use crate::log::LogEvent;
use crate::log::Section;
use crate::log::Value;
use crate::types::DropReason;
use crate::types::GENEVE_PORT;
use crate::types::LinkName;
use crate::wire::Addresses;
use crate::wire::FiveTuple;
use crate::wire::inner;
use crate::wire::protocol;
use crate::worker::mailbox::Sample;
use crate::worker::mailbox::SampleWish;
use crate::worker::mailbox::Sight;

/// Bytes in one line of a dump.
const DUMP_LINE: usize = 16;

/// Puts samples into the log.
#[derive(Debug)]
pub(super) struct Samples {
    log: Log,
    /// With `-x` packets are shown by default, with their bytes.
    hex_dump: bool,
}

impl Samples {
    pub(super) const fn new(log: Log, hex_dump: bool) -> Self {
        Self { log, hex_dump }
    }

    /// Which packets are worth a look: those whose lines are written.
    pub(super) fn wish(&self) -> SampleWish {
        let level = if self.hex_dump { Level::Info } else { Level::Debug };
        let shows = |level| [Section::Geneve, Section::Tunnel].map(|s| self.log.shows(s, level));
        SampleWish {
            packets: shows(level).contains(&true),
            drops: shows(Level::Debug).contains(&true),
        }
    }

    /// Logs one sample. Each kind of sample is an event of its own.
    pub(super) fn show(&self, sample: &Sample) {
        let event = match (sample.sight, sample.dropped) {
            (Sight::Datagram(_), None) => LogEvent::PacketFromGwlb,
            (Sight::Datagram(_), Some(_)) => LogEvent::DropFromGwlb,
            (Sight::Packet(..), None) => LogEvent::PacketFromHost,
            (Sight::Packet(..), Some(_)) => LogEvent::DropFromHost,
        };
        let section = event.section();
        let level =
            if self.hex_dump && sample.dropped.is_none() { Level::Info } else { Level::Debug };
        if !self.log.shows(section, level) {
            return;
        }
        self.log.held_back(event, sample.passed_over);
        if sample.len > 0 {
            let wants_dump = self.hex_dump || self.log.shows(section, Level::DebugDetail);
            let dump = Dump(if wants_dump { &sample.bytes } else { &[] });
            let text = format_args!("{}{dump}", Headline(sample));
            let bytes = Value::Number(sample.len as u64);
            let from = match sample.sight {
                Sight::Datagram(outer) => outer.remote.to_string(),
                Sight::Packet(id, side) => LinkName::of(id, side).to_string(),
            };
            let fields = [
                ("from", Value::Text(&from)),
                ("bytes", bytes),
                ("reason", Value::Text(&sample.dropped.map_or("", DropReason::name))),
            ];
            let fields = if sample.dropped.is_some() { &fields[..] } else { &fields[..2] };
            self.log.event_at(level, event, fields, text);
        }
    }
}

/// What a sample is about, in one line; in the reference's words, because people look for them.
struct Headline<'a>(&'a Sample);

impl fmt::Display for Headline<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sample { sight, dropped, len, bytes, .. } = self.0;
        match (sight, dropped) {
            (Sight::Datagram(outer), None) => write!(
                f,
                "Received a packet of {len} bytes from {} port {} sent to {} port {GENEVE_PORT}",
                outer.remote, outer.remote_port, outer.local
            ),
            (Sight::Datagram(outer), Some(reason)) => write!(
                f,
                "{} {len} bytes from {} port {}. {reason}: {}",
                if is_about_the_header(*reason) {
                    "Geneve Header not OK - dropping"
                } else {
                    "Dropping"
                },
                outer.remote,
                outer.remote_port,
                reason.explanation()
            ),
            (Sight::Packet(id, side), None) => {
                let link = LinkName::of(*id, *side);
                write!(f, "Received a packet of {len} bytes for ENI Id:{id} from {link}")
            }
            (Sight::Packet(id, side), Some(reason)) => match inner::parse_any(bytes) {
                Ok(inner) if *reason == DropReason::FlowUnknown => write!(
                    f,
                    "Flow {} has not been seen coming in from GWLB - dropping.  (Remember - GWLB \
                     is for inline inspection only - you cannot source new flows from this device \
                     into it.)",
                    Tuple(&inner.tuple)
                ),
                _ => write!(
                    f,
                    "Dropping {len} bytes from {}. {reason}: {}",
                    LinkName::of(*id, *side),
                    reason.explanation()
                ),
            },
        }
    }
}

/// Whether the reference's words for a bad GENEVE header fit.
const fn is_about_the_header(reason: DropReason) -> bool {
    matches!(
        reason,
        DropReason::Short
            | DropReason::BadVersion
            | DropReason::Oam
            | DropReason::OptionsOverrun
            | DropReason::OptionMissing
            | DropReason::OptionDuplicate
            | DropReason::OptionBadLength
            | DropReason::CriticalOptionUnknown
            | DropReason::BadEthertype
    )
}

/// A flow as the reference writes it.
struct Tuple<'a>(&'a FiveTuple);

impl fmt::Display for Tuple<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FiveTuple { addresses, protocol, src_port, dst_port } = self.0;
        match addresses {
            Addresses::V4 { src, dst } => {
                let [src, dst] = [src, dst].map(|address| Ipv4Addr::from(*address));
                write!(f, "PacketHeaderV4: SrcIP: {src}, DstIP: {dst}")?;
            }
            Addresses::V6 { src, dst } => {
                let [src, dst] = [src, dst].map(|address| Ipv6Addr::from(*address));
                write!(f, "PacketHeaderV6: SrcIP: {src}, DstIP: {dst}")?;
            }
        }
        let name = match *protocol {
            protocol::TCP => "TCP",
            protocol::UDP => "UDP",
            other => return write!(f, " Prot #{other}"),
        };
        write!(f, "  Prot {name}, src pt {src_port}, dst pt {dst_port}")
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
    use crate::log::Format;
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
        let (log, thread) =
            Log::start(Thresholds::parse(levels).0, Format::Text, page.clone()).unwrap();
        let shown = Samples::new(log, hex_dump);
        for sample in samples {
            shown.show(sample);
        }
        thread.finish();
        let after_the_thread = |line: &str| line.split_once('(').unwrap().1.to_owned();
        // The first line lists the levels.
        page.text().lines().map(after_the_thread).filter(|line| !line.contains("Config")).collect()
    }

    #[test]
    fn hex_dumps_of_both_sides() {
        let told = lines("all=info", true, &[sample(DATAGRAM, None, 0), sample(PACKET, None, 0)]);
        assert_eq!(
            told,
            [
                "geneve,info) : : Received a packet of 30 bytes from 10.0.0.1 port 60000 sent to \
                 10.0.0.2 port 6081",
                "geneve,info) : : 0000: 4500 001e 0000 0000 4011 0000 c000 0201  E.......@.......",
                "geneve,info) : : 0010: c000 0202 0007 0009 000a 0000 6162       ............ab",
                "tunnel,info) : : Received a packet of 30 bytes for ENI Id:00000000000000001 from \
                 gwo-1",
                "tunnel,info) : : 0000: 4500 001e 0000 0000 4011 0000 c000 0201  E.......@.......",
                "tunnel,info) : : 0010: c000 0202 0007 0009 000a 0000 6162       ............ab",
            ]
        );
    }

    #[test]
    fn drops_with_their_reason() {
        let samples = [
            sample(DATAGRAM, Some(DropReason::OptionMissing), 0),
            sample(DATAGRAM, Some(DropReason::EndpointLimit), 0),
            sample(PACKET, Some(DropReason::FlowUnknown), 0),
            sample(PACKET, Some(DropReason::Mtu), 4),
        ];
        let told = lines("all=debug", false, &samples);
        assert_eq!(
            told,
            [
                "geneve,debug) : : Geneve Header not OK - dropping 30 bytes from 10.0.0.1 port \
                 60000. option_missing: The endpoint id, the attachment id or the flow cookie is \
                 missing.",
                "geneve,debug) : : Dropping 30 bytes from 10.0.0.1 port 60000. endpoint_limit: \
                 The endpoint is new and the limit on endpoints is reached.",
                "tunnel,debug) : : Flow PacketHeaderV4: SrcIP: 192.0.2.1, DstIP: 192.0.2.2  Prot \
                 UDP, src pt 7, dst pt 9 has not been seen coming in from GWLB - dropping.  \
                 (Remember - GWLB is for inline inspection only - you cannot source new flows \
                 from this device into it.)",
                "tunnel,debug) : : Dropping 30 bytes from gwo-1. mtu: The packet is larger than \
                 the load balancer or the path takes.",
                "core,important) : : suppressed 4 more lines of drops from the host",
            ]
        );
        assert_eq!(lines("all=info", true, &samples), [""; 0], "no dump of a drop without -d");
        assert_eq!(lines("tunnel=debugdetail", false, &samples).len(), 2 * 3 + 1);
    }

    #[test]
    fn what_is_not_shown_is_not_looked_at() {
        for (levels, hex_dump, packets, drops) in [
            ("all=info", false, false, false),
            ("all=info", true, true, false),
            ("geneve=debug", false, true, true),
            ("tunnel=debug", false, true, true),
            ("core=debugdetail", false, false, false),
            ("all=critical", true, false, false),
        ] {
            let thresholds = Thresholds::parse(levels).0;
            let (log, _) = Log::start(thresholds, Format::Text, std::io::sink()).unwrap();
            let wish = Samples::new(log, hex_dump).wish();
            assert_eq!(wish, SampleWish { packets, drops }, "{levels} {hex_dump}");
        }
    }
}
