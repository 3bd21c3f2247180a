//! What multishot receive puts into a buffer: who sent a datagram, which address it hit, where
//! its bytes are.
//!
//! ```text
//!   ┌──────────────────────┬───────────────┬────────────────────────┬──────────────┐
//!   │ io_uring_recvmsg_out │ sockaddr_in   │ control messages       │ datagram …   │
//!   │ 16 bytes             │ 16 bytes      │ 64 bytes               │              │
//!   └──────────────────────┴───────────────┴────────────────────────┴──────────────┘
//! ```
//!
//! The three fields in front have fixed sizes, whatever of them is used
//! (`io_uring_prep_recvmsg(3)`, "multishot"). Their numbers are in the machine's byte order. 64
//! bytes of control hold `IP_PKTINFO` (32) and `UDP_GRO` (24).

use std::net::Ipv4Addr;
use std::ops::Range;

use nix::libc;

use crate::types::OuterPath;

/// Bytes reserved for the sender's address.
pub(super) const NAME_BYTES: usize = size_of::<libc::sockaddr_in>();

/// Bytes reserved for control messages.
pub(super) const CONTROL_BYTES: usize = 64;

const OUT_BYTES: usize = 16;
const NAME_START: usize = OUT_BYTES;
const CONTROL_START: usize = NAME_START + NAME_BYTES;

/// Where the datagram starts.
pub const DATAGRAM_START: usize = CONTROL_START + CONTROL_BYTES;

/// A control message's own header: length, level, type (`struct cmsghdr`, 64-bit).
const CMSG_BYTES: usize = size_of::<libc::cmsghdr>();

/// Longest datagram, and longest train of datagrams that the kernel has merged.
pub const DATAGRAM_BYTES_MAX: usize = 65_535;

/// Most datagrams of a train. Kernels merge 64 (`UDP_GRO_CNT_MAX`, `net/ipv4/udp_offload.c`) and
/// cut 128 on the way to us; the rest is for kernels to come.
pub const DATAGRAMS_MAX: usize = 1024;

/// One datagram, or several of one outer path that the kernel has merged (`UDP_GRO`, udp(7)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Where it came from and which of our addresses it hit.
    pub outer: OuterPath,
    /// Its bytes, as a range of the buffer.
    pub bytes: Range<usize>,
    /// Length of each datagram but the last, which may be shorter: never 0.
    pub datagram_bytes: usize,
    /// It was longer than the buffer and lost its end.
    pub truncated: bool,
    /// It was sent to our address, and not to everybody: the kernel gives each of the receive
    /// sockets a copy of what was.
    pub is_unicast: bool,
}

impl Received {
    /// How many datagrams there are: at least one, which may be empty.
    pub fn count(&self) -> usize {
        self.bytes.len().div_ceil(self.datagram_bytes).max(1)
    }

    /// Where each datagram is.
    pub fn datagrams(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let Self { bytes, datagram_bytes, .. } = self.clone();
        (0..self.count()).map(move |number| {
            let start = bytes.start + number * datagram_bytes;
            start..bytes.end.min(start + datagram_bytes)
        })
    }
}

/// Reads the fields in front of a datagram. `filled` is what the kernel has filled of a buffer.
///
/// Returns nothing if the fields are not there or the address information is missing, which a
/// kernel that honours `IP_PKTINFO` does not do, and if there are more than [`DATAGRAMS_MAX`].
pub fn parse(filled: &[u8]) -> Option<Received> {
    let control_len = usize::try_from(word(filled, 4)?).ok()?.min(CONTROL_BYTES);
    let flags = i32::from_ne_bytes(*filled.get(12..)?.first_chunk()?);
    let name: &[u8; NAME_BYTES] = filled.get(NAME_START..)?.first_chunk()?;
    let [_, _, port_high, port_low, a, b, c, d, ..] = *name;
    let control = filled.get(CONTROL_START..CONTROL_START + control_len)?;
    let bytes = DATAGRAM_START..filled.len();
    if bytes.end < bytes.start {
        return None;
    }
    let said = Said::parse(control);
    let received = Received {
        outer: OuterPath {
            local: said.local?,
            remote: Ipv4Addr::new(a, b, c, d),
            remote_port: u16::from_be_bytes([port_high, port_low]),
        },
        datagram_bytes: said.datagram_bytes.unwrap_or_else(|| bytes.len()).max(1),
        bytes,
        truncated: flags & libc::MSG_TRUNC != 0,
        is_unicast: said.local == said.destination,
    };
    (received.count() <= DATAGRAMS_MAX).then_some(received)
}

/// What the control messages say.
#[derive(Default)]
struct Said {
    /// The address to answer from (`IP_PKTINFO`).
    local: Option<Ipv4Addr>,
    /// The address that stands in the datagram's header, which is another one if it is of no host.
    destination: Option<Ipv4Addr>,
    /// Into pieces of which length it has to be cut (`UDP_GRO`); one datagram says nothing.
    datagram_bytes: Option<usize>,
}

impl Said {
    fn parse(mut control: &[u8]) -> Self {
        let mut said = Self::default();
        while let Some(rest) = said.take_one(control) {
            control = rest;
        }
        said
    }

    /// Reads the first message. Returns the rest, if there is one.
    fn take_one<'a>(&mut self, control: &'a [u8]) -> Option<&'a [u8]> {
        let len = usize::from_ne_bytes(*control.first_chunk()?);
        let level = i32::from_ne_bytes(*control.get(8..)?.first_chunk()?);
        let kind = i32::from_ne_bytes(*control.get(12..)?.first_chunk()?);
        let data = control.get(CMSG_BYTES..len)?;
        match (level, kind) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                // struct in_pktinfo: interface index, local address to answer from, destination.
                let address = |at| data.get(at..)?.first_chunk::<4>().map(|&four| four.into());
                (self.local, self.destination) = (address(4), address(8));
            }
            (libc::SOL_UDP, libc::UDP_GRO) => {
                let bytes = i32::from_ne_bytes(*data.first_chunk()?);
                self.datagram_bytes = usize::try_from(bytes).ok();
            }
            _ => {}
        }
        control.get(len.next_multiple_of(align_of::<usize>())..)
    }
}

fn word(bytes: &[u8], start: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(start..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A buffer as the kernel fills it, with `merged` messages that say that datagrams of 2 bytes
    /// were merged.
    fn buffer(merged: usize, flags: i32, datagram: &[u8]) -> Vec<u8> {
        buffer_to([10, 0, 0, 1], merged, flags, datagram)
    }

    fn buffer_to(destination: [u8; 4], merged: usize, flags: i32, datagram: &[u8]) -> Vec<u8> {
        let mut control = Vec::new();
        for _ in 0..merged {
            control.extend(20_usize.to_ne_bytes());
            control.extend(libc::SOL_UDP.to_ne_bytes());
            control.extend(libc::UDP_GRO.to_ne_bytes());
            control.extend(2_i32.to_ne_bytes());
            control.extend([9; 4]);
        }
        control.extend(28_usize.to_ne_bytes());
        control.extend(libc::IPPROTO_IP.to_ne_bytes());
        control.extend(libc::IP_PKTINFO.to_ne_bytes());
        control.extend([3, 0, 0, 0, 10, 0, 0, 1]);
        control.extend([destination, [0; 4]].concat());
        let control_len = u32::try_from(control.len()).unwrap();
        control.resize(CONTROL_BYTES, 0);
        let mut bytes = Vec::new();
        for field in [16, control_len, 0] {
            bytes.extend(field.to_ne_bytes());
        }
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([2, 0, 0xea, 0x60, 10, 9, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend(control);
        bytes.extend(datagram);
        bytes
    }

    #[test]
    fn addresses_and_place_are_found() {
        let expected = Received {
            outer: OuterPath {
                local: Ipv4Addr::new(10, 0, 0, 1),
                remote: Ipv4Addr::new(10, 9, 8, 7),
                remote_port: 60_000,
            },
            bytes: 96..99,
            datagram_bytes: 3,
            truncated: false,
            is_unicast: true,
        };
        assert_eq!(parse(&buffer(0, 0, b"abc")), Some(expected.clone()));
        let merged = Received { datagram_bytes: 2, ..expected };
        assert_eq!(parse(&buffer(1, 0, b"abc")), Some(merged));
        assert_eq!(parse(&buffer(0, 0, b"")).unwrap().bytes, 96..96);
        assert!(parse(&buffer(0, libc::MSG_TRUNC, b"abc")).unwrap().truncated);
        for everybody in [[255; 4], [10, 0, 0, 255], [224, 0, 0, 1]] {
            assert!(!parse(&buffer_to(everybody, 0, 0, b"abc")).unwrap().is_unicast);
        }
    }

    #[test]
    fn merged_datagrams_are_taken_apart() {
        let places = |merged, bytes: &[u8]| {
            let received = parse(&buffer(merged, 0, bytes)).unwrap();
            let places: Vec<_> =
                received.datagrams().map(|place| (place.start, place.end)).collect();
            assert_eq!(places.len(), received.count());
            places
        };
        assert_eq!(places(1, b"abcde"), [(96, 98), (98, 100), (100, 101)]);
        assert_eq!(places(1, b"abcd"), [(96, 98), (98, 100)]);
        assert_eq!(places(1, b"a"), [(96, 97)]);
        assert_eq!(places(0, b"abcde"), [(96, 101)]);
        assert_eq!(places(0, b""), [(96, 96)], "an empty datagram is one");
    }

    /// No kernel merges so many; a guest's host may claim that they were (before Linux 6.6), and
    /// no plan has room for them.
    #[test]
    fn what_no_kernel_merges_is_refused() {
        let of = |datagrams: usize| parse(&buffer(1, 0, &vec![7; 2 * datagrams]));
        assert_eq!(of(DATAGRAMS_MAX).map(|received| received.count()), Some(DATAGRAMS_MAX));
        assert_eq!(of(DATAGRAMS_MAX + 1), None);
    }

    #[test]
    fn whatever_is_cut_is_refused() {
        let whole = buffer(1, 0, b"");
        for len in 0..whole.len() {
            assert_eq!(parse(&whole[..len]), None, "{len} bytes");
        }
        let mut no_address = buffer(0, 0, b"abc");
        no_address[4..8].fill(0);
        assert_eq!(parse(&no_address), None);
    }
}
