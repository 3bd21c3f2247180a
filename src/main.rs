//! The `gwlbtun` program: what was typed, what it means on this host, then the engine, or a
//! sub-command. Exit codes and messages for people are decided here and nowhere else.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use gwlbtun::cli;
use gwlbtun::cli::Args;
use gwlbtun::cli::verbs;
use gwlbtun::cli::verbs::Refused;
use gwlbtun::cli::verbs::Verb;
use gwlbtun::client;
use gwlbtun::client::Answered;
use gwlbtun::doctor;
use gwlbtun::engine;
use gwlbtun::settings::Host;
use gwlbtun::settings::Settings;
use gwlbtun::sys;
use gwlbtun::sys::Errno;
use gwlbtun::sys::service_manager::ServiceManager;
use gwlbtun::types::request::Answer;
use gwlbtun::types::request::Request;

/// Exit code for a wrong command line and for a health port that is taken.
const EXIT_USAGE: u8 = 1;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    let outcome = match verbs::parse_verb(&words) {
        Ok(None) => start(words),
        Ok(Some(Verb::Ask(request))) => ask(request),
        Ok(Some(Verb::Doctor(args))) => examine(&args),
        Err(Refused::Help(text)) => print(&text).map(|()| ExitCode::SUCCESS),
        Err(Refused::Usage(text)) => Err(Failure::new(&text, verbs::EXIT_USAGE)),
    };
    match outcome {
        Ok(code) => code,
        Err(Failure { text, code, .. }) => {
            tell(&text);
            ExitCode::from(code)
        }
    }
}

struct Failure {
    text: String,
    code: u8,
    errno: Errno,
}

impl Failure {
    fn new(text: &impl ToString, code: u8) -> Self {
        Self { text: text.to_string(), code, errno: Errno::EINVAL }
    }

    fn usage(text: &impl ToString) -> Self {
        Self::new(text, EXIT_USAGE)
    }
}

/// Where stderr is closed there is nobody to tell.
fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", text.trim_end());
}

/// A reader who has seen enough, as head(1) does, is no failure; a disk that is full is one.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            let text = format!("gwlbtun: the answer could not be written: {error}");
            Err(Failure::new(&text, verbs::EXIT_OUTPUT))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Runs the program. The service manager is told if it fails, and only of this: a sub-command may
/// have inherited the way to it.
fn start(words: Vec<OsString>) -> Result<ExitCode, Failure> {
    let manager = ServiceManager::of_environment().map(|manager| manager.map(Arc::new));
    let outcome = run(words, manager.clone());
    if let (Err(Failure { text, errno, .. }), Ok(Some(manager))) = (&outcome, manager) {
        manager.tell_failure(text, *errno);
    }
    outcome.map(|()| ExitCode::SUCCESS)
}

fn run(
    words: Vec<OsString>,
    manager: Result<Option<Arc<ServiceManager>>, sys::Error>,
) -> Result<(), Failure> {
    let args = cli::parse(words).map_err(|text| Failure::usage(&text))?;
    let host = host().map_err(|error| Failure::usage(&format!("gwlbtun: {error}")))?;
    let mut settings = Settings::new(&args, &host)
        .map_err(|error| Failure::usage(&format!("gwlbtun: {error}")))?;
    let manager = manager.unwrap_or_else(|error| {
        settings.warnings.push(format!("The service manager cannot be told: {error}."));
        None
    });
    engine::run(settings, host.ram_bytes, manager).map_err(|error| Failure {
        text: format!("gwlbtun: {error}"),
        code: error.exit_code(),
        errno: error.errno(),
    })
}

fn host() -> Result<Host, sys::Error> {
    Ok(Host { cpus: sys::affinity::allowed()?, ram_bytes: sys::limits::memory_bytes()? })
}

/// Looks at the host. Flags that make no sense are a wrong usage here, whatever their status is at
/// the start.
fn examine(args: &Args) -> Result<ExitCode, Failure> {
    let fail = |error: &dyn std::fmt::Display| {
        Failure::new(&format!("gwlbtun doctor: {error}"), verbs::EXIT_USAGE)
    };
    let host = host().map_err(|error| fail(&error))?;
    let settings = Settings::new(args, &host).map_err(|error| fail(&error))?;
    let findings = doctor::examine(&settings, host.ram_bytes);
    for finding in &findings {
        print(&format!("{finding}\n"))?;
    }
    Ok(ExitCode::from(doctor::exit_status(&findings)))
}

/// Asks the program that runs.
fn ask(request: Request) -> Result<ExitCode, Failure> {
    let Answered { answer, note } = client::ask(request)
        .map_err(|error| Failure::new(&format!("gwlbtun: {error}"), error.exit_status()))?;
    if let Some(note) = note {
        tell(&format!("gwlbtun: {note}"));
    }
    let Answer { exit_status, text } = answer;
    if exit_status == Answer::REFUSED {
        return Err(Failure::new(&text, exit_status));
    }
    print(&text)?;
    Ok(ExitCode::from(exit_status))
}
