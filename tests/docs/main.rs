//! `gwlbtun-docs DIRECTORY`: writes the man page and the shells' completions below a directory
//! that stands for `/usr/share`.

use std::io;
use std::path::PathBuf;

#[path = "mod.rs"]
mod docs;

fn main() -> io::Result<()> {
    let share = std::env::args_os().nth(1).map(PathBuf::from);
    let share = share.ok_or_else(|| io::Error::other("usage: gwlbtun-docs DIRECTORY"))?;
    docs::write(&gwlbtun::cli::definition(), &share)
}
