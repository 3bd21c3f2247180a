//! Counters: who writes them, and what they look like when they are read.
//!
//! A *cell* belongs to one writer, the worker, which bumps plain relaxed atomics on cache lines
//! of its own; nobody else ever writes it. The control thread allocates the cells and reads them
//! into *snapshots*, which are ordinary numbers. The health page and the log know snapshots only.
//!
//! Units are inner packets and their bytes (IP header and everything behind it) unless a counter
//! says otherwise.

mod cell;
mod exposition;
mod histogram;
mod history;
mod hooks;
mod page;
pub mod render_json;
pub mod render_metrics;
pub mod render_text;
pub mod report;
mod snapshot;

pub use cell::Counter;
pub use cell::Drops;
pub use cell::EndpointCell;
pub use cell::FlowCounters;
pub use cell::Gauge;
pub use cell::Stamp;
pub use cell::Traffic;
pub use cell::WorkerCell;
pub use exposition::Exposition;
pub use histogram::Histogram;
pub use histogram::HistogramSnapshot;
pub use history::History;
pub use history::Picture;
pub use hooks::HookActionRow;
pub use hooks::HookResult;
pub use hooks::HooksRow;
pub use page::EndpointRow;
pub use page::NicRow;
pub use page::Others;
pub use page::Page;
pub use page::QueueRow;
pub use page::SteeringRow;
pub use page::WorkerRow;
pub use snapshot::DropsSnapshot;
pub use snapshot::EndpointSnapshot;
pub use snapshot::FlowsSnapshot;
pub use snapshot::TrafficSnapshot;
pub use snapshot::WorkerSnapshot;
