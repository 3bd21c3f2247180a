//! A target that turns every datagram round: the smallest program that keeps all of AWS's rules.
//! The simulator is tried on it before it judges the real one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::sim::netns::Namespace;

/// How often the mirror looks whether it should end.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// A running mirror; ends on drop.
#[derive(Debug)]
pub(crate) struct Mirror {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Mirror {
    /// Starts in the target's namespace, on the target's address.
    pub(crate) fn start(target: &Namespace, address: Ipv4Addr) -> Self {
        let receive = target.enter(|| UdpSocket::bind((address, 6081))).expect("port 6081");
        receive.set_read_timeout(Some(LOOK_INTERVAL)).expect("SO_RCVTIMEO");
        let is_over = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (is_over, target) = (Arc::clone(&is_over), target.clone());
            move || reflect(&receive, &target, address, &is_over)
        });
        Self { is_over, thread: Some(thread) }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let result = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(result, Some(Ok(Ok(())))), "the mirror: {result:?}");
        }
    }
}

fn reflect(
    receive: &UdpSocket,
    target: &Namespace,
    address: Ipv4Addr,
    is_over: &AtomicBool,
) -> io::Result<()> {
    let mut by_port = HashMap::new();
    let mut buffer = vec![0; 65536];
    while !is_over.load(Ordering::Relaxed) {
        let (bytes, node) = match receive.recv_from(&mut buffer) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        let port = node.port();
        let socket = match by_port.entry(port) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(new) => new.insert(target.enter(|| UdpSocket::bind((address, port)))?),
        };
        socket.send_to(&buffer[..bytes], SocketAddr::new(node.ip(), 6081))?;
    }
    Ok(())
}
