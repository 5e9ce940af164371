//! What the suites share: the receiver under test, a client for each thing that it speaks, messages
//! written apart from the server's code, and ways to wait and to compare that say what went wrong.
//!
//! A suite includes all of it and uses what it needs. A process that dies unasked fails the test at
//! the next look of any wait, and when a test fails the ends of its processes' logs are printed.

pub(crate) mod certificates;
pub(crate) mod grpc;
pub(crate) mod histograms;
pub(crate) mod http;
pub(crate) mod load;
pub(crate) mod messages;
pub(crate) mod node;
pub(crate) mod ports;
pub(crate) mod process;
pub(crate) mod random;
pub(crate) mod remote_read;
pub(crate) mod same;

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_millis()).expect("before the year 292 million")
}
