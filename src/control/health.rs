//! The ports that tell the state of the program: the health port, which a load balancer asks
//! whether to send flows here, and the metrics port.
//!
//! ```text
//! client ──TCP──▶ gate (control thread) ──private Unix socket──▶ tiny_http ──▶ page
//!                                                                   ▲
//!                           control ── snapshot ──▶ board ──────────┘
//! ```
//!
//! Each port has a gate of its own, and they share the web server. All pages are rendered from a
//! snapshot on the board, never from live state, so no request holds up the program and none has
//! side effects. What the live page draws is another snapshot there, made every two seconds.

mod backend;
mod crowd;
mod gate;
pub mod http;
mod pages;
mod private_socket;
mod routes;
pub(super) mod verdict;

use std::io;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use crate::log::Log;
use crate::settings::HealthSettings;
use crate::stats::Page;
use crate::stats::Picture;
use crate::sys;
use gate::Gate;
use pages::Pages;
use routes::Site;

/// Where control publishes what the web server shows.
#[derive(Debug, Default)]
pub(super) struct Board {
    page: Place<Page>,
    picture: Place<Picture>,
}

impl Board {
    /// The page last published.
    pub(super) fn page(&self) -> Arc<Page> {
        self.page.get()
    }

    /// Replaces the page.
    pub(super) fn publish(&self, page: Page) {
        self.page.set(page);
    }

    /// What the live page draws, as last published.
    pub(super) fn picture(&self) -> Arc<Picture> {
        self.picture.get()
    }

    /// Replaces that.
    pub(super) fn publish_picture(&self, picture: Picture) {
        self.picture.set(picture);
    }
}

/// The latest of something.
#[derive(Debug, Default)]
struct Place<T>(Mutex<Arc<T>>);

impl<T> Place<T> {
    fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, value: T) {
        // The one before is freed when nobody holds the lock.
        let mut value = Arc::new(value);
        std::mem::swap(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), &mut value);
    }
}

/// Takes the health port, before anything else of the program runs.
///
/// # Errors
/// See [`sys::listener::listen_everywhere`].
pub fn bind(port: u16) -> Result<TcpListener, sys::Error> {
    sys::listener::listen_everywhere(port)
}

/// Takes the metrics port likewise.
///
/// # Errors
/// See [`sys::listener::listen_at`].
pub fn bind_metrics(address: SocketAddr) -> Result<TcpListener, sys::Error> {
    sys::listener::listen_at(address)
}

/// The ports that there are.
#[derive(Debug)]
pub struct Ports {
    /// From [`bind`].
    pub health: Option<TcpListener>,
    /// From [`bind_metrics`].
    pub metrics: Option<TcpListener>,
}

/// Serves the ports on the calling thread's runtime until that ends. `refresh` is called before
/// each answer, and brings the board up to date.
pub(super) fn serve(
    ports: Ports,
    settings: Option<HealthSettings>,
    board: Arc<Board>,
    refresh: Box<dyn Fn()>,
    log: &Log,
) -> io::Result<()> {
    let listeners = [(Site::Health, ports.health), (Site::Metrics, ports.metrics)];
    if listeners.iter().all(|(_, listener)| listener.is_none()) {
        return Ok(());
    }
    let pages = Rc::new(Pages::new(settings, board, refresh, log.clone())?);
    for (site, listener) in listeners {
        let Some(listener) = listener else { continue };
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let gate = Rc::new(Gate::new(site, Rc::clone(&pages), log.clone()));
        tokio::task::spawn_local(gate.run(listener));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
