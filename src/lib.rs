//! gwlbtun: GENEVE packets of an AWS Gateway Load Balancer become two TUN interfaces per
//! endpoint, and come back.
//!
//! ```text
//!           outer UDP 6081                                  outer UDP, addresses swapped
//!  GWLB ─────────────────────▶ worker i: UDP socket i  ◀ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ┐
//!                                 │ decap: header → endpoint → learn the flow → merge
//!                                 ▼                                                │
//!                              gwi queue i ══ kernel: tc, nft, routes, IDS ══▶ gwo queue k
//!                                                                                  │
//!                       worker k: read → find the flow → cut → header back on ─────┘
//! ```
//!
//! Packets of one flow that arrive together cross the kernel as one frame, a *super-packet* of up
//! to 64 packets, and answers of one outer path leave in one send. Outside nothing of it is seen.
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
//! | 0 | [`sync`], [`types`], [`wire`] | system calls, clocks, unsafe but for vectors |
//! | 1 | [`flow`], [`stats`], [`log`], [`cli`] | packet I/O |
//! | 2 | [`path`], [`sys`] | path: I/O and clocks; sys: packets |
//! | 3 | [`uring`], [`settings`] | packet knowledge |
//! | 3 | [`steering`] | system calls of its own |
//! | 4 | [`worker`], [`control`] | worker: allocation after start, logs |
//! | 5 | [`engine`] | packet bytes |
//! | 5 | [`client`] | anything of the daemon: it is another process |
//! | 6 | [`doctor`] | anything that changes the host |
//!
//! `unsafe` lives in `sys` and `uring`, and in `wire/checksum/simd.rs` for vector instructions.
//!
//! # Reading order
//!
//! | read | to learn |
//! |---|---|
//! | [`wire::gwlb`] | what a datagram says |
//! | [`wire::gro`], [`wire::gso`] | which packets may be merged, and how they are cut again |
//! | [`path`]: `decap`, `encap` | what is done about a packet |
//! | [`path`]: `coalesce`, `sends`, both on a `batch` | what leaves together, each way |
//! | [`worker`] | the loop |
//! | [`worker`]: `senders` with `sources` and `socket` | from where an answer leaves, in order |
//! | [`uring`] | who owns which buffer; its `pieces` cut datagrams out of gathered memory |
//! | [`flow`] | how a packet finds its way back |
//! | [`steering`] | which worker gets a packet |
//! | [`worker`]: `outer_paths`, [`control::spread`] | what shows that workers have no work |
//! | [`engine`]: `offload`, `spreading` | what of all that this kernel has, tried at the start |
//! | [`control`] | the life of an endpoint, hooks, the health page |
//! | [`stats::report`], [`client`] | what `gwlbtun status` says, and how it is asked |
//! | [`stats::History`], `control/health/live.html` | what the live page draws |
//! | [`doctor`] | what is looked at before it runs |

pub mod cli;
pub mod client;
pub mod control;
pub mod doctor;
pub mod engine;
pub mod flow;
pub mod log;
pub mod path;
pub mod settings;
pub mod stats;
pub mod steering;
pub mod sync;
pub mod sys;
pub mod types;
pub mod uring;
pub mod wire;
pub mod worker;
