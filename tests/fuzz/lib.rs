//! What the fuzzers share with the tests: the same files, as a library for libFuzzer's programs.

#[path = "mod.rs"]
mod fuzz;
#[path = "../oracle.rs"]
mod oracle;
#[path = "../returns.rs"]
mod returns;

/// Runs a target of [`fuzz::TARGETS`] on one input.
///
/// # Panics
/// If the target finds something, or if there is no such target.
pub fn run(target: &str, input: &[u8]) {
    fuzz::run(target, input);
}
