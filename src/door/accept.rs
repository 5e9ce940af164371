//! Which connections are taken, and when.
//!
//! ```text
//! open files (the process' limit)
//! ├── 1/4  storage, forwards to peers, everything else
//! └── 3/4  connections
//!     ├── 1/16 of it for each listener alone, so that no flood on one shuts the others
//!     └── the rest for whichever wants it
//! ```
//!
//! `--receive.connections-max` sets another cap, the same for each listener. Whatever the caps say,
//! the last descriptors are not for connections, and those before them only for such as are a
//! listener's own: storage may have taken more than its quarter, and the log of a tenant must never
//! wait for a descriptor that a client keeps. A connection that is not taken waits in the kernel.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

use crate::door::heads::{HeadLimits, Heads};
use crate::log::throttle::Throttle;
use crate::metrics::{Counted, Counter, Gauge, Registry, budgets};
use crate::socket::{WITH_CLIENTS, set_options};
use crate::write::admission::Admission;

/// More connections do not wait to be accepted, by the habit of the library that listens.
const BACKLOG_MAX: usize = 1024;

/// How long to wait after a connection could not be taken.
const PAUSE: Duration = Duration::from_millis(100);

/// HTTP, gRPC, remote write, Cap'n Proto.
const LISTENERS: u64 = 4;

/// What a limit of open files is taken for that is none.
const FILES_MAX: u64 = 1 << 20;

/// What clients may take of a node.
#[derive(Clone, Copy, Debug)]
pub struct DoorOptions {
    /// Connections of each listener; `None` for as many as the open files allow.
    pub connections_max: Option<usize>,
    /// The limit of open files.
    pub files_max: u64,
    pub heads: HeadLimits,
}

/// Makes the doors of a node.
pub struct Doors {
    options: DoorOptions,
    /// Connections that any listener may have beyond its own.
    shared: Arc<Semaphore>,
    admission: Arc<Admission>,
    registry: Registry,
}

/// How one listener takes connections.
#[derive(Clone)]
pub struct Door(Arc<Inner>);

struct Inner {
    listener: &'static str,
    own: Arc<Semaphore>,
    shared: Arc<Semaphore>,
    /// No connection is taken while the next descriptor's number would be this or higher: one on a
    /// place of the listener's own, and any other.
    descriptors_end: [u64; 2],
    open: Gauge,
    /// Times that it had to wait.
    waited: Counter,
    failed: Counter,
    told: Throttle<Trouble>,
    heads: Arc<Heads>,
}

/// Why a connection is not taken yet.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Trouble {
    Full,
    FewDescriptors,
    Failed,
}

/// A connection's place; given back on drop.
pub(crate) struct Place {
    _permit: Option<OwnedSemaphorePermit>,
    _open: Counted,
}

/// A connection that was taken.
pub(crate) struct Accepted {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) place: Place,
}

impl Doors {
    /// What large heads take is counted against `admission`.
    pub fn new(options: DoorOptions, admission: &Admission, registry: &Registry) -> Doors {
        let files = options.files_max.min(FILES_MAX);
        let shared = match options.connections_max {
            None => for_connections(files) - LISTENERS * for_each(files),
            Some(_) => 0,
        };
        Doors {
            options,
            shared: semaphore(shared),
            admission: admission.at_door(registry, "head"),
            registry: registry.clone(),
        }
    }

    pub fn door(&self, listener: &'static str) -> Door {
        let files = self.options.files_max.min(FILES_MAX);
        let own = match self.options.connections_max {
            None => semaphore(for_each(files)),
            Some(max) => semaphore(max as u64),
        };
        let shared = self.shared.clone();
        let max = own.available_permits() + shared.available_permits();
        budgets::show_connections_max(&self.registry, listener, max);
        let counter =
            |name, help| self.registry.counter_vec(name, help, &["listener"]).with(&[listener]);
        Door(Arc::new(Inner {
            listener,
            own,
            shared,
            descriptors_end: [
                files.saturating_sub((files / 32).clamp(16, 512)),
                files.saturating_sub((files / 8).clamp(32, 2048)),
            ],
            open: budgets::connections(&self.registry, listener),
            waited: counter(
                "ringest_connections_waited_total",
                "Times that no connection was taken since there were as many as may be, or since \
                 few file descriptors were left.",
            ),
            failed: counter(
                "ringest_connections_failed_total",
                "Connections that could not be taken.",
            ),
            told: Throttle::default(),
            heads: Arc::new(Heads::new(
                listener,
                self.options.heads,
                self.admission.clone(),
                &self.registry,
            )),
        }))
    }
}

/// Of so many open files.
fn for_connections(files: u64) -> u64 {
    files / 4 * 3
}

/// Of these, for each listener alone.
fn for_each(files: u64) -> u64 {
    for_connections(files) / 16
}

fn semaphore(places: u64) -> Arc<Semaphore> {
    let places = usize::try_from(places).unwrap_or(usize::MAX);
    Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS)))
}

impl Door {
    /// The next connection. Waits until there may be one more; what fails meanwhile is waited out.
    /// May be dropped.
    pub(crate) async fn accept(&self, listener: &TcpListener) -> Accepted {
        let (permit, descriptors_end) = self.permit().await;
        loop {
            while !has_descriptors(listener, descriptors_end) {
                self.0.waited.inc();
                self.tell(Trouble::FewDescriptors, None);
                sleep(PAUSE).await;
            }
            match listener.accept().await {
                Ok((stream, peer)) => return self.taken(stream, peer, Some(permit)),
                Err(error) if is_of_one(&error) => {}
                // No descriptor, no memory: it would come again at once.
                Err(error) => {
                    self.0.failed.inc();
                    self.tell(Trouble::Failed, Some(&error));
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Closes the port, and returns the connections that the kernel has made on it meanwhile: it
    /// would reset them, and their clients may have sent a request already.
    pub(crate) fn accept_rest(&self, listener: TcpListener) -> Vec<Accepted> {
        let mut rest = Vec::new();
        let Ok(listener) = listener.into_std() else { return rest };
        while rest.len() < BACKLOG_MAX
            && let Ok((stream, peer)) = listener.accept()
        {
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            rest.extend(stream.map(|stream| self.taken(stream, peer, None)));
        }
        rest
    }

    pub(crate) fn heads(&self) -> &Arc<Heads> {
        &self.0.heads
    }

    fn taken(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Accepted {
        // It only helps: a socket without works.
        let _ = set_options(&stream, WITH_CLIENTS);
        let place = Place { _permit: permit, _open: self.0.open.count() };
        Accepted { stream, peer, place }
    }

    /// A place, and which descriptors may be used on it.
    async fn permit(&self) -> (OwnedSemaphorePermit, u64) {
        let Inner { own, shared, descriptors_end: [own_end, shared_end], .. } = &*self.0;
        if let Ok(permit) = own.clone().try_acquire_owned() {
            return (permit, *own_end);
        }
        if let Ok(permit) = shared.clone().try_acquire_owned() {
            return (permit, *shared_end);
        }
        self.0.waited.inc();
        self.tell(Trouble::Full, None);
        tokio::select! {
            Ok(permit) = own.clone().acquire_owned() => (permit, *own_end),
            Ok(permit) = shared.clone().acquire_owned() => (permit, *shared_end),
            // They are never closed.
            else => std::future::pending().await,
        }
    }

    fn tell(&self, trouble: Trouble, error: Option<&io::Error>) {
        let Some(suppressed) = self.0.told.pass(trouble) else { return };
        let (listener, open) = (self.0.listener, self.0.open.value());
        match (trouble, error) {
            (Trouble::Full, _) => {
                tracing::warn!(listener, open, suppressed, "no more connections are taken for now");
            }
            (Trouble::FewDescriptors, _) => tracing::warn!(
                listener,
                open,
                suppressed,
                "few file descriptors are left, no more connections are taken for now"
            ),
            (Trouble::Failed, Some(err)) => {
                tracing::warn!(listener, open, %err, suppressed, "cannot accept a connection");
            }
            (Trouble::Failed, None) => {}
        }
    }
}

/// Whether the next descriptor's number is below `end`. The kernel gives out the lowest number that is
/// free, so all below it are taken.
fn has_descriptors(listener: &TcpListener, end: u64) -> bool {
    let next = rustix::io::fcntl_dupfd_cloexec(listener, 0);
    let number = next.ok().and_then(|next| u64::try_from(next.as_raw_fd()).ok());
    number.is_some_and(|number| number < end)
}

/// Errors that concern one connection, which is gone already.
fn is_of_one(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
impl Door {
    /// One without limits.
    pub(crate) fn open_wide() -> Door {
        Door::with(None, HeadLimits::default(), &Admission::new(u64::MAX), &Registry::new())
    }

    pub(crate) fn with(
        connections_max: Option<usize>,
        heads: HeadLimits,
        admission: &Admission,
        registry: &Registry,
    ) -> Door {
        let options = DoorOptions { connections_max, files_max: FILES_MAX, heads };
        Doors::new(options, admission, registry).door("test")
    }

    pub(crate) fn connections_open(&self) -> f64 {
        self.0.open.value()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn doors(connections_max: Option<usize>, files_max: u64, registry: &Registry) -> Doors {
        let options = DoorOptions { connections_max, files_max, heads: HeadLimits::default() };
        Doors::new(options, &Admission::new(u64::MAX), registry)
    }

    async fn listen() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// Whether one more is taken within a moment.
    async fn takes(door: &Door, listener: &TcpListener) -> Option<Accepted> {
        timeout(Duration::from_millis(50), door.accept(listener)).await.ok()
    }

    #[tokio::test]
    async fn a_listener_has_so_many_connections_and_no_more() {
        let registry = Registry::new();
        let door = doors(Some(2), FILES_MAX, &registry).door("a");
        let (listener, address) = listen().await;
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        let first = takes(&door, &listener).await.unwrap();
        let _second = takes(&door, &listener).await.unwrap();
        assert!(takes(&door, &listener).await.is_none());
        let page = registry.expose();
        for line in [
            "ringest_connections{listener=\"a\"} 2",
            "ringest_connections_max{listener=\"a\"} 2",
            "ringest_connections_waited_total{listener=\"a\"} 1",
        ] {
            assert!(page.lines().any(|shown| shown == line), "{line}\n{page}");
        }
        drop(first);
        door.accept(&listener).await;
    }

    #[tokio::test]
    async fn a_flood_on_one_listener_leaves_places_on_the_others() {
        // 48 for connections: 3 for each listener alone, 36 for any.
        let doors = doors(None, 64, &Registry::new());
        let (flooded, other) = (doors.door("a"), doors.door("b"));
        let mut held = Vec::new();
        while let Ok(permit) = timeout(Duration::from_millis(50), flooded.permit()).await {
            held.push(permit);
        }
        assert_eq!(held.len(), 3 + 36);
        for _ in 0..3 {
            let (permit, descriptors_end) = other.permit().await;
            held.push((permit, descriptors_end));
            assert_eq!(descriptors_end, 48, "more than for a place that is shared");
        }
        assert!(held.iter().any(|(_, descriptors_end)| *descriptors_end == 32));
        assert!(timeout(Duration::from_millis(50), other.permit()).await.is_err());
    }

    #[tokio::test]
    async fn no_connection_is_taken_while_few_descriptors_are_left() {
        let registry = Registry::new();
        let (listener, address) = listen().await;
        let _client = TcpStream::connect(address).await.unwrap();
        let next = rustix::io::fcntl_dupfd_cloexec(&listener, 0).unwrap();
        let taken = u64::try_from(next.as_raw_fd()).unwrap();
        drop(next);
        // Other tests may take some meanwhile, but not so many fewer.
        let door = doors(Some(100), taken / 2, &registry).door("a");
        assert!(takes(&door, &listener).await.is_none());
        assert!(registry.expose().contains("ringest_connections_waited_total{listener=\"a\"} "));
        let door = doors(Some(100), FILES_MAX, &registry).door("b");
        door.accept(&listener).await;
    }

    #[tokio::test]
    async fn the_kernel_ends_what_nobody_answers() {
        use rustix::net::sockopt;
        let (listener, address) = listen().await;
        let _client = TcpStream::connect(address).await.unwrap();
        let accepted = Door::open_wide().accept(&listener).await;
        let stream = &accepted.stream;
        assert!(stream.nodelay().unwrap());
        assert!(sockopt::socket_keepalive(stream).unwrap());
        assert_eq!(sockopt::tcp_user_timeout(stream).unwrap(), 30_000);
    }
}
