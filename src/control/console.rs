//! The control socket, which answers `gwlbtun status` and `gwlbtun show`.
//!
//! | bound | value |
//! |---|---|
//! | who | root, and the user of this process; others get one line and nothing is read of them |
//! | connections | 8 at a time; others wait in the kernel, 64 of them |
//! | request | one line of [`REQUEST_BYTES_MAX`] bytes, complete within 2 s |
//! | taking the answer | 5 s |
//!
//! An answer is rendered from the page that the health port shows too, which is made anew ten times
//! a second at most, so no request costs a worker anything. Nothing that is asked changes anything.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncBufReadExt;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::BufReader;
use tokio::net::UnixListener;
use tokio::net::UnixStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::time;

use super::Control;
use crate::log::LogEvent;
use crate::log::Value;
use crate::stats::report::Report;
use crate::sys::abstract_socket;
use crate::sys::clock;
use crate::sys::fds;
use crate::sys::limits;
use crate::types::request::Answer;
use crate::types::request::CONTROL_SOCKET;
use crate::types::request::REQUEST_BYTES_MAX;
use crate::types::request::Request;

/// Connections at a time.
const CONNECTIONS_MAX: usize = 8;

/// Time for a request.
const REQUEST_TIME: Duration = Duration::from_secs(2);

/// Time for the client to take the answer.
const WRITE_TIME: Duration = Duration::from_secs(5);

/// Pause after a failed accept: no descriptor is left, for the most part.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Opens the socket, if it is not open. Without it the program serves as well, and tells less. It
/// is tried again each second: a predecessor that is still ending may have the name.
pub(super) fn open(control: &Rc<Control>) {
    if control.console_open.get() {
        return;
    }
    let opened = abstract_socket::listen(CONTROL_SOCKET).map_err(|error| error.to_string());
    let opened = opened
        .and_then(|listener| UnixListener::from_std(listener).map_err(|error| error.to_string()));
    let mut status = control.status.borrow_mut();
    match opened {
        Ok(listener) => {
            control.console_open.set(true);
            tokio::task::spawn_local(accept(listener, Rc::clone(control)));
            if status.set_no_console(None) {
                let again = format_args!("gwlbtun status and show can reach this process again.");
                control.log.line(LogEvent::ControlSocketOpen, &[], again);
            }
        }
        Err(error) => {
            let problem = format!(
                "gwlbtun status and show cannot reach this process: {error}; see ss -xlp src \
                 @{CONTROL_SOCKET} for who has the name"
            );
            if !status.set_no_console(Some(problem.clone())) {
                let text = format_args!("{problem}.");
                control.log.line(LogEvent::ControlSocketTaken, &[], text);
            }
        }
    }
}

async fn accept(listener: UnixListener, control: Rc<Control>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::task::spawn_local(converse(stream, Rc::clone(&control), place));
            }
            Err(error) => {
                control.log.event(
                    LogEvent::ControlAcceptFailed,
                    &[("reason", Value::Text(&error))],
                    format_args!("accepting a connection to the control socket failed: {error}"),
                );
                time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection, which has one request.
async fn converse(mut stream: UnixStream, control: Rc<Control>, _place: OwnedSemaphorePermit) {
    let answer = match refuse(&stream) {
        Some(refusal) => Answer::refusal(refusal),
        None => match time::timeout(REQUEST_TIME, read_line(&mut stream)).await {
            Ok(Some(line)) => match line.parse() {
                Ok(request) => answer(&control, request),
                Err(error) => Answer::refusal(format_args!("gwlbtun: {error}")),
            },
            // It has gone, or says nothing: nobody waits for an answer.
            Ok(None) | Err(_) => return,
        },
    };
    let text = answer.to_string();
    // Whoever does not take the answer has lost it.
    let _ = time::timeout(WRITE_TIME, stream.write_all(text.as_bytes())).await;
}

/// The answer to what was asked.
fn answer(control: &Control, request: Request) -> Answer {
    control.refresh();
    let now = clock::now();
    let recent_hooks = control.recent_hooks.borrow();
    let report = Report {
        page: &control.board.page(),
        facts: &control.facts,
        hooks: &recent_hooks.rows(now),
        hook_runs: recent_hooks.begun(),
        uptime: now.since(control.started),
        process_id: std::process::id(),
        open_files: fds::count().unwrap_or(0),
        open_files_max: limits::open_files().unwrap_or(0),
    };
    report.answer(request)
}

/// Why whoever has connected is not answered, if so.
fn refuse(stream: &UnixStream) -> Option<String> {
    let own = nix::unistd::geteuid().as_raw();
    match abstract_socket::peer(stream) {
        Ok(peer) if peer.user_id == 0 || peer.user_id == own => None,
        Ok(peer) => Some(format!(
            "gwlbtun: user {} may not ask: run it with sudo, or as user {own}, as which gwlbtun \
             runs",
            peer.user_id
        )),
        Err(error) => Some(format!("gwlbtun: {error}")),
    }
}

/// A line, unless it does not come, or is too long for a request.
async fn read_line(stream: &mut UnixStream) -> Option<String> {
    let limit = u64::try_from(REQUEST_BYTES_MAX).expect("it is small");
    let mut line = String::new();
    let mut reader = BufReader::new(stream.take(limit));
    reader.read_line(&mut line).await.ok()?;
    (!line.is_empty()).then_some(line)
}
