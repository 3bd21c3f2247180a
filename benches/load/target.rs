//! What can stand in the target's place: the relays of this bench, and the engine.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Child;
use std::process::Stdio;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::lab;
use crate::lab::Failure;
use crate::lab::Host;
use crate::lab::Lab;
use crate::measure::now;
use crate::measure::pause;
use crate::tun;

/// Port of the engine's health page.
const HEALTH_PORT: u16 = 8080;

/// How long a target may take to answer for the first time.
const START_LIMIT: Duration = Duration::from_secs(5);

/// What stands in the target's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Engine {
    /// `relay_merge.rs`.
    RelayMerge,
    /// `relay_uring.rs`.
    RelayUring,
    /// `relay_syscalls.rs`.
    RelaySyscalls,
    /// The program of this repository.
    Ours,
    /// The same with the arguments given with `--variant-arg`.
    Variant,
    /// AWS's program, at the path given with `--peer`.
    Peer,
}

impl Engine {
    /// Name in tables and in JSON, the same as on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::RelayMerge => "relay-merge",
            Self::RelayUring => "relay-uring",
            Self::RelaySyscalls => "relay-syscalls",
            Self::Ours => "ours",
            Self::Variant => "variant",
            Self::Peer => "peer",
        }
    }

    /// Whether it is the program of this repository.
    pub(crate) const fn is_ours(self) -> bool {
        matches!(self, Self::Ours | Self::Variant)
    }
}

/// What a target needs to be told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Programs {
    /// AWS's program.
    pub(crate) peer: Option<PathBuf>,
    /// More arguments for ours.
    pub(crate) ours_args: Vec<String>,
    /// Instead of them, for the variant of ours.
    pub(crate) variant_args: Vec<String>,
    /// Rules that match nothing, which each frame is compared with on its way.
    pub(crate) rules: u16,
}

impl Programs {
    /// More arguments for `engine`.
    pub(crate) fn args(&self, engine: Engine) -> &[String] {
        match engine {
            Engine::Ours => &self.ours_args,
            Engine::Variant => &self.variant_args,
            Engine::RelayMerge | Engine::RelayUring | Engine::RelaySyscalls | Engine::Peer => &[],
        }
    }
}

/// A running target. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Target {
    engine: Engine,
    child: Child,
}

impl Target {
    /// Starts `engine` on the target's core and returns once it can take datagrams.
    pub(crate) fn start(
        lab: &Arc<Lab>,
        engine: Engine,
        programs: &Programs,
    ) -> Result<Self, Failure> {
        let mut command = lab.command(Host::Target, lab::TARGET_CORE)?;
        match engine {
            Engine::RelayMerge | Engine::RelayUring | Engine::RelaySyscalls => {
                command.arg(std::env::current_exe()?).arg(engine.name());
            }
            Engine::Ours | Engine::Variant => {
                command
                    .arg(env!("CARGO_BIN_EXE_gwlbtun"))
                    .args(["--cores", &lab::TARGET_CORE.to_string(), "-c", tun::REDIRECT])
                    .args(["-j", "-p", &HEALTH_PORT.to_string()])
                    .args(programs.args(engine));
            }
            Engine::Peer => {
                let peer = programs.peer.as_ref();
                command
                    .arg(peer.ok_or("the engine \"peer\" needs --peer PATH")?)
                    .args(["--udpthreads", "1", "--tunthreads", "1", "-c", tun::REDIRECT])
                    .args(["-j", "-p", &HEALTH_PORT.to_string()]);
            }
        }
        let output = match engine {
            Engine::RelayMerge | Engine::RelayUring | Engine::RelaySyscalls => Stdio::piped(),
            Engine::Ours | Engine::Variant | Engine::Peer => Stdio::null(),
        };
        command.env("GWLBTUN_BENCH_RULES", programs.rules.to_string());
        let child = command.stdin(Stdio::piped()).stdout(output).spawn()?;
        let mut target = Self { engine, child };
        match engine {
            Engine::RelayMerge | Engine::RelayUring | Engine::RelaySyscalls => {
                target.expect_ready()?;
            }
            Engine::Ours | Engine::Variant | Engine::Peer => target.wait_until_healthy(lab)?,
        }
        Ok(target)
    }

    /// Process id, for looking at what it uses.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the target still runs.
    pub(crate) fn is_running(&mut self) -> Result<bool, Failure> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Ends the target. A relay says how many datagrams it sent; the engine is asked by signal, and
    /// must end with success. The peer is killed: it takes seconds to end, and how it ends is not
    /// what is measured.
    pub(crate) fn stop(mut self) -> Result<Option<u64>, Failure> {
        if self.engine == Engine::Peer {
            self.child.kill()?;
            self.child.wait()?;
            return Ok(None);
        }
        drop(self.child.stdin.take());
        if self.engine.is_ours() {
            kill(Pid::from_raw(i32::try_from(self.pid())?), Signal::SIGTERM)?;
        }
        let mut last_words = String::new();
        if let Some(mut output) = self.child.stdout.take() {
            output.read_to_string(&mut last_words)?;
        }
        let status = self.child.wait()?;
        if !status.success() {
            return Err(format!("{} ended with {status}", self.engine.name()).into());
        }
        match self.engine {
            Engine::RelayMerge | Engine::RelayUring | Engine::RelaySyscalls => {
                Ok(Some(last_words.trim().parse()?))
            }
            Engine::Ours | Engine::Variant | Engine::Peer => Ok(None),
        }
    }

    fn expect_ready(&mut self) -> Result<(), Failure> {
        let output = self.child.stdout.as_mut().ok_or("no output of the relay")?;
        let mut line = String::new();
        // The relay writes its next line only after its input has ended: nothing is read ahead.
        BufReader::new(output).read_line(&mut line)?;
        match line.trim() {
            "ready" => Ok(()),
            other => Err(format!("{} says \"{other}\"", self.engine.name()).into()),
        }
    }

    fn wait_until_healthy(&mut self, lab: &Arc<Lab>) -> Result<(), Failure> {
        let deadline = now() + START_LIMIT;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("{} ended with {status}", self.engine.name()).into());
            }
            match health(lab, self.engine) {
                Ok(page) if page.starts_with("HTTP/1.1 200") => return Ok(()),
                answer if now() > deadline => {
                    return Err(format!("not healthy after {START_LIMIT:?}: {answer:?}").into());
                }
                _ => pause(Duration::from_millis(20)),
            }
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // Already reaped after stop(): then both calls fail, and nothing is left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The health page of ours or of the peer, as JSON.
pub(crate) fn page(lab: &Arc<Lab>, engine: Engine) -> Result<serde_json::Value, Failure> {
    let answer = health(lab, engine)?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or("no body")?;
    Ok(serde_json::from_str(body)?)
}

/// What the engine says that it moved, in inner packets, over all its life and endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InnerPackets {
    /// Written to gwi.
    pub(crate) to_gwi: u64,
    /// Read from gwo.
    pub(crate) from_gwo: u64,
}

/// What the engine's health page says about inner packets.
pub(crate) fn inner_packets(lab: &Arc<Lab>) -> Result<InnerPackets, Failure> {
    let page = page(lab, Engine::Ours)?;
    let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    let endpoints = list(&page["enis"]);
    let to_gwi = endpoints.iter().filter_map(|one| one["tunnelIn"]["pktsOut"].as_u64());
    let threads = endpoints.iter().flat_map(|one| list(&one["tunnelOut"]["threads"]));
    Ok(InnerPackets {
        to_gwi: to_gwi.sum(),
        from_gwo: threads.filter_map(|thread| thread["pktsIn"].as_u64()).sum(),
    })
}

/// How many endpoints the engine's health page lists.
pub(crate) fn endpoints(lab: &Arc<Lab>) -> Result<usize, Failure> {
    let page = page(lab, Engine::Ours)?;
    // The reference's name for the list of endpoints.
    let listed = page["enis"].as_array().ok_or("no list of endpoints")?;
    Ok(listed.len())
}

/// How many IPv4 flows the health page of ours or of the peer lists.
pub(crate) fn flows(lab: &Arc<Lab>, engine: Engine) -> Result<u64, Failure> {
    let page = page(lab, engine)?;
    let cache = page["enis"][0]["v4FlowCache"].as_array().cloned().unwrap_or_default();
    let size = cache.iter().find(|pair| pair[0] == "size").and_then(|pair| pair[1].as_u64());
    Ok(size.ok_or_else(|| format!("no number of flows on the page {page}"))?)
}

/// The target's health answer, head and body.
fn health(lab: &Arc<Lab>, engine: Engine) -> Result<String, Failure> {
    match engine {
        // It answers whoever connects, and resets the connection if it was asked something.
        Engine::Peer => ask(lab, HEALTH_PORT, String::new()),
        _ => get(lab, HEALTH_PORT, "/"),
    }
}

/// What the target answers to a GET, head and body.
pub(crate) fn get(lab: &Arc<Lab>, port: u16, path: &str) -> Result<String, Failure> {
    ask(lab, port, format!("GET {path} HTTP/1.1\r\nHost: target\r\nConnection: close\r\n\r\n"))
}

fn ask(lab: &Arc<Lab>, port: u16, request: String) -> Result<String, Failure> {
    let lab = Arc::clone(lab);
    thread::spawn(move || {
        lab.enter(Host::Target)?;
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(START_LIMIT))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })
    .join()
    .map_err(|_| "the HTTP client panicked")?
}
