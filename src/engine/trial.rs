//! Parts of the start by themselves, for whoever wants to know before whether it would succeed.
//! They leave nothing behind but raised soft limits of this process.

use std::net::SocketAddr;

use super::StartError;
use super::divide_open_files;
use super::driver_plan;
use super::no_metrics_port;
use super::no_ring;
use super::no_tun;
use super::offload as offloads;
use crate::control::health;
use crate::settings::Settings;
use crate::sys::limits;
use crate::uring::Features;

/// What the rings of the workers would be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rings {
    /// What this kernel's io_uring has.
    pub features: Features,
    /// How much memory may be locked, bytes, if that is limited.
    pub locked_bytes: Option<u64>,
    /// Whether that makes them smaller than they would be.
    pub are_small: bool,
}

/// Divides the open files of this process; what they do not carry is taken from the settings, with
/// a warning there.
///
/// # Errors
/// When they do not carry one endpoint.
pub fn open_files(settings: &mut Settings) -> Result<(), StartError> {
    let limit = limits::raise_open_files()?.limit;
    divide_open_files(limit, settings).map(drop)
}

/// Tries a ring, and reckons with the memory that may be locked.
///
/// # Errors
/// When there is none, or no memory for the smallest.
pub fn rings(settings: &Settings, ram_bytes: u64) -> Result<Rings, StartError> {
    let budget = divide_open_files(limits::open_files()?, &mut settings.clone())?;
    let locked_bytes = limits::raise_locked_memory()?;
    let workers = settings.workers.len();
    let features = Features::probe().map_err(|error| no_ring(error, locked_bytes, workers))?;
    let plan = driver_plan(features, budget, locked_bytes, settings, ram_bytes)?;
    let full = driver_plan(features, budget, None, settings, ram_bytes)?;
    let are_small = plan.submissions < full.submissions;
    Ok(Rings { features, locked_bytes, are_small })
}

/// Listens at the address of the metrics for a moment.
///
/// # Errors
/// When another program has the port there, or this host has no such address.
pub fn metrics_port(address: SocketAddr) -> Result<(), StartError> {
    health::bind_metrics(address).map(drop).map_err(no_metrics_port)
}

/// Makes an interface for a moment, and leaves of the offloads asked for those that the kernel has.
///
/// # Errors
/// When no interface can be made.
pub fn offload(settings: &mut Settings) -> Result<(), StartError> {
    offloads::probe(settings).map_err(no_tun)
}
