//! Options of TCP sockets, those of clients and of peers: none is silent for ever.

use std::io;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::TcpStream;

/// When the kernel ends a connection by itself. It is the kernel that asks for signs of life, since
/// gRPC servers of Go close connections that are pinged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// A connection on which nothing moves is asked for a sign of life after this, and again each
    /// interval.
    pub keepalive_idle: Duration,
    pub keepalive_interval: Duration,
    /// What the other end does not acknowledge for so long, or has no room for, ends it.
    pub user_timeout: Duration,
}

/// With clients. Those that vanish without a word are found, also where there is no idle limit, and
/// those that take no byte of their answer.
pub(crate) const WITH_CLIENTS: Patience = Patience {
    keepalive_idle: Duration::from_secs(60),
    keepalive_interval: Duration::from_secs(15),
    user_timeout: Duration::from_secs(30),
};

/// Sets all of them.
pub(crate) fn set_options(stream: &TcpStream, patience: Patience) -> io::Result<()> {
    // Small frames must not wait for the answer to earlier ones.
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, patience.keepalive_idle)?;
    sockopt::set_tcp_keepintvl(stream, patience.keepalive_interval)?;
    let millis = u32::try_from(patience.user_timeout.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(stream, millis)?;
    Ok(())
}
