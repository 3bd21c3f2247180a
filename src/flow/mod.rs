//! Flows: which GENEVE header a packet from the host needs to find its way back.
//!
//! The load balancer teaches: each datagram it sends carries a header, and the program stores it
//! under the inner 5-tuple, one header per direction. A packet that returns from the host takes
//! the header last received for its own direction, else the other direction's.
//!
//! ```text
//! FlowKey ──KeyHasher──▶ hash ─┬─ bits 32.. ──▶ shard (one mutex)
//!                              └─ low and top bits ──▶ its index ──▶ place in its IPv4 slab
//!                                                                    or in its IPv6 slab
//! ```
//!
//! | module | holds |
//! |---|---|
//! | `template` | headers without their cookie, once per endpoint |
//! | `key` | the canonical key and its seeded hash |
//! | `entry` | what a flow remembers: the bytes of an entry and the rules for its headers |
//! | `shares` | flows per endpoint, and whose go first when the table is full |
//! | `shard` | index, slabs and clock hands of one shard: eviction and expiry |
//! | `table` | all shards, their locks and the bound on their sum |
//!
//! This layer has no clock ([`Moment`](crate::types::Moment) comes in) and makes no system call
//! but one: [`HashSeed::random`] asks the kernel for 16 bytes at start.

mod entry;
mod key;
mod shard;
mod shares;
mod table;
mod template;

pub use entry::Sources;
pub use entry::StoredHeader;
pub use key::FlowKey;
pub use key::HashSeed;
pub use key::Way;
pub use shard::Removed;
pub use shard::Ttl;
pub use table::FlowTable;
pub use table::Learned;
pub use table::TablePlan;
pub use table::Tally;
pub use template::COOKIE_BYTES;
pub use template::HEADER_BYTES_MAX;
pub use template::TemplateId;
pub use template::Templates;
