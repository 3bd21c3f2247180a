//! A look at the hooks before the program starts: one that cannot run, or that any user may
//! change, is refused.
//!
//! With a CREATE hook that cannot run, links would come up and take traffic to nowhere while the
//! health page says that all is well. So what can be known is known at the start:
//!
//! | the command | what is judged |
//! |---|---|
//! | is, as a whole, the path of a file | that file; it is what runs, blanks in its path or not |
//! | begins with a word that has a `/` and no shell syntax | the program of that name |
//! | anything else: `sh hook`, `true`, `exec /hook`, `A=1 /hook`, `"/my hook"` | nothing |
//!
//! The shell itself must be there, which it is not in every container. Judged are: the file is
//! there, is a file, may be executed, and so may the interpreter of its `#!` line; and neither the
//! file nor a directory on the way to it can be changed by any user of the host. The way is walked
//! as the kernel walks it, through symbolic links. In a directory with the sticky bit others
//! cannot replace a file that is there; below a directory that others cannot enter, as `/root` is
//! and a home directory may be, they change nothing, whatever the modes.

use std::ffi::OsStr;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Component;
use std::path::Path;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::unistd::AccessFlags;
use nix::unistd::eaccess;

use crate::settings::Hooks;

/// What runs every hook.
pub(super) const SHELL: &str = "/bin/sh";

/// Bits of a file's mode (inode(7)): others may write; others may enter; the sticky bit.
const OTHERS_WRITE: u32 = 0o002;
const OTHERS_ENTER: u32 = 0o001;
const STICKY: u32 = 0o1000;

/// Symbolic links on one path before the kernel gives up (`MAXSYMLINKS`, `include/linux/namei.h`).
const SYMLINKS_MAX: usize = 40;

/// Bytes of a file that the kernel looks at for a `#!` line (`BINPRM_BUF_SIZE`).
const FIRST_LINE_BYTES: u64 = 256;

/// Bytes that mean something to a shell, so that a word with one of them may not be a plain path.
const SYNTAX: &[u8] = b"'\"$`;&|<>(){}[]*?~=\n\r#!\\";

/// What is run, as the start of the program found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HookCommand {
    /// Words for a shell.
    Shell(OsString),
    /// The path of one file, which no shell takes apart.
    File(OsString),
}

/// The operator's hooks, judged by [`check`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HookCommands {
    /// Runs when an endpoint's links are up.
    pub create: Option<HookCommand>,
    /// Runs before they go.
    pub destroy: Option<HookCommand>,
}

/// Why a hook is refused; one line for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("hook {flag} {path:?}: {problem}")]
pub struct HookError {
    flag: &'static str,
    path: PathBuf,
    problem: Problem,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Problem {
    #[error(
        "cannot be found: {0}; correct the path, and put quotes around it inside the command if it \
         has blanks"
    )]
    Missing(String),
    #[error("is no file; name the program to run")]
    NotAFile,
    #[error("cannot be executed: {0}; chmod +x it, or mount its file system without noexec")]
    NotExecutable(&'static str),
    #[error("hooks need this shell, and it cannot be executed: {0}; install one")]
    NoShell(&'static str),
    #[error("its first line asks for {0:?}, which cannot be executed: {1}; correct that line")]
    Interpreter(PathBuf, &'static str),
    #[error(
        "any user of this host can change {0:?}; chmod o-w it, or allow it with \
         --allow-insecure-hooks"
    )]
    Insecure(PathBuf),
}

/// Judges both hooks.
///
/// # Errors
/// [`HookError`] says which hook is refused, and why.
pub fn check(hooks: &Hooks) -> Result<HookCommands, HookError> {
    let judge = |flag, command: &Option<OsString>| {
        let Some(command) = command else { return Ok(None) };
        eaccess(SHELL, AccessFlags::X_OK).map_err(|errno| {
            let problem = Problem::NoShell(errno.desc());
            HookError { flag, path: SHELL.into(), problem }
        })?;
        let whole = is_whole_path(command);
        let program = if whole { Some(Path::new(command)) } else { first_word(command) };
        if let Some(path) = program {
            judge(path, hooks.insecure_allowed).map_err(|problem| HookError {
                flag,
                path: path.to_owned(),
                problem,
            })?;
        }
        let command = command.clone();
        Ok(Some(if whole { HookCommand::File(command) } else { HookCommand::Shell(command) }))
    };
    Ok(HookCommands { create: judge("-c", &hooks.create)?, destroy: judge("-r", &hooks.destroy)? })
}

/// Whether the whole command is the path of a file. A name without `/` is searched for in `PATH`
/// by the shell, so that is not one.
fn is_whole_path(command: &OsStr) -> bool {
    command.as_bytes().contains(&b'/') && Path::new(command).is_file()
}

/// The first word of a command, if it is a path and the shell will take it as it stands.
fn first_word(command: &OsStr) -> Option<&Path> {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let mut words = command.as_bytes().split(is_blank);
    let word = words.find(|word| !word.is_empty())?;
    let is_plain = word.contains(&b'/') && !word.iter().any(|byte| SYNTAX.contains(byte));
    is_plain.then(|| Path::new(OsStr::from_bytes(word)))
}

fn judge(path: &Path, insecure_allowed: bool) -> Result<(), Problem> {
    let missing = |error: io::Error| Problem::Missing(error.to_string());
    if !fs::metadata(path).map_err(missing)?.is_file() {
        return Err(Problem::NotAFile);
    }
    eaccess(path, AccessFlags::X_OK).map_err(|errno| Problem::NotExecutable(errno.desc()))?;
    if let Some(interpreter) = interpreter(path)
        && let Err(errno) = eaccess(&interpreter, AccessFlags::X_OK)
    {
        return Err(Problem::Interpreter(interpreter, errno.desc()));
    }
    match changeable_by_any(path).map_err(missing)? {
        Some(place) if !insecure_allowed => Err(Problem::Insecure(place)),
        _ => Ok(()),
    }
}

/// The program that a file's `#!` line names. None where there is no such line, or it cannot be
/// read: a program can be executed without being readable, a script cannot.
fn interpreter(path: &Path) -> Option<PathBuf> {
    let mut start = Vec::new();
    fs::File::open(path).ok()?.take(FIRST_LINE_BYTES).read_to_end(&mut start).ok()?;
    let line = start.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let mut words = line.split(|byte| matches!(byte, b' ' | b'\t'));
    let word = words.find(|word| !word.is_empty())?;
    Some(PathBuf::from(OsStr::from_bytes(word)))
}

/// The file, or the directory on the way to it, that any user of the host can change.
fn changeable_by_any(path: &Path) -> io::Result<Option<PathBuf>> {
    let mut here = PathBuf::from("/");
    // A whole path is good even where the working directory has been removed.
    let mut to_go =
        if path.is_absolute() { path.to_owned() } else { std::env::current_dir()?.join(path) };
    for _ in 0..=SYMLINKS_MAX {
        match walk(&mut here, &to_go)? {
            Walk::Changeable => return Ok(Some(here)),
            Walk::Arrived => return Ok(None),
            Walk::Turn(next) => to_go = next,
        }
    }
    Err(Errno::ELOOP.into())
}

/// Where a walk ended.
enum Walk {
    /// At something that any user can change.
    Changeable,
    /// At the file.
    Arrived,
    /// At a symbolic link; this is what is left to walk from here.
    Turn(PathBuf),
}

/// Goes along `path`, whose start is at `here` or at the root, as far as there is no symbolic
/// link. So `here` never has one, and `..` is its parent.
fn walk(here: &mut PathBuf, path: &Path) -> io::Result<Walk> {
    let mut steps = path.components();
    while let Some(step) = steps.next() {
        match step {
            Component::RootDir | Component::Prefix(_) => *here = PathBuf::from("/"),
            Component::CurDir => {}
            Component::ParentDir => drop(here.pop()),
            Component::Normal(name) => {
                let next = here.join(name);
                let metadata = fs::symlink_metadata(&next)?;
                if metadata.is_symlink() {
                    return Ok(Walk::Turn(fs::read_link(&next)?.join(steps.as_path())));
                }
                *here = next;
            }
        }
        let metadata = fs::symlink_metadata(&*here)?;
        let is_protected = metadata.is_dir() && metadata.mode() & STICKY != 0;
        if metadata.mode() & OTHERS_WRITE != 0 && !is_protected && others_reach(here)? {
            return Ok(Walk::Changeable);
        }
    }
    Ok(Walk::Arrived)
}

/// Whether any user of the host may enter every directory above `place`, whose path has no
/// symbolic link.
fn others_reach(place: &Path) -> io::Result<bool> {
    for directory in place.ancestors().skip(1) {
        if fs::symlink_metadata(directory)?.mode() & OTHERS_ENTER == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
