//! A simulated Gateway Load Balancer (GWLB): what AWS puts around a real target, in namespaces.
//!
//! ```text
//!  client namespace ── TUN ─┐                               ┌─ target namespace: gwlbtun
//!                           ├── this simulator ── veth ─────┤
//!  server namespace ── TUN ─┘   (gwlb namespace)            └─ answers go back the same way
//! ```
//!
//! That is one arm; with two, the server is outside and the target reaches it by a link of its
//! own ([`outside`]).
//!
//! A packet that a host sends is encapsulated exactly as AWS does it and sent to the target; a
//! datagram that comes back is checked against AWS's rules, and only if it keeps all of them its
//! packet is delivered to the other host. A broken rule is counted under the name of the
//! `CloudWatch` metric that would count it.
//!
//! The simulator shares no code with the program: a mistake in `src/wire` must not hide behind
//! its mirror image here. Its own layouts are held to the literal bytes of [`golden`], which
//! tshark reads the same way.
//!
//! | module | what |
//! |---|---|
//! | [`layout`] | bytes: outer headers, GENEVE, inner 5-tuple, checksum |
//! | [`gwlb`] | encapsulation, the check of what returns; no I/O |
//! | [`flows`] | what it remembers of a flow |
//! | [`health`] | what nodes think of the target, and who gets a flow because of it; no I/O |
//! | [`prober`] | the nodes' health checks |
//! | [`report`] | counters, breaches, the JSON line |
//! | [`wire`] | the packet socket towards the target |
//! | [`daemon`] | the poll loop between hosts and wire |
//! | [`netns`] | namespaces, links, addresses, and the reaper that removes them |
//! | [`outside`] | the second arm: router, internet, the way back to clients |
//! | [`os`] | the few system calls that need `unsafe` |
//! | [`golden`] | datagrams as literal bytes |
//!
//! The program around it (`main`, `options`, `rehearsal`, `guide`) is for hands and for the demo.
//!
//! Limits: one target address, and no more of another target than that it sends everything back;
//! no consensus between nodes as AWS has it, each decides for itself; IPv4 outside; no loss, delay
//! or reordering of its own. Speed is what one thread with one system call per packet gives,
//! enough for some Gbit/s of 8,500-byte packets.

pub(crate) mod daemon;
pub(crate) mod flows;
pub(crate) mod golden;
pub(crate) mod gwlb;
pub(crate) mod health;
pub(crate) mod layout;
pub(crate) mod netns;
pub(crate) mod os;
pub(crate) mod outside;
pub(crate) mod prober;
pub(crate) mod report;
pub(crate) mod wire;
