//! What an AWS Gateway Load Balancer puts into GENEVE: three options of class 0x0108.
//!
//! AWS guide, "Gateway Load Balancers" (the lengths are those of the data):
//!
//! | type | bytes | meaning |
//! |---|---|---|
//! | 1 | 8 | id of the endpoint (GWLBE): which of the tenants' virtual interfaces |
//! | 2 | 8 | id of the attachment: 0 in every capture known |
//! | 3 | 4 | flow cookie: opaque, must come back unchanged |
//!
//! ```text
//!  0       8            12        20           24        32           36      40
//!  ┌───────┬────────────┬─────────┬────────────┬─────────┬────────────┬───────┬──────────
//!  │ fixed │ 0108 01 02 │ endpoint│ 0108 02 02 │ attachm.│ 0108 03 01 │ cookie│ IP packet
//!  └───────┴────────────┴─────────┴────────────┴─────────┴────────────┴───────┴──────────
//! ```
//!
//! Tencent Cloud's load balancer sends the same under a class of its own: a [`Profile`] says whose
//! it is. (Its cookie is three bits of direction before 29 of identity, which is nothing to us.)
//!
//! This is the only layout ever captured, and [`parse`] recognises it by comparing words. Any
//! other layout that says the same is understood by a walk over the options: all three are
//! required, in any order, with exactly these lengths, once each. Options that nobody here knows
//! are accepted unless they are critical, of AWS's class too: the header is replayed whole, so
//! they go back as they came. VNI and reserved bits go back the same way and are not looked at.
//!
//! The type of an option is its whole octet (RFC 8926 §3.5), so type 0x81 is not type 1 made
//! critical: it is another type, unknown and critical.

use crate::types::DropReason;
use crate::types::EndpointId;
use crate::wire::Family;
use crate::wire::geneve;
use crate::wire::geneve::OptionClass;
use crate::wire::geneve::OptionRepr;
use crate::wire::geneve::OptionType;

/// Bytes of the header that a load balancer sends.
pub const USUAL_HEADER_BYTES: usize = 40;

const ENDPOINT: OptionType = OptionType(1);
const ATTACHMENT: OptionType = OptionType(2);
const COOKIE: OptionType = OptionType(3);

/// Ethertypes (IANA, "IEEE 802 Numbers").
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Where the values of the usual header stand.
const USUAL_COOKIE_AT: usize = 36;

/// Whose load balancer sends: what its options look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    class: OptionClass,
    /// How each option begins in the usual header: class, type, words.
    heads: [[u8; 4]; 3],
}

impl Profile {
    /// Amazon Web Services (IANA, "Geneve Option Class": Amazon.com, Inc.).
    pub const AWS: Self = Self::of_class(0x0108);

    /// Tencent Cloud, by its documentation.
    pub const TENCENT: Self = Self::of_class(0x0167);

    const fn of_class(class: u16) -> Self {
        let [high, low] = class.to_be_bytes();
        let heads =
            [[high, low, ENDPOINT.0, 2], [high, low, ATTACHMENT.0, 2], [high, low, COOKIE.0, 1]];
        Self { class: OptionClass(class), heads }
    }
}

/// What a datagram of the load balancer says, as values and offsets: nobody parses it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// The endpoint that the packet came through.
    pub endpoint: EndpointId,
    /// The attachment id.
    pub attachment: u64,
    /// The flow cookie.
    pub cookie: [u8; 4],
    /// Offset of the cookie from the start of the datagram, in bytes.
    pub cookie_at: usize,
    /// Length of the GENEVE header with its options; the inner packet follows.
    pub header_bytes: usize,
    /// What the inner packet claims to be.
    pub family: Family,
}

/// Understands a UDP payload that came in on the GENEVE port, sent by whose load balancer `profile`
/// says.
///
/// # Errors
/// The reason to drop it, the first that holds of
/// [`Short`](DropReason::Short),
/// [`BadVersion`](DropReason::BadVersion),
/// [`OptionsOverrun`](DropReason::OptionsOverrun) (all options against the datagram),
/// [`Oam`](DropReason::Oam),
/// [`BadEthertype`](DropReason::BadEthertype);
/// then option by option
/// [`OptionsOverrun`](DropReason::OptionsOverrun) (this option against the area),
/// [`OptionBadLength`](DropReason::OptionBadLength),
/// [`OptionDuplicate`](DropReason::OptionDuplicate),
/// [`CriticalOptionUnknown`](DropReason::CriticalOptionUnknown);
/// then [`OptionMissing`](DropReason::OptionMissing), and
/// [`InnerTruncated`](DropReason::InnerTruncated) if nothing follows the header.
pub fn parse(datagram: &[u8], profile: &Profile) -> Result<Meta, DropReason> {
    match parse_usual(datagram, profile) {
        Some(meta) => Ok(meta),
        None => parse_any_layout(datagram, profile.class),
    }
}

/// Recognises the usual header; nothing means "look closer", not "drop".
fn parse_usual(datagram: &[u8], profile: &Profile) -> Option<Meta> {
    let (header, inner) = datagram.split_first_chunk::<USUAL_HEADER_BYTES>()?;
    // Version 0, 8 words of options, neither O nor C.
    let family = match header.first_chunk()? {
        [0x08, 0x00, 0x08, 0x00] => Family::V4,
        [0x08, 0x00, 0x86, 0xdd] => Family::V6,
        _ => return None,
    };
    let (_fixed, options) = header.split_first_chunk::<{ geneve::FIXED_BYTES }>()?;
    let (endpoint_head, options) = options.split_first_chunk()?;
    let (endpoint, options) = options.split_first_chunk()?;
    let (attachment_head, options) = options.split_first_chunk()?;
    let (attachment, options) = options.split_first_chunk()?;
    let (cookie_head, cookie) = options.split_first_chunk()?;
    let is_usual = *endpoint_head == profile.heads[0]
        && *attachment_head == profile.heads[1]
        && *cookie_head == profile.heads[2]
        && !inner.is_empty();
    is_usual.then_some(Meta {
        endpoint: EndpointId(u64::from_be_bytes(*endpoint)),
        attachment: u64::from_be_bytes(*attachment),
        cookie: *cookie.first_chunk()?,
        cookie_at: USUAL_COOKIE_AT,
        header_bytes: USUAL_HEADER_BYTES,
        family,
    })
}

/// Walks over whatever options there are.
#[cold]
fn parse_any_layout(datagram: &[u8], class: OptionClass) -> Result<Meta, DropReason> {
    let packet = geneve::Packet::new_checked(datagram)?;
    if packet.is_oam() {
        return Err(DropReason::Oam);
    }
    let family = match packet.protocol_type() {
        ETHERTYPE_IPV4 => Family::V4,
        ETHERTYPE_IPV6 => Family::V6,
        _ => return Err(DropReason::BadEthertype),
    };
    let mut endpoint = None;
    let mut attachment = None;
    let mut cookie = None;
    for option in packet.options() {
        let option = option?;
        match (option.class == class, option.kind) {
            (true, ENDPOINT) => put_once(&mut endpoint, exactly(option.data)?)?,
            (true, ATTACHMENT) => put_once(&mut attachment, exactly(option.data)?)?,
            (true, COOKIE) => put_once(&mut cookie, (exactly(option.data)?, option.data_at))?,
            (_, kind) if kind.is_critical() => return Err(DropReason::CriticalOptionUnknown),
            _ => {}
        }
    }
    let endpoint = endpoint.ok_or(DropReason::OptionMissing)?;
    let attachment = attachment.ok_or(DropReason::OptionMissing)?;
    let (cookie, cookie_at) = cookie.ok_or(DropReason::OptionMissing)?;
    if packet.payload().is_empty() {
        return Err(DropReason::InnerTruncated);
    }
    Ok(Meta {
        endpoint: EndpointId(u64::from_be_bytes(endpoint)),
        attachment: u64::from_be_bytes(attachment),
        cookie,
        cookie_at,
        header_bytes: packet.header_bytes(),
        family,
    })
}

fn exactly<const N: usize>(data: &[u8]) -> Result<[u8; N], DropReason> {
    data.try_into().map_err(|_| DropReason::OptionBadLength)
}

fn put_once<T>(place: &mut Option<T>, value: T) -> Result<(), DropReason> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(DropReason::OptionDuplicate),
    }
}

/// The values of the usual header, for whoever plays the load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// See [`Meta::endpoint`].
    pub endpoint: EndpointId,
    /// See [`Meta::attachment`].
    pub attachment: u64,
    /// See [`Meta::cookie`].
    pub cookie: [u8; 4],
    /// See [`Meta::family`].
    pub family: Family,
}

impl From<&Meta> for Repr {
    fn from(meta: &Meta) -> Self {
        Self {
            endpoint: meta.endpoint,
            attachment: meta.attachment,
            cookie: meta.cookie,
            family: meta.family,
        }
    }
}

impl Repr {
    /// The header as AWS's load balancer sends it, VNI 0.
    pub fn emit(&self) -> [u8; USUAL_HEADER_BYTES] {
        let mut header = [0; USUAL_HEADER_BYTES];
        let fixed = geneve::Repr {
            option_bytes: USUAL_HEADER_BYTES - geneve::FIXED_BYTES,
            oam: false,
            critical: false,
            protocol_type: match self.family {
                Family::V4 => ETHERTYPE_IPV4,
                Family::V6 => ETHERTYPE_IPV6,
            },
            vni: geneve::Vni::default(),
            reserved: [0; 2],
        };
        header[..geneve::FIXED_BYTES].copy_from_slice(&fixed.emit());
        let mut end = geneve::FIXED_BYTES;
        for (kind, data) in [
            (ENDPOINT, &self.endpoint.0.to_be_bytes()[..]),
            (ATTACHMENT, &self.attachment.to_be_bytes()[..]),
            (COOKIE, &self.cookie[..]),
        ] {
            let class = Profile::AWS.class;
            end += OptionRepr { class, kind, data }.emit(&mut header[end..]);
        }
        header
    }
}

#[cfg(test)]
mod tests;
