//! Those who look at a fleet, all at once: a scraper, somebody with the live page open, somebody
//! who repeats `status`. What they cost the packets, the pairs of `--watch` say.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::lab;
use crate::lab::Failure;
use crate::lab::Host;
use crate::lab::Lab;
use crate::measure::pause;
use crate::target;

/// Port of metrics and live page.
const METRICS_PORT: u16 = 9608;

/// What makes the engine listen there.
pub(crate) const ARGUMENT: &str = "--metrics-listen=9608";

/// How often the metrics are scraped: the shortest interval in use, where 15 s is common.
const SCRAPES_EVERY: u32 = 5;

/// How often the live page asks for its data.
const DATA_EVERY: u32 = 2;

/// How often somebody asks for the status.
const STATUS_EVERY: u32 = 5;

/// The running watcher.
#[derive(Debug)]
pub(crate) struct Watcher {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u32, Failure>>,
}

impl Watcher {
    /// Starts looking, from the sender's core.
    pub(crate) fn start(lab: &Arc<Lab>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (lab, shared) = (Arc::clone(lab), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            lab::pin(lab::SENDER_CORE)?;
            let mut seconds = 0;
            while !shared.load(Ordering::Relaxed) {
                look(&lab, seconds)?;
                seconds += 1;
                pause(Duration::from_secs(1));
            }
            Ok(seconds)
        });
        Self { stop, thread }
    }

    /// Ends it.
    ///
    /// # Errors
    /// An answer was wrong, or it had less than `seconds` to look.
    pub(crate) fn stop(self, seconds: u16) -> Result<(), Failure> {
        self.stop.store(true, Ordering::Relaxed);
        let looked = self.thread.join().map_err(|_| "the watcher panicked")??;
        if looked < u32::from(seconds) {
            return Err(format!("watched for {looked} s of {seconds}").into());
        }
        Ok(())
    }
}

/// All that is asked for in a second.
fn look(lab: &Arc<Lab>, second: u32) -> Result<(), Failure> {
    let pages = [
        (SCRAPES_EVERY, "/metrics", "gwlbtun_dropped_packets_total"),
        (DATA_EVERY, "/ui/data", "\"workers\""),
    ];
    for (every, path, content) in pages {
        if !second.is_multiple_of(every) {
            continue;
        }
        let answer = target::get(lab, METRICS_PORT, path)?;
        if !answer.starts_with("HTTP/1.1 200") || !answer.contains(content) {
            return Err(format!("{path} is answered with {answer}").into());
        }
    }
    if !second.is_multiple_of(STATUS_EVERY) {
        return Ok(());
    }
    let mut command = lab.command(Host::Target, lab::SENDER_CORE)?;
    let output = command.arg(env!("CARGO_BIN_EXE_gwlbtun")).args(["status", "--json"]).output()?;
    // 1: a flood fills the socket's queue, and the status says so.
    if !matches!(output.status.code(), Some(0 | 1)) {
        return Err(format!("status --json ended with {}", output.status).into());
    }
    let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    if status["schema_version"].is_null() {
        return Err(format!("the status is {status}").into());
    }
    Ok(())
}
