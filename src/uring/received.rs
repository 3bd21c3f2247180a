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
//! bytes of control hold `IP_PKTINFO` (32) and a later `UDP_GRO` (24).

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

/// One received datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Where it came from and which of our addresses it hit.
    pub outer: OuterPath,
    /// Its bytes, as a range of the buffer.
    pub datagram: Range<usize>,
    /// It was longer than the buffer and lost its end.
    pub truncated: bool,
}

/// Reads the fields in front of a datagram. `filled` is what the kernel has filled of a buffer.
///
/// Returns nothing if the fields are not there or the address information is missing, which a
/// kernel that honours `IP_PKTINFO` does not do.
pub fn parse(filled: &[u8]) -> Option<Received> {
    let control_len = usize::try_from(word(filled, 4)?).ok()?.min(CONTROL_BYTES);
    let flags = i32::from_ne_bytes(*filled.get(12..)?.first_chunk()?);
    let name: &[u8; NAME_BYTES] = filled.get(NAME_START..)?.first_chunk()?;
    let [_, _, port_high, port_low, a, b, c, d, ..] = *name;
    let control = filled.get(CONTROL_START..CONTROL_START + control_len)?;
    let datagram = DATAGRAM_START..filled.len();
    if datagram.end < datagram.start {
        return None;
    }
    Some(Received {
        outer: OuterPath {
            local: local_address(control)?,
            remote: Ipv4Addr::new(a, b, c, d),
            remote_port: u16::from_be_bytes([port_high, port_low]),
        },
        datagram,
        truncated: flags & libc::MSG_TRUNC != 0,
    })
}

/// The address that a datagram hit, from its `IP_PKTINFO` message.
fn local_address(mut control: &[u8]) -> Option<Ipv4Addr> {
    loop {
        let len = usize::from_ne_bytes(*control.first_chunk()?);
        let level = i32::from_ne_bytes(*control.get(8..)?.first_chunk()?);
        let kind = i32::from_ne_bytes(*control.get(12..)?.first_chunk()?);
        let data = control.get(CMSG_BYTES..len)?;
        if (level, kind) == (libc::IPPROTO_IP, libc::IP_PKTINFO) {
            // struct in_pktinfo: interface index, local address to answer from, destination.
            let address: [u8; 4] = *data.get(4..)?.first_chunk()?;
            return Some(address.into());
        }
        control = control.get(len.next_multiple_of(align_of::<usize>())..)?;
    }
}

fn word(bytes: &[u8], start: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(start..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A buffer as the kernel fills it: `others` control messages before the one that counts.
    fn buffer(others: usize, flags: i32, datagram: &[u8]) -> Vec<u8> {
        let mut control = Vec::new();
        for _ in 0..others {
            control.extend(20_usize.to_ne_bytes());
            control.extend(17_i32.to_ne_bytes());
            control.extend(104_i32.to_ne_bytes());
            control.extend([9; 8]);
        }
        control.extend(28_usize.to_ne_bytes());
        control.extend(libc::IPPROTO_IP.to_ne_bytes());
        control.extend(libc::IP_PKTINFO.to_ne_bytes());
        control.extend([3, 0, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 0, 0, 0]);
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
            datagram: 96..99,
            truncated: false,
        };
        assert_eq!(parse(&buffer(0, 0, b"abc")), Some(expected.clone()));
        assert_eq!(parse(&buffer(1, 0, b"abc")), Some(expected));
        assert_eq!(parse(&buffer(0, 0, b"")).unwrap().datagram, 96..96);
        assert!(parse(&buffer(0, libc::MSG_TRUNC, b"abc")).unwrap().truncated);
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
