//! What people and probes say to the program: a command line, lists, requests to the health port.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use gwlbtun::cli;
use gwlbtun::control::health::http;
use gwlbtun::control::health::http::Parsed;
use gwlbtun::log::Thresholds;
use gwlbtun::settings::Host;
use gwlbtun::settings::Settings;
use gwlbtun::settings::parse_cpu_list;
use gwlbtun::types::EndpointId;

pub(crate) fn run(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    match kind % 6 {
        0 => command_line(rest),
        1 => request(rest),
        2 => reply(rest),
        kind => {
            let text = String::from_utf8_lossy(rest);
            match kind {
                3 => cores(&text),
                4 => thresholds(&text),
                _ => endpoint(&text),
            }
        }
    }
}

/// Words with zeros between them: settings, or one line for the operator.
fn command_line(bytes: &[u8]) {
    let typed = bytes.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec()));
    match cli::parse(std::iter::once(OsString::from("gwlbtun")).chain(typed)) {
        Ok(args) => {
            let host = Host { cpus: vec![0, 1], ram_bytes: 1 << 30 };
            match Settings::new(&args, &host) {
                Ok(settings) => assert!((1..=256).contains(&settings.workers.len())),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
        Err(refusal) => assert!(refusal.to_string().ends_with('\n')),
    }
}

/// A request's head is found where it ends, however much of it and behind it has arrived.
fn request(bytes: &[u8]) {
    let whole = http::parse_request(bytes);
    match whole {
        Parsed::Head(ref head) => assert!((1..=bytes.len()).contains(&head.bytes)),
        Parsed::Partial => assert!(bytes.len() < http::HEAD_BYTES_MAX),
        Parsed::Refused(status) => assert_eq!(status, 431),
    }
    if whole == Parsed::Partial
        && let Some(start) = bytes.len().checked_sub(1)
    {
        assert_eq!(http::parse_request(&bytes[..start]), Parsed::Partial, "it was one before");
    }
}

/// What the web server behind the gate says, passed on, says the same.
fn reply(bytes: &[u8]) {
    let Some(reply) = http::Reply::parse(bytes) else { return };
    assert!(reply.body.len() < bytes.len());
    // An answer of a status alone is not passed on.
    if reply.kind.is_empty() {
        return;
    }
    let sent = reply.to_bytes(false, false);
    let again = http::Reply::parse(&sent).expect("an answer of ours");
    assert_eq!((again.status, again.body), (reply.status, reply.body));
}

fn cores(text: &str) {
    let Ok(cores) = parse_cpu_list(text) else { return };
    assert!(!cores.is_empty());
    let written: Vec<String> = cores.iter().map(ToString::to_string).collect();
    assert_eq!(parse_cpu_list(&written.join(",")), Ok(cores));
}

fn thresholds(text: &str) {
    let (_, complaints) = Thresholds::parse(text);
    assert!(complaints.len() <= text.split(',').count());
}

fn endpoint(text: &str) {
    let Ok(id) = text.parse::<EndpointId>() else { return };
    assert_eq!(id.to_string().parse(), Ok(id), "an id says what it is");
}
