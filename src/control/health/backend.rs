//! The web server behind the gates: `tiny_http`, on a socket that only they reach.
//!
//! It starts a thread per connection without limit, waits for ever, takes heads of any size and
//! stops accepting for good at the first error. The gates keep all of that away from it: two
//! clients at most, both ours, each with one well-formed request.
//!
//! And it panics, which ends the program, if it cannot duplicate the descriptor of a connection.
//! So its threads have a table of descriptors of their own, which nobody else fills.

use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::thread::JoinHandle;

use nix::sys::socket::Shutdown;
use nix::sys::socket::shutdown;
use tiny_http::Header;
use tiny_http::Request;
use tiny_http::Response;
use tiny_http::Server;

use super::Board;
use super::private_socket::PrivateSocket;
use super::routes::Content;
use crate::settings::Compat;
use crate::settings::HealthSettings;
use crate::stats::Page;
use crate::stats::render_json;
use crate::stats::render_metrics;
use crate::stats::render_metrics::HostUsage;
use crate::stats::render_text;
use crate::sys::fds;
use crate::sys::process;

/// A running server. Dropping it ends its threads.
pub(super) struct Backend {
    listener: UnixListener,
    socket: PrivateSocket,
    thread: JoinHandle<()>,
}

impl Backend {
    /// Starts the server; it shows what is on `board`.
    pub(super) fn start(health: Option<HealthSettings>, board: Arc<Board>) -> io::Result<Self> {
        Self::start_named("gwlbtun http", health, board)
    }

    fn start_named(
        name: &str,
        health: Option<HealthSettings>,
        board: Arc<Board>,
    ) -> io::Result<Self> {
        let (listener, socket) = PrivateSocket::listen()?;
        let number = listener.as_raw_fd();
        let (starting, started) = crossbeam_channel::bounded(1);
        // The server's own threads inherit the name of the one that starts it.
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let server = match serve(number) {
                Ok(server) => server,
                Err(error) => {
                    let _ = starting.send(Err(error));
                    return;
                }
            };
            let _ = starting.send(Ok(()));
            // An error is the end of its accept thread, and thereby of the server.
            while let Ok(request) = server.recv() {
                answer(request, health, &board);
            }
        })?;
        // Until then the listener is there.
        started.recv().map_err(io::Error::other)??;
        Ok(Self { listener, socket, thread })
    }

    /// Whether it has not ended of itself.
    pub(super) fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }

    /// The path of its socket.
    pub(super) fn path(&self) -> PathBuf {
        self.socket.path()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // The accept thread gets EINVAL and ends, and passes its error on to the other thread.
        // It fails only for a socket that does not listen.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
    }
}

/// Starts the server's own threads, which share the table of descriptors of this one.
fn serve(listener: RawFd) -> io::Result<Server> {
    let listener = fds::own_table_with(listener)
        .map_err(|error| io::Error::from_raw_os_error(error.errno as i32))?;
    Server::from_listener(UnixListener::from(listener), None).map_err(io::Error::other)
}

fn answer(request: Request, health: Option<HealthSettings>, board: &Board) {
    let page = board.page();
    let (status, kind, body) = match (Content::at_inner_path(request.url()), health) {
        (Some(Content::Health), Some(settings)) => health_page(&page, settings),
        (Some(Content::Metrics(exposition)), _) => {
            let host = HostUsage {
                process: process::usage(),
                workers: page
                    .workers
                    .iter()
                    .map(|worker| process::thread_usage(worker.thread_id))
                    .collect(),
            };
            (200, exposition.media_type(), render_metrics::render(&page, host, exposition))
        }
        (Some(Content::Picture), _) => (200, "application/json", board.picture().to_json()),
        // The gates ask for nothing else.
        (Some(Content::Health), None) | (None, _) => (404, "text/plain", String::new()),
    };
    let kind = Header::from_bytes("Content-Type", kind).expect("plain ASCII");
    let response = Response::from_string(body)
        .with_status_code(status)
        .with_header(kind)
        // The gate wants the length first, however long the page is.
        .with_chunked_threshold(usize::MAX);
    // Only the gate could hear of an error, and it is the gate that went away.
    let _ = request.respond(response);
}

/// Status, media type and body of the health page.
fn health_page(page: &Page, settings: HealthSettings) -> (u16, &'static str, String) {
    let render = match (settings.json, settings.compat) {
        (true, Compat::V3_0) => render_json::render,
        (true, Compat::V3_2) => render_json::render_v3_2,
        (false, Compat::V3_0) => render_text::render,
        (false, Compat::V3_2) => render_text::render_v3_2,
    };
    let body = if settings.body { render(page) } else { String::new() };
    let kind = if settings.json { "application/json" } else { "text/html" };
    (if page.healthy { 200 } else { 503 }, kind, body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn http_threads() -> usize {
        let names = fs::read_dir("/proc/self/task").unwrap();
        names
            .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .filter(|name| name.starts_with("test-backend"))
            .count()
    }

    #[test]
    fn its_threads_end_with_it() {
        let backend = Backend::start_named("test-backend", None, Arc::default()).unwrap();
        while http_threads() < 2 {
            thread::yield_now();
        }
        drop(backend);
        while http_threads() > 0 {
            thread::yield_now();
        }
    }
}
