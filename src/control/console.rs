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

use std::io;
use std::os::unix::net::UnixListener as Listening;
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

use crate::log::Level;
use crate::log::Log;
use crate::log::Section;
use crate::sys;
use crate::sys::abstract_socket;
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

/// What answers a request.
pub(super) type Answers = Box<dyn Fn(Request) -> Answer>;

/// Takes the name of the socket, in the network namespace of the calling thread.
///
/// # Errors
/// `EADDRINUSE` when another process has it.
pub(super) fn listen() -> Result<Listening, sys::Error> {
    abstract_socket::listen(CONTROL_SOCKET)
}

/// Answers on the calling thread's runtime until that ends.
pub(super) fn serve(listener: Listening, answers: Answers, log: Log) -> io::Result<()> {
    let listener = UnixListener::from_std(listener)?;
    tokio::task::spawn_local(accept(listener, Rc::new(answers), log));
    Ok(())
}

async fn accept(listener: UnixListener, answers: Rc<Answers>, log: Log) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::task::spawn_local(converse(stream, Rc::clone(&answers), place));
            }
            Err(error) => {
                log.event(
                    Section::Core,
                    Level::Important,
                    "control_accept_failed",
                    format_args!("accepting a connection to the control socket failed: {error}"),
                );
                time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection, which has one request.
async fn converse(mut stream: UnixStream, answers: Rc<Answers>, _place: OwnedSemaphorePermit) {
    let answer = match refuse(&stream) {
        Some(refusal) => Answer::refusal(refusal),
        None => match time::timeout(REQUEST_TIME, read_line(&mut stream)).await {
            Ok(Some(line)) => match line.parse() {
                Ok(request) => answers(request),
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
