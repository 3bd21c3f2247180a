//! Which worker gets a packet: the programs that say it, for both ways into a worker.
//!
//! **Every packet of a flow should be one worker's**, or a flow is reordered and workers wait for
//! each other at the flow table.
//!
//! | to | without a program | with |
//! |---|---|---|
//! | UDP socket | the kernel's hash of the outer path | [`receivers`]: hash of the flow inside |
//! | TUN queue | the kernel's hash of the flow | [`links`]: where it was written, else the hash |
//!
//! And which packets get to a worker at all: [`sources`].
//!
//! # The hash
//!
//! The same for both directions of a flow, and the same in both programs, in 32-bit numbers:
//!
//! ```text
//!   addresses = sum of the words of both addresses
//!   rest      = (protocol << 16) + source port + destination port
//!   hash      = ((rest × M1) ^ addresses) × M2
//!   worker    = (hash >> 16) mod workers
//! ```
//!
//! A sum is symmetric, and unlike an exclusive or it does not lose what both sides have in common.
//! Ports are zero where there are none to be trusted: in fragments, whichever one it is, behind
//! IPv6 extension headers, and in everything but TCP and UDP. A flow only some of whose packets
//! are such goes to two workers: packets of the two kinds may overtake each other.
//!
//! Whoever chooses addresses and ports can choose the worker: this spreads load and is no defence.

pub mod links;
pub mod receivers;
pub mod sources;

/// What the sums are multiplied with: odd, and as many ones as zeros (2³² / golden ratio; the
/// first constant of `MurmurHash3`).
const M1: u32 = 0x9e37_79b1;
const M2: u32 = 0x85eb_ca6b;

/// IPv4 and IPv6 headers without options, bytes.
const V4_BYTES: u32 = 20;
const V6_BYTES: u32 = 40;

/// Offsets in an IPv4 header (RFC 791 §3.1).
const V4_FRAGMENT: u32 = 6;
const V4_PROTOCOL: u32 = 9;
const V4_ADDRESSES: [u32; 2] = [12, 16];

/// More fragments, or not the first one.
const V4_IS_FRAGMENT: u32 = 0x3fff;

/// Offsets in an IPv6 header (RFC 8200 §3).
const V6_NEXT_HEADER: u32 = 6;
const V6_ADDRESSES: [u32; 8] = [8, 12, 16, 20, 24, 28, 32, 36];

/// Protocols with ports (IANA protocol numbers).
const TCP: u32 = 6;
const UDP: u32 = 17;

/// Both ports together, bytes.
const PORTS_BYTES: u32 = 4;

/// `workers` as a program has it.
fn modulus(workers: usize) -> u32 {
    u32::try_from(workers.max(1)).expect("a TUN has 256 queues")
}

#[cfg(test)]
mod tests;
