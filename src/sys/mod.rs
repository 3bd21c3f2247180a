//! System calls, one kernel object per file. Nothing here knows what a packet is, and nothing
//! logs: every call returns an [`Error`] that names the call, its subject and the errno.

pub mod abstract_socket;
pub mod affinity;
pub mod bpf;
pub mod clock;
mod error;
pub mod ethtool;
mod eventfd;
pub mod fds;
pub mod limits;
pub mod link;
pub mod listener;
mod memory;
pub mod process;
mod readiness;
pub mod service_manager;
pub mod tun;
pub mod udp;
pub mod wall_clock;

pub use error::Errno;
pub use error::Error;
pub use eventfd::EventFd;
pub use memory::Mapping;
pub use readiness::Readiness;
