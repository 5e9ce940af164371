//! Ports for servers that have to know theirs before they start.

use std::net::TcpListener;
use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering};

/// Ports below those that the kernel gives to outgoing connections.
const PORTS: Range<u16> = 21_000..32_000;

/// Ports that nobody listens on, rising. Tests of one process never share any; other processes
/// start elsewhere in the range.
pub(crate) fn free(count: usize) -> Vec<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 100).expect("below 100") * 100;
    loop {
        let mut ports = Vec::new();
        let mut last = 0;
        while ports.len() < count {
            let offset = (start + NEXT.fetch_add(1, Ordering::Relaxed)) % (PORTS.end - PORTS.start);
            let port = PORTS.start + offset;
            if port < last {
                break;
            }
            last = port;
            if TcpListener::bind(("127.0.0.1", port)).is_ok() {
                ports.push(port);
            }
        }
        if ports.len() == count {
            return ports;
        }
    }
}
