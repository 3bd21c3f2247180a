//! The other side of the control socket: asks the running program, and says what to do where none
//! answers.

use std::fs;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::sys;
use crate::sys::Errno;
use crate::sys::abstract_socket;
use crate::sys::abstract_socket::Peer;
use crate::sys::clock;
use crate::types::request::Answer;
use crate::types::request::CONTROL_SOCKET;
use crate::types::request::Request;

/// How long connecting may take, asking, and the whole answer: whoever has the name of the socket
/// may not let us wait for ever.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest answer, bytes: 4,096 endpoints are about 1 MiB of JSON.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Bytes of it that are read at a time.
const READ_BYTES: usize = 64 << 10;

/// What came of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// What was answered.
    pub answer: Answer,
    /// Something to tell on standard error besides.
    pub note: Option<String>,
}

/// Why there is no answer; one line each.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody has the socket's name.
    #[error("{0}")]
    NotRunning(NotRunning),
    /// Somebody has, and does not answer.
    #[error("the running gwlbtun does not answer: {0}; look at its log, and see top -H")]
    Silent(String),
}

impl AskError {
    /// The exit status.
    pub const fn exit_status(&self) -> u8 {
        match self {
            Self::NotRunning(_) => 3,
            Self::Silent(_) => Answer::REFUSED,
        }
    }
}

/// Where a program runs that is not to be reached from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotRunning {
    /// Nowhere, as far as can be seen.
    #[error(
        "no gwlbtun runs in this network namespace; start it with systemctl start gwlbtun, or \
         sudo gwlbtun -p 8080; for another namespace: sudo nsenter --net=FILE gwlbtun status"
    )]
    Nowhere,
    /// In another network namespace.
    #[error(
        "no gwlbtun runs in this network namespace, but process {0} does in another one: sudo \
         nsenter -t {0} -n gwlbtun status"
    )]
    Elsewhere(u32),
    /// Somewhere, as far as this user may see.
    #[error(
        "no gwlbtun answers in this network namespace, and only root can see in which one process \
         {0} runs: sudo gwlbtun status"
    )]
    Hidden(u32),
    /// Here, without the socket.
    #[error(
        "gwlbtun runs here as process {0}, but does not listen: it is starting or stopping, or \
         its log says why it cannot"
    )]
    Deaf(u32),
}

/// Asks the program that runs in this network namespace.
///
/// # Errors
/// See [`AskError`].
pub fn ask(request: Request) -> Result<Answered, AskError> {
    let silent = |error: &dyn std::fmt::Display| AskError::Silent(error.to_string());
    let mut stream = match abstract_socket::connect(CONTROL_SOCKET, PATIENCE) {
        Ok(stream) => stream,
        Err(sys::Error { errno: Errno::ECONNREFUSED, .. }) => {
            return Err(AskError::NotRunning(look_around()));
        }
        Err(error) => return Err(silent(&error)),
    };
    let peer = abstract_socket::peer(&stream).map_err(|error| silent(&error))?;
    // Whoever may not ask is told so without being heard, which may fail this.
    let _ = stream.write_all(format!("{request}\n").as_bytes());
    let bytes = read_answer(&stream).map_err(|error| {
        let is_late = error.kind() == io::ErrorKind::WouldBlock;
        if is_late { silent(&"5 seconds have passed") } else { silent(&error) }
    })?;
    match String::from_utf8_lossy(&bytes).parse() {
        Ok(answer) => Ok(Answered { answer: printable(&answer), note: note(peer) }),
        Err(_) => Err(silent(&"the connection was closed")),
    }
}

/// All that the other side sends until it closes; `WouldBlock` if it takes too long for that.
fn read_answer(mut stream: &UnixStream) -> io::Result<Vec<u8>> {
    let start = clock::now();
    let (mut bytes, mut chunk) = (Vec::new(), vec![0; READ_BYTES]);
    while bytes.len() < ANSWER_BYTES_MAX {
        let left = PATIENCE.saturating_sub(clock::now().since(start));
        if left.is_zero() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            // Whoever answers without listening resets the connection behind the answer.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

/// Anybody may take the socket's name where no program has it, so an unexpected user is told: it is
/// not root, nor the one who asks, nor called as a service is.
fn note(peer: Peer) -> Option<String> {
    let Peer { process_id, user_id } = peer;
    let is_service = || {
        let user = nix::unistd::User::from_uid(user_id.into());
        user.is_ok_and(|user| user.is_some_and(|user| user.name == "gwlbtun"))
    };
    let own = nix::unistd::geteuid().as_raw();
    let expected = user_id == 0 || user_id == own || is_service();
    (!expected).then(|| format!("this is what process {process_id} of user {user_id} says"))
}

/// Without what a terminal would obey.
fn printable(answer: &Answer) -> Answer {
    let is_harmless = |c: char| c == '\n' || !c.is_control();
    let text = answer.text.chars().map(|c| if is_harmless(c) { c } else { '?' }).collect();
    Answer { text, ..*answer }
}

/// Looks for a process of this name, as far as `/proc` shows others.
fn look_around() -> NotRunning {
    let namespace = |process: &str| {
        fs::metadata(format!("/proc/{process}/ns/net")).map(|file| (file.dev(), file.ino()))
    };
    let here = namespace("self").ok();
    let own = std::process::id();
    let (mut elsewhere, mut hidden) = (None, None);
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if process == own || name.trim_end() != "gwlbtun" || is_asking(process) {
            continue;
        }
        match namespace(&process.to_string()) {
            Ok(there) if Some(there) == here => return NotRunning::Deaf(process),
            Ok(_) => elsewhere = elsewhere.or(Some(NotRunning::Elsewhere(process))),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                hidden = hidden.or(Some(NotRunning::Hidden(process)));
            }
            // It has just ended.
            Err(_) => {}
        }
    }
    elsewhere.or(hidden).unwrap_or(NotRunning::Nowhere)
}

/// Whether a process of our name is one that asks, as this one.
fn is_asking(process: u32) -> bool {
    let words = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    let second = words.split(|&byte| byte == 0).nth(1);
    second.is_some_and(|word| [&b"status"[..], b"show", b"doctor"].contains(&word))
}
