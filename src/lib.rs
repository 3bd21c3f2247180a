//! gwlbtun: GENEVE packets of an AWS Gateway Load Balancer become two TUN interfaces per
//! endpoint, and come back.
//!
//! ```text
//!           outer UDP 6081                                  outer UDP, addresses swapped
//!  GWLB ─────────────────────▶ worker i: UDP socket i  ◀ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ┐
//!                                 │ decap: header → endpoint → learn the flow
//!                                 ▼                                                │
//!                              gwi queue i ══ kernel: tc, nft, routes, IDS ══▶ gwo queue k
//!                                                                                  │
//!                              worker k: read → find the flow → header back on ────┘
//! ```
//!
//! With the program of [`steering`] k is i for all that the kernel sends straight back. Without it,
//! and for what comes from elsewhere, a hash of the flow picks k, so it may be another worker's.
//!
//! One worker is one thread on one core with one io_uring, one UDP socket and one queue of every
//! TUN. A control thread makes endpoints, runs hooks and answers health checks; a netdev thread
//! owns links. They exchange messages; nobody waits for anybody else's I/O.
//!
//! # Layers
//!
//! A module imports from layers below its own only; `tests/tidy.rs` holds this table.
//!
//! | layer | modules | must not contain |
//! |---|---|---|
//! | 0 | [`types`], [`wire`] | system calls, clocks, unsafe but for vectors |
//! | 1 | [`flow`], [`stats`], [`log`], [`cli`] | packet I/O |
//! | 2 | [`path`], [`sys`] | path: I/O and clocks; sys: packets |
//! | 3 | [`uring`], [`settings`] | packet knowledge |
//! | 3 | [`steering`] | system calls of its own |
//! | 4 | [`worker`], [`control`] | worker: allocation after start, logs |
//! | 5 | [`engine`] | packet bytes |
//!
//! `unsafe` lives in `sys` and `uring`, and in `wire/checksum/simd.rs` for vector instructions.
//!
//! # Reading order
//!
//! [`wire::gwlb`] (what a datagram says), [`path`] (what is done about it), [`worker`] (the loop),
//! [`uring`] (who owns which buffer), [`flow`] (how a packet finds its way back), then
//! [`control`].

pub mod cli;
pub mod control;
pub mod engine;
pub mod flow;
pub mod log;
pub mod path;
pub mod settings;
pub mod stats;
pub mod steering;
pub mod sys;
pub mod types;
pub mod uring;
pub mod wire;
pub mod worker;
