//! Who has the ports that the program needs.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use super::Finding;
use super::Grade;
use super::host;
use super::trials;
use crate::engine::trial;
use crate::settings::Settings;
use crate::sys::Errno;
use crate::sys::abstract_socket;
use crate::types::GENEVE_PORT;
use crate::types::request::CONTROL_SOCKET;

/// Source ports of the load balancer, as seen in the field.
const BALANCER_PORTS: std::ops::RangeInclusive<u16> = 60000..=60001;

/// State of a listening socket in `/proc/net/tcp` (`TCP_LISTEN`).
const LISTENS: &str = "0A";

pub(super) fn examine(settings: &Settings) -> Vec<Finding> {
    let running = running();
    let mut findings = vec![geneve(running)];
    findings.extend(settings.health.map(|health| health_port(health.port, running)));
    findings.extend(settings.metrics.map(|address| metrics_port(address, running)));
    findings.push(reserved());
    findings
}

/// The program that runs in this network namespace.
fn running() -> Option<i32> {
    let stream = abstract_socket::connect(CONTROL_SOCKET, Duration::from_secs(1)).ok()?;
    abstract_socket::peer(&stream).ok().map(|peer| peer.process_id)
}

fn geneve(running: Option<i32>) -> Finding {
    let sockets = sockets_at(GENEVE_PORT, ["udp", "udp6"], None);
    let fix = "stop it; its unit is named by systemctl status PID";
    judge("udp-port", &format!("UDP port {GENEVE_PORT}"), &sockets, running, fix)
}

fn health_port(port: u16, running: Option<i32>) -> Finding {
    let sockets = sockets_at(port, ["tcp", "tcp6"], Some(LISTENS));
    let fix = "stop it, or choose another port with -p";
    judge("health-port", &format!("TCP port {port}"), &sockets, running, fix)
}

/// Another program may have the port at another address, which is in nobody's way.
fn metrics_port(address: SocketAddr, running: Option<i32>) -> Finding {
    const CHECK: &str = "metrics-port";
    let port = format!("TCP port {}", address.port());
    match trial::metrics_port(address) {
        Ok(()) => Finding::ok(CHECK, format!("{port} is free")),
        Err(error) if error.errno() == Errno::EADDRNOTAVAIL => trials::failure(CHECK, &error),
        Err(_) => {
            let sockets = sockets_at(address.port(), ["tcp", "tcp6"], Some(LISTENS));
            let fix = "stop it, or choose another port with --metrics-listen";
            judge(CHECK, &port, &sockets, running, fix)
        }
    }
}

fn judge(
    check: &'static str,
    port: &str,
    sockets: &[String],
    running: Option<i32>,
    fix: &str,
) -> Finding {
    if sockets.is_empty() {
        return Finding::ok(check, format!("{port} is free"));
    }
    let owners: Vec<_> = sockets.iter().map(|socket| owner(socket)).collect();
    let foreign = owners.iter().find(|owner| match (owner, running) {
        // Whose it is cannot be seen by everybody; then it is that of the program that runs.
        (None, running) => running.is_none(),
        (Some((process, _)), running) => Some(*process) != running,
    });
    match foreign {
        None => Finding::ok(check, format!("{port} is that of the gwlbtun that runs")),
        Some(Some((process, name))) => {
            let text = format!("{port} is taken by process {process} ({name})");
            Finding::bad(Grade::Fail, check, text, fix)
        }
        Some(None) => {
            let text = format!("{port} is taken, by whom only root can see");
            Finding::bad(Grade::Fail, check, text, fix)
        }
    }
}

/// Inodes of the sockets that are bound to a local port, from `/proc/net`, of one state or any.
fn sockets_at(port: u16, tables: [&str; 2], state: Option<&str>) -> Vec<String> {
    let tables = tables.map(|table| host::read(format!("/proc/net/{table}")).unwrap_or_default());
    tables.iter().flat_map(|table| sockets_in(table, port, state)).collect()
}

/// The columns of `udp4_format_sock` and `get_tcp4_sock`: the second is the local address, the
/// fourth the state, the tenth the inode.
fn sockets_in(table: &str, port: u16, state: Option<&str>) -> Vec<String> {
    let port = format!(":{port:04X}");
    let inode = |line: &str| {
        let columns: Vec<_> = line.split_ascii_whitespace().collect();
        let is_it = columns.get(1)?.ends_with(&port)
            && state.is_none_or(|state| columns.get(3) == Some(&state));
        is_it.then(|| columns.get(9).map(|&inode| inode.to_owned()))?
    };
    table.lines().skip(1).filter_map(inode).collect()
}

/// The process that has a socket, and its name, as far as we may see.
fn owner(inode: &str) -> Option<(i32, String)> {
    let target = format!("socket:[{inode}]");
    let processes = host::names_in("/proc").into_iter().filter_map(|name| name.parse::<i32>().ok());
    let has_it = |process: &i32| {
        let descriptors =
            fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
        let mut targets = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
        targets.any(|path| path.as_os_str() == target.as_str())
    };
    let process = processes.into_iter().find(has_it)?;
    Some((process, host::read(format!("/proc/{process}/comm")).unwrap_or_default()))
}

/// Answers leave from the load balancer's own ports, which Linux must not give to others.
fn reserved() -> Finding {
    const CHECK: &str = "reserved-ports";
    let now = host::sysctl("net/ipv4/ip_local_reserved_ports").unwrap_or_default();
    if BALANCER_PORTS.into_iter().all(|port| contains(&now, port)) {
        return Finding::ok(CHECK, "Linux gives the load balancer's source ports to nobody");
    }
    let before = if now.is_empty() { String::new() } else { format!("{now},") };
    let (first, last) = BALANCER_PORTS.into_inner();
    let text = "Linux may give the load balancer's source ports to another program";
    let fix = format!("sysctl -w net.ipv4.ip_local_reserved_ports={before}{first}-{last}");
    Finding::bad(Grade::Warn, CHECK, text, fix)
}

/// Whether `1,5-9` contains a port.
fn contains(list: &str, port: u16) -> bool {
    list.split(',').any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let [first, last] = [first, last].map(|word| word.trim().parse::<u16>());
        matches!((first, last), (Ok(first), Ok(last)) if (first..=last).contains(&port))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_a_port_are_found_in_the_kernel_s_table() {
        let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt";
        let row = |port: &str, state: &str, inode: u32| {
            format!(
                "\n   1: 00000000:{port} 00000000:0000 {state} 00000000:00000000 00:00000000 \
                 00000000     0        0 {inode} 2 0000000000000000 0"
            )
        };
        let rows = [row("17C1", "07", 11), row("17C2", "07", 12), row("17C1", "0A", 13)];
        let table = format!("{head}{}", rows.concat());
        assert_eq!(sockets_in(&table, 6081, None), ["11", "13"]);
        assert_eq!(sockets_in(&table, 6081, Some(LISTENS)), ["13"]);
        assert_eq!(sockets_in("", 6081, None), [""; 0]);
    }

    #[test]
    fn reserved_ports_are_numbers_and_ranges() {
        assert!(contains("60000-60001", 60001) && contains("1,60000,60001", 60000));
        assert!(!contains("", 60000) && !contains("1-59999,60001", 60000));
    }

    #[test]
    fn who_has_a_port_decides() {
        let own = i32::try_from(std::process::id()).unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let sockets = sockets_at(port, ["udp", "udp6"], None);
        let judge = |running| judge("udp-port", "it", &sockets, running, "stop it");
        assert_eq!(judge(Some(own)).grade, Grade::Ok);
        let foreign = judge(Some(own + 1));
        assert_eq!(foreign.grade, Grade::Fail);
        assert!(foreign.text.starts_with(&format!("it is taken by process {own} (")));
        drop(socket);
        assert_eq!(sockets_at(port, ["udp", "udp6"], None), [""; 0]);
    }
}
