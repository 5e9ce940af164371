//! Connections of clients, whatever they speak: how each is taken, watched, and ended.
//!
//! What a client may hold is bounded before it has said who it is:
//!
//! - a listener takes so many connections and no more, and stops while the process has few file
//!   descriptors left, which storage needs ([`accept`]);
//! - the first byte has ten seconds to come, and so has the rest of a handshake, of a request's head
//!   and of any frame but one of data ([`stream`]);
//! - a head has a size, and a large one is counted against the node's budget while it comes and
//!   while its request is served ([`heads`]);
//! - a connection is closed so that its last answer arrives ([`closing`]).

pub(crate) mod accept;
pub(crate) mod closing;
mod frames;
pub(crate) mod heads;
pub(crate) mod stream;

use std::time::Duration;

pub use accept::{Door, DoorOptions, Doors};
pub use heads::HeadLimits;

/// From a connection to its first byte. Clients speak first in all protocols we know, and do it at
/// once.
pub const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(10);
