//! The `gwlbtun` program: what was typed, what it means on this host, then the engine. Exit codes
//! and messages for people are decided here and nowhere else.

use std::io::Write;
use std::process::ExitCode;

use gwlbtun::cli;
use gwlbtun::engine;
use gwlbtun::settings::Host;
use gwlbtun::settings::Settings;
use gwlbtun::sys;

/// Exit code for a wrong command line and for a health port that is taken.
const EXIT_USAGE: u8 = 1;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { text, code }) => {
            // Where stderr is closed there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "{}", text.trim_end());
            ExitCode::from(code)
        }
    }
}

struct Failure {
    text: String,
    code: u8,
}

impl Failure {
    fn new(text: &impl ToString, code: u8) -> Self {
        Self { text: text.to_string(), code }
    }
}

fn run() -> Result<(), Failure> {
    let args = cli::parse(std::env::args_os()).map_err(|text| Failure::new(&text, EXIT_USAGE))?;
    let host = host().map_err(|error| Failure::new(&format!("gwlbtun: {error}"), EXIT_USAGE))?;
    let settings = Settings::new(&args, &host)
        .map_err(|error| Failure::new(&format!("gwlbtun: {error}"), EXIT_USAGE))?;
    engine::run(settings, host.ram_bytes)
        .map_err(|error| Failure::new(&format!("gwlbtun: {error}"), error.exit_code()))
}

fn host() -> Result<Host, sys::Error> {
    Ok(Host { cpus: sys::affinity::allowed()?, ram_bytes: sys::limits::memory_bytes()? })
}
