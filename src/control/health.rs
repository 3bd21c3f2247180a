//! The health port: what a load balancer asks whether to send flows here.
//!
//! ```text
//! client ──TCP──▶ gate (control thread) ──private Unix socket──▶ tiny_http ──▶ page
//!                                                                   ▲
//!                           control ── snapshot ──▶ board ──────────┘
//! ```
//!
//! The page is rendered from a snapshot on the board, never from live state, so no request holds
//! up the program and none has side effects.

mod backend;
mod crowd;
mod gate;
pub mod http;
mod private_socket;
pub(super) mod verdict;

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use crate::log::Log;
use crate::settings::HealthSettings;
use crate::stats::Page;
use crate::sys;
use gate::Gate;

/// Where control publishes the page and the web server finds it.
#[derive(Debug, Default)]
pub(super) struct Board(Mutex<Arc<Page>>);

impl Board {
    /// The page last published.
    pub(super) fn page(&self) -> Arc<Page> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the page.
    pub(super) fn publish(&self, page: Page) {
        let page = Arc::new(page);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = page;
    }
}

/// Takes the health port, before anything else of the program runs.
///
/// # Errors
/// See [`sys::listener::listen_everywhere`].
pub fn bind(port: u16) -> Result<std::net::TcpListener, sys::Error> {
    sys::listener::listen_everywhere(port)
}

/// Serves the port on the calling thread's runtime until that ends. `refresh` is called before
/// each answer, and brings the board up to date.
pub(super) fn serve(
    listener: std::net::TcpListener,
    settings: HealthSettings,
    board: Arc<Board>,
    refresh: Box<dyn Fn()>,
    log: Log,
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let gate = Rc::new(Gate::new(settings, board, refresh, log)?);
    tokio::task::spawn_local(gate.run(listener));
    Ok(())
}

#[cfg(test)]
mod tests;
