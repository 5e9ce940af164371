//! Entries in systemd's journal, in its native protocol: one datagram per entry, of fields
//! `NAME=value\n`, or for a value with a line break `NAME\n`, its length as a little-endian u64,
//! the value, `\n`.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use serde_json::Value as Json;

use crate::log::Line;

/// Where the journal takes entries.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";

/// As Thanos names its fields, so that queries for them keep working.
const FIELD_PREFIX: &str = "THANOS_";

pub(super) struct Journal {
    socket: UnixDatagram,
}

impl Journal {
    /// `None` where no journal listens.
    pub(super) fn connect(path: impl AsRef<Path>) -> Option<Journal> {
        let socket = UnixDatagram::unbound().ok()?;
        socket.connect(path).ok()?;
        Some(Journal { socket })
    }

    /// Sends an entry.
    pub(super) fn send(&self, entry: &[u8]) -> io::Result<()> {
        self.socket.send(entry).map(drop)
    }
}

/// A line as the journal takes it.
pub(super) fn entry(line: &Line<'_>) -> Vec<u8> {
    let error = line.fields.iter().find(|(key, _)| *key == "err").map(|(_, value)| text(value));
    let message = match line.message.as_str() {
        "" => error.unwrap_or_else(|| "(no message)".to_owned()),
        message => message.to_owned(),
    };
    let priority = match line.level {
        "error" => "3",
        "warn" => "4",
        "debug" => "7",
        _ => "6",
    };
    let mut entry = Vec::with_capacity(512);
    push_field(&mut entry, "MESSAGE", &message);
    push_field(&mut entry, "PRIORITY", priority);
    push_field(&mut entry, "SYSLOG_IDENTIFIER", "ringest");
    for (key, value) in line.pairs().filter(|(key, _)| !["msg", "level"].contains(key)) {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
        let name: String = FIELD_PREFIX.chars().chain(key.chars().map(plain)).collect();
        push_field(&mut entry, &name, &text(&value));
    }
    entry
}

fn text(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn push_field(entry: &mut Vec<u8>, name: &str, value: &str) {
    entry.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}
