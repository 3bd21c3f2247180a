//! TCP headers, RFC 9293 §3.1.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+  byte
//! |          Source Port          |       Destination Port        |  0
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                        Sequence Number                        |  4
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                    Acknowledgment Number                      |  8
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! | Offset| Rsvd. |C|E|U|A|P|R|S|F|            Window             |  12
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |           Checksum            |         Urgent Pointer        |  16
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                            Options                            |  20
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```
//!
//! A [`Header`] covers bytes that begin with a whole header; the payload may follow or be
//! elsewhere. [`Header::new_checked`] makes the only check, no setter can undo it, and nothing
//! here panics. A segment without a whole header is no reason to drop a packet, so the check
//! answers with nothing instead of a reason.

use crate::wire::checksum;
use crate::wire::checksum::Sum;
use crate::wire::field::be16;
use crate::wire::field::be32;

/// Bytes of a header without options.
pub const HEADER_BYTES_MIN: usize = 20;

/// Where the fields stand.
pub mod field {
    use std::ops::Range;

    /// Source port.
    pub const SRC_PORT: Range<usize> = 0..2;
    /// Destination port.
    pub const DST_PORT: Range<usize> = 2..4;
    /// Sequence number.
    pub const SEQUENCE: Range<usize> = 4..8;
    /// Acknowledgment number.
    pub const ACKNOWLEDGMENT: Range<usize> = 8..12;
    /// Data offset and reserved bits.
    pub const OFFSET: usize = 12;
    /// Control bits.
    pub const FLAGS: usize = 13;
    /// Window.
    pub const WINDOW: Range<usize> = 14..16;
    /// Checksum.
    pub const CHECKSUM: Range<usize> = 16..18;
}

/// The control bits of byte 13.
pub mod flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgment number is meant.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer is meant.
    pub const URG: u8 = 0x20;
    /// Congestion was experienced (RFC 3168).
    pub const ECE: u8 = 0x40;
    /// The congestion window was reduced (RFC 3168).
    pub const CWR: u8 = 0x80;
}

/// Kinds of options (RFC 9293 §3.2).
mod option {
    pub(super) const END: u8 = 0;
    pub(super) const NO_OPERATION: u8 = 1;
    pub(super) const MSS: u8 = 2;
    pub(super) const MSS_BYTES: usize = 4;
}

/// Bytes that begin with a whole TCP header.
#[derive(Clone, Copy, Debug)]
pub struct Header<T> {
    bytes: T,
}

impl<T: AsRef<[u8]>> Header<T> {
    /// Looks at bytes that should begin with a TCP header. Nothing if they do not hold a whole
    /// one, or if it says that it is shorter than 20 bytes.
    pub fn new_checked(bytes: T) -> Option<Self> {
        let segment = bytes.as_ref();
        let header_bytes = header_bytes(*segment.get(field::OFFSET)?);
        (HEADER_BYTES_MIN..=segment.len()).contains(&header_bytes).then_some(Self { bytes })
    }

    /// Source port.
    pub fn src_port(&self) -> u16 {
        be16(self.bytes.as_ref(), field::SRC_PORT)
    }

    /// Destination port.
    pub fn dst_port(&self) -> u16 {
        be16(self.bytes.as_ref(), field::DST_PORT)
    }

    /// Sequence number of the first payload byte, or of the SYN.
    pub fn sequence(&self) -> u32 {
        be32(self.bytes.as_ref(), field::SEQUENCE)
    }

    /// Sequence number that the sender expects next.
    pub fn acknowledgment(&self) -> u32 {
        be32(self.bytes.as_ref(), field::ACKNOWLEDGMENT)
    }

    /// Length of the header with its options: 20 to 60 bytes.
    pub fn header_bytes(&self) -> usize {
        header_bytes(self.bytes.as_ref()[field::OFFSET])
    }

    /// The control bits, see [`flag`].
    pub fn flags(&self) -> u8 {
        self.bytes.as_ref()[field::FLAGS]
    }

    /// The window as it stands there, without the scale that the SYN agreed.
    pub fn window(&self) -> u16 {
        be16(self.bytes.as_ref(), field::WINDOW)
    }

    /// The options, with their padding.
    pub fn options(&self) -> &[u8] {
        &self.bytes.as_ref()[HEADER_BYTES_MIN..self.header_bytes()]
    }

    /// Whether the segment is unharmed. `payload` is the sum of what follows the header.
    pub fn checksum_is_valid(&self, pseudo_header: Sum, payload: Sum) -> bool {
        let header = checksum::sum(&self.bytes.as_ref()[..self.header_bytes()]);
        (pseudo_header + header + payload).is_valid()
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Header<T> {
    /// Sets the sequence number.
    pub fn set_sequence(&mut self, number: u32) {
        self.bytes.as_mut()[field::SEQUENCE].copy_from_slice(&number.to_be_bytes());
    }

    /// Sets the control bits, see [`flag`].
    pub fn set_flags(&mut self, flags: u8) {
        self.bytes.as_mut()[field::FLAGS] = flags;
    }

    /// Lowers the maximum segment size that a SYN offers (RFC 9293 §3.7.1), if it is higher, and
    /// corrects the checksum. A SYN that offers none is left alone: its sender is not to be sent
    /// more than 536 or 1,220 bytes anyway.
    pub fn clamp_mss(&mut self, most: u16) {
        if self.flags() & flag::SYN == 0 {
            return;
        }
        let Some(at) = mss_at(self.options()).map(|at| HEADER_BYTES_MIN + at) else {
            return;
        };
        if be16(self.bytes.as_ref(), at..at + 2) <= most {
            return;
        }
        // The option may begin anywhere, and then two words change. The header is a multiple of
        // four bytes long, so both are in it.
        let words = at & !1..(at + 3) & !1;
        let before = checksum::sum(&self.bytes.as_ref()[words.clone()]).fold();
        self.bytes.as_mut()[at..at + 2].copy_from_slice(&most.to_be_bytes());
        let after = checksum::sum(&self.bytes.as_ref()[words]).fold();
        let checksum = be16(self.bytes.as_ref(), field::CHECKSUM);
        let checksum = checksum::update(checksum, before, after);
        self.bytes.as_mut()[field::CHECKSUM].copy_from_slice(&checksum.to_be_bytes());
    }

    /// Computes the checksum, after everything else is set. `payload` is the sum of what follows
    /// the header.
    pub fn fill_checksum(&mut self, pseudo_header: Sum, payload: Sum) {
        let header_bytes = self.header_bytes();
        let header = &mut self.bytes.as_mut()[..header_bytes];
        header[field::CHECKSUM].fill(0);
        let checksum = (pseudo_header + checksum::sum(header) + payload).finish();
        header[field::CHECKSUM].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// Where the value of the maximum segment size stands in the options. Nothing if there is none, or
/// the options before it contradict themselves.
fn mss_at(options: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let option_bytes = match *options.get(at)? {
            option::END => return None,
            option::NO_OPERATION => 1,
            kind => match usize::from(*options.get(at + 1)?) {
                option::MSS_BYTES if kind == option::MSS => {
                    return (at + option::MSS_BYTES <= options.len()).then_some(at + 2);
                }
                0 | 1 => return None,
                bytes => bytes,
            },
        };
        at += option_bytes;
    }
}

/// Header length that byte 12 of a header claims, in bytes.
fn header_bytes(offset: u8) -> usize {
    usize::from(offset >> 4) * 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Addresses;
    use crate::wire::protocol;

    /// ACK and PSH with 4 bytes of options (NOP, NOP, "SACK permitted" of RFC 2018, which has no
    /// business here and harms nobody) and 3 bytes of payload.
    const GOLDEN: [u8; 27] = [
        0x01, 0xbb, 0xc0, 0x00, // port 443 to 49152
        0xde, 0xad, 0xbe, 0xef, // sequence
        0x00, 0x00, 0x00, 0x2a, // acknowledgment
        0x60, 0x18, 0xff, 0xfe, // 24 bytes, window 65534
        0x8a, 0xa6, 0x00, 0x00, // checksum
        0x01, 0x01, 0x04, 0x02, //
        0x61, 0x62, 0x63, // "abc"
    ];

    fn pseudo_header() -> Sum {
        let addresses = Addresses::V4 { src: [192, 0, 2, 1], dst: [198, 51, 100, 2] };
        checksum::pseudo_header(addresses, protocol::TCP, 27)
    }

    #[test]
    fn golden_bytes() {
        let header = Header::new_checked(&GOLDEN).unwrap();
        assert_eq!(header.src_port(), 443);
        assert_eq!(header.dst_port(), 49152);
        assert_eq!(header.sequence(), 0xdead_beef);
        assert_eq!(header.acknowledgment(), 42);
        assert_eq!(header.header_bytes(), 24);
        assert_eq!(header.flags(), flag::ACK | flag::PSH);
        assert_eq!(header.window(), 65534);
        assert_eq!(header.options(), [1, 1, 4, 2]);
        let payload = checksum::sum(b"abc");
        assert!(header.checksum_is_valid(pseudo_header(), payload));
        assert!(!header.checksum_is_valid(pseudo_header(), checksum::sum(b"abd")));
    }

    #[test]
    fn what_is_no_header_is_nothing() {
        for length in 0..24 {
            assert!(Header::new_checked(&GOLDEN[..length]).is_none(), "{length}");
        }
        assert!(Header::new_checked(&GOLDEN[..24]).is_some());
        let mut bytes = GOLDEN;
        for offset in [0x00, 0x40, 0x70, 0xf0] {
            bytes[12] = offset;
            assert!(Header::new_checked(&bytes).is_none(), "{offset:x}");
        }
    }

    /// A SYN with these options, its checksum valid.
    fn syn(options: &[u8]) -> Vec<u8> {
        let mut bytes = [&GOLDEN[..20], options].concat();
        bytes[12] = u8::try_from(bytes.len() / 4).unwrap() << 4;
        let mut header = Header::new_checked(&mut bytes).unwrap();
        header.set_flags(flag::SYN);
        header.fill_checksum(pseudo_header(), Sum::default());
        bytes
    }

    #[test]
    fn a_segment_size_is_lowered_where_it_is_higher() {
        // The value where a word begins, and across two.
        for (options, at) in [
            (&[2, 4, 0x23, 0x00, 1, 3, 3, 7][..], 2),
            (&[1, 2, 4, 0x23, 0x00, 3, 3, 7], 3),
            (&[4, 2, 1, 2, 4, 0x23, 0x00, 0], 5),
            (&[1, 1, 1, 1, 1, 2, 4, 0x23, 0x00, 0, 0, 0], 7),
        ] {
            for most in [0x2300, 0x22ff, 8460, 536, 0] {
                let mut bytes = syn(options);
                let mut expected = bytes.clone();
                expected[20 + at..22 + at].copy_from_slice(&u16::to_be_bytes(most));
                let mut header = Header::new_checked(&mut bytes).unwrap();
                header.clamp_mss(most);
                assert!(header.checksum_is_valid(pseudo_header(), Sum::default()), "{most}");
                expected[16..18].copy_from_slice(&bytes[16..18]);
                assert_eq!(bytes, expected, "{most}");
            }
        }
    }

    #[test]
    fn nothing_else_of_a_segment_is_touched() {
        let mut low = syn(&[2, 4, 0x05, 0xb4]);
        let mut no_syn = syn(&[2, 4, 0x23, 0x00]);
        no_syn[13] = flag::ACK;
        for mut bytes in [
            std::mem::take(&mut low),
            no_syn,
            syn(&[0, 0, 0, 0, 2, 4, 0x23, 0x00]),
            syn(&[3, 0, 0, 0, 2, 4, 0x23, 0x00]),
            syn(&[3, 1, 0, 0, 2, 4, 0x23, 0x00]),
            syn(&[1, 1, 2, 4]),
            syn(&[1, 2, 4, 0x23]),
            syn(&[1, 1, 1, 2]),
            syn(&[2, 3, 0x23, 0]),
            syn(&[3, 200, 2, 4]),
            syn(&[]),
        ] {
            let before = bytes.clone();
            Header::new_checked(&mut bytes).unwrap().clamp_mss(1460);
            assert_eq!(bytes, before);
        }
    }

    #[test]
    fn a_wrong_checksum_stays_as_wrong() {
        let mut bytes = syn(&[2, 4, 0x23, 0x00]);
        bytes[17] ^= 1;
        let mut header = Header::new_checked(&mut bytes).unwrap();
        header.clamp_mss(1000);
        assert!(!header.checksum_is_valid(pseudo_header(), Sum::default()));
        bytes[17] ^= 1;
        let header = Header::new_checked(&bytes).unwrap();
        assert!(header.checksum_is_valid(pseudo_header(), Sum::default()));
    }

    #[test]
    fn an_edited_header_is_valid_again() {
        // The header alone: its payload is elsewhere.
        let mut bytes = GOLDEN;
        let mut header = Header::new_checked(&mut bytes[..24]).unwrap();
        let payload = checksum::sum(b"abc");
        header.set_sequence(0xdead_bef0);
        header.set_flags(flag::ACK);
        assert!(!header.checksum_is_valid(pseudo_header(), payload));
        header.fill_checksum(pseudo_header(), payload);
        assert!(header.checksum_is_valid(pseudo_header(), payload));
        let mut expected = GOLDEN;
        expected[7] = 0xf0;
        expected[13] = 0x10;
        // One more in one word and eight less in another: seven more here.
        expected[17] = 0xad;
        assert_eq!(bytes, expected);
    }
}
