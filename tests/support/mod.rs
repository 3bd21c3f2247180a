//! What the tests stand on: labs of namespaces, the program under test, packets, waiting.
//!
//! Tests need root, `/dev/net/tun` and the tools of [`tools`]; without them they fail and say
//! what is missing. Every test has namespaces of its own, so tests run in parallel. Nothing here
//! sleeps for a fixed time: [`clock::wait_for`] polls until a deadline.

pub(crate) mod books;
pub(crate) mod browser;
pub(crate) mod clock;
pub(crate) mod craft;
pub(crate) mod crowd;
pub(crate) mod engine;
pub(crate) mod exposition;
pub(crate) mod freeze;
pub(crate) mod injector;
pub(crate) mod inspectors;
pub(crate) mod kernel_state;
pub(crate) mod lab;
pub(crate) mod ledger;
pub(crate) mod mirror;
pub(crate) mod nfqueue;
pub(crate) mod outside;
pub(crate) mod packets;
pub(crate) mod process;
pub(crate) mod random;
pub(crate) mod scratch;
pub(crate) mod seccomp;
pub(crate) mod segmented;
pub(crate) mod service_manager;
pub(crate) mod simulator;
pub(crate) mod sniffer;
pub(crate) mod streams;
pub(crate) mod tools;
pub(crate) mod traffic;
pub(crate) mod unit;
pub(crate) mod vitals;
