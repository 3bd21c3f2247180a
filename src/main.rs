//! The `gwlbtun` program: what was typed, what it means on this host, then the engine. Exit codes
//! and messages for people are decided here and nowhere else.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use gwlbtun::cli;
use gwlbtun::engine;
use gwlbtun::settings::Host;
use gwlbtun::settings::Settings;
use gwlbtun::sys;
use gwlbtun::sys::Errno;
use gwlbtun::sys::service_manager::ServiceManager;

/// Exit code for a wrong command line and for a health port that is taken.
const EXIT_USAGE: u8 = 1;

fn main() -> ExitCode {
    let manager = ServiceManager::of_environment().map(|manager| manager.map(Arc::new));
    match run(manager.clone()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { text, code, errno }) => {
            // Where stderr is closed there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "{}", text.trim_end());
            if let Ok(Some(manager)) = manager {
                manager.tell_failure(&text, errno);
            }
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
    fn usage(text: &impl ToString) -> Self {
        Self { text: text.to_string(), code: EXIT_USAGE, errno: Errno::EINVAL }
    }
}

fn run(manager: Result<Option<Arc<ServiceManager>>, sys::Error>) -> Result<(), Failure> {
    let args = cli::parse(std::env::args_os()).map_err(|text| Failure::usage(&text))?;
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
