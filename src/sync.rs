//! What threads share memory through: atomics, locks, and the channel of a mailbox.
//!
//! aarch64 lets others see a thread's loads and stores in another order, as `x86_64` hardly does.
//! So `Relaxed` stands only where nobody concludes anything about other memory from the value:
//! counters, gauges, flags that are looked at again, numbers that one word holds whole. Where a
//! value says that others are there too, a lock or a channel carries it, or the pair of fences of
//! `stats::WorkerCell::end_turn`; and the kernel's rings have release and acquire of their own.
//!
//! These are the standard library's and crossbeam's. In a build with `--cfg gwlbtun_loom` they
//! are loom's, which runs a model (`tests/models.rs`) under every order of the threads' steps
//! that the memory model allows. The name of the switch is our own: tokio has a meaning for
//! `--cfg loom`, and does not build as a dependency with it.

#[cfg(gwlbtun_loom)]
mod model;
mod pace;

#[cfg(not(gwlbtun_loom))]
pub use crossbeam_channel::Receiver;
#[cfg(not(gwlbtun_loom))]
pub use crossbeam_channel::Sender;
#[cfg(not(gwlbtun_loom))]
pub use crossbeam_channel::TrySendError;
#[cfg(not(gwlbtun_loom))]
pub use crossbeam_channel::bounded;
#[cfg(gwlbtun_loom)]
pub use loom::sync::Mutex;
#[cfg(gwlbtun_loom)]
pub use loom::sync::MutexGuard;
#[cfg(gwlbtun_loom)]
pub use loom::sync::atomic::AtomicBool;
#[cfg(gwlbtun_loom)]
pub use loom::sync::atomic::fence;
#[cfg(not(gwlbtun_loom))]
pub use std::sync::Mutex;
#[cfg(not(gwlbtun_loom))]
pub use std::sync::MutexGuard;
#[cfg(not(gwlbtun_loom))]
pub use std::sync::OnceLock;
#[cfg(not(gwlbtun_loom))]
pub use std::sync::atomic::AtomicBool;
#[cfg(not(gwlbtun_loom))]
pub use std::sync::atomic::AtomicU32;
#[cfg(not(gwlbtun_loom))]
pub use std::sync::atomic::AtomicU64;
#[cfg(not(gwlbtun_loom))]
pub use std::sync::atomic::AtomicUsize;
pub use std::sync::atomic::Ordering;
#[cfg(not(gwlbtun_loom))]
pub use std::sync::atomic::fence;

#[cfg(gwlbtun_loom)]
pub use self::model::AtomicU32;
#[cfg(gwlbtun_loom)]
pub use self::model::AtomicU64;
#[cfg(gwlbtun_loom)]
pub use self::model::AtomicUsize;
#[cfg(gwlbtun_loom)]
pub use self::model::OnceLock;
#[cfg(gwlbtun_loom)]
pub use self::model::Receiver;
#[cfg(gwlbtun_loom)]
pub use self::model::Sender;
#[cfg(gwlbtun_loom)]
pub use self::model::TrySendError;
#[cfg(gwlbtun_loom)]
pub use self::model::WakeCount;
#[cfg(gwlbtun_loom)]
pub use self::model::bounded;
pub use self::pace::Pace;
