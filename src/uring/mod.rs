//! io_uring: one ring per worker, and who owns what the kernel works on.
//!
//! | file | duty | knows the kernel |
//! |---|---|---|
//! | `token` | what a completion is about, in 64 bits | no |
//! | `leases` | which buffer is the kernel's, ours or free | no |
//! | `slots` | which operation is in flight | no |
//! | `stream` | life of a multishot operation | no |
//! | `errno` | what each errno of each operation means | numbers only |
//! | `ring` | set-up, submission, completion | yes |
//! | `buffers` | a provided buffer ring and its memory | yes |
//! | `received` | what precedes a received datagram | its layout only |
//! | `operations` | the memory of writes and sends in flight | yes |
//! | `pieces` | datagrams cut out of what is gathered | no |
//! | `driver` | everything a worker does with its ring | yes |
//!
//! Nothing here knows a packet. Ownership rules, from which every SAFETY note follows:
//!
//! 1. A buffer is *offered* (the kernel may write it), *held* (we, or operations in flight, read
//!    it) or *free*. Only a held buffer with no operation in flight is ever written by us.
//! 2. A slot owns the message header, the I/O vector and the leases of one operation from the
//!    push of its entry to its last completion.
//! 3. The ring is dropped before the memory that it was told about (field order of `Driver`).

mod buffers;
mod driver;
mod errno;
mod leases;
mod operations;
pub mod pieces;
pub mod received;
mod ring;
mod slots;
mod stream;
mod token;
mod watch;

pub use buffers::GroupPlan;
pub use driver::Completion;
pub use driver::Driver;
pub use driver::DriverPlan;
pub use driver::SenderId;
pub use driver::queue_number;
pub use driver::queue_of;
pub use errno::Verdict;
pub use errno::may_go_singly;
pub use errno::verdict;
pub use operations::Ended;
pub use operations::Sending;
pub use ring::Features;
pub use stream::Stream;
pub use token::Operation;
pub use token::Token;
