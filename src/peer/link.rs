//! The connection to a peer, over HTTP/2 or Cap'n Proto's RPC, kept by a task of its own.
//!
//! The task dials at once, and again whenever the connection ends or the peer says goodbye, resolving
//! the name anew each time, so that a peer is found under a new address. A connection over which
//! calls were answered has served, however short it lived, and calls wait for the next one. A call
//! that finds no connection has it dial
//! once more and waits for that, so a peer is used as soon as it listens; only one whose dialling
//! takes long is not waited for. Nothing is sent on an idle connection: grpc-go closes those that
//! are pinged.
//!
//! A connection grows old: then another one is made, and calls go over that as soon as it is there,
//! while those under way end on the old one. So what stands behind one name gets its part after it
//! has grown.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use bytes::buf::Chain;
use http::uri::{Authority, Scheme};
use http_body_util::Full;
use hyper::client::conn::http2::SendRequest;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::peer::capnproto;
use crate::peer::dial::{DialError, Dialled, Dialler, dial};
use crate::peer::health::UNANSWERED_MAX;
use crate::peer::resolve::Resolve;
use crate::peer::socket::Heard;

/// Body of a call.
pub type CallBody = Full<Chain<Bytes, Bytes>>;

/// Between failed attempts: dialling costs a peer nothing, and one that is back is to be used soon.
/// No call makes the pause shorter than the shortest.
const DIAL_PAUSE_MIN: Duration = Duration::from_millis(50);
const DIAL_PAUSE_MAX: Duration = Duration::from_secs(1);

/// An attempt that takes longer to fail is one that calls do not wait for.
pub(super) const QUICK_FAILURE_MAX: Duration = Duration::from_millis(250);

/// A connection to which the peer says goodbye before has not been of use, unless it has answered.
const GOODBYE_AGE_MIN: Duration = QUICK_FAILURE_MAX;

/// When a connection that has grown old cannot be replaced, that is tried again after this.
const RENEWAL_PAUSE: Duration = Duration::from_secs(60);

/// The state of a connection.
#[derive(Clone)]
pub enum Link {
    /// Being dialled, for the first time or after a connection that worked.
    Dialling,
    Up(Connection),
    /// The last attempt failed, or takes too long; others follow.
    Down {
        reason: Arc<str>,
        was_quick: bool,
    },
}

/// A connection that may be used by many calls at once.
#[derive(Clone)]
pub struct Connection {
    pub transport: Transport,
    /// Rises with each connection.
    pub number: u64,
}

/// What calls are made over.
#[derive(Clone)]
pub enum Transport {
    Grpc { sender: SendRequest<CallBody>, origin: Origin, merging: Arc<Merging>, heard: Arc<Heard> },
    CapnProto(capnproto::Client),
}

/// What requests begin with.
#[derive(Clone, Debug)]
pub struct Origin {
    pub scheme: Scheme,
    pub authority: Authority,
}

/// Whether a connection takes merged messages: once the peer has said so, unless something on the
/// way does not let them through. Another program under the same address has another connection.
#[derive(Default)]
pub struct Merging(AtomicU8);

impl Merging {
    const UNKNOWN: u8 = 0;
    const TAKEN: u8 = 1;
    const BARRED: u8 = 2;

    /// The peer has said that it takes them.
    pub fn allow(&self) {
        let (before, after) = (Merging::UNKNOWN, Merging::TAKEN);
        // What is barred stays so.
        let _ = self.0.compare_exchange(before, after, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// One was answered as no write is.
    pub fn bar(&self) {
        self.0.store(Merging::BARRED, Ordering::Relaxed);
    }

    fn is_allowed(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Merging::TAKEN
    }
}

/// How connections are treated.
#[derive(Clone, Copy, Debug)]
pub struct LinkOptions {
    /// Bytes that are not acknowledged for so long end a connection.
    pub user_timeout: Duration,
    /// After about so long a connection is replaced.
    pub age_max: Duration,
    /// Finds the addresses of a peer.
    pub resolve: Resolve,
}

/// What need not be said about a peer.
#[derive(Default)]
pub struct Quiet {
    /// It has left the ring, so it is all right that it goes away.
    pub has_left: AtomicBool,
    /// The log has it that it does not answer.
    pub is_known_silent: AtomicBool,
}

/// A link and since when it has been so, whatever connections and reasons have come and gone.
#[derive(Clone)]
struct Standing {
    link: Link,
    since: Instant,
}

/// Keeps a connection to one address until dropped.
pub struct LinkKeeper {
    link: watch::Receiver<Standing>,
    leave: Arc<Leave>,
    /// The newest connection that came up where there was none.
    returned: Arc<AtomicU64>,
    /// Told when a call is in want of a connection.
    wanted: Arc<Notify>,
    task: JoinHandle<()>,
}

impl LinkKeeper {
    /// `address` is `host:port`. Must be called within a runtime.
    pub fn start(
        address: Arc<str>,
        dialler: Dialler,
        options: LinkOptions,
        quiet: Arc<Quiet>,
    ) -> LinkKeeper {
        let standing = Standing { link: Link::Dialling, since: Instant::now() };
        let (sender, link) = watch::channel(standing);
        let (leave, wanted) = (Arc::new(Leave::default()), Arc::new(Notify::new()));
        let returned = Arc::<AtomicU64>::default();
        let keeping = Keeping {
            address,
            dialler,
            options,
            quiet,
            link: sender,
            leave: leave.clone(),
            returned: returned.clone(),
            wanted: wanted.clone(),
            last_address: None,
        };
        let task = tokio::spawn(keeping.keep());
        LinkKeeper { link, leave, returned, wanted, task }
    }

    /// The connection, waited for while it is being dialled, and another than `except`. An error
    /// tells why there is none.
    pub async fn connection(&self, except: Option<u64>) -> Result<Connection, Arc<str>> {
        let mut link = self.link.clone();
        let mut has_asked = false;
        loop {
            match &link.borrow_and_update().link {
                Link::Up(connection) if Some(connection.number) == except => {}
                Link::Up(connection) => return Ok(connection.clone()),
                Link::Down { was_quick: true, .. } if !has_asked => {
                    has_asked = true;
                    self.wanted.notify_one();
                }
                Link::Down { reason, .. } => return Err(reason.clone()),
                Link::Dialling => {}
            }
            if link.changed().await.is_err() {
                return Err("the peer has left the ring".into());
            }
        }
    }

    /// Tells why no connection can be had now. Waits only for an attempt that a call brings about,
    /// and only as long as one is likely to take that fails.
    pub async fn check_reachable(&self) -> Result<(), Arc<str>> {
        match self.state() {
            Link::Dialling | Link::Up(_) => Ok(()),
            Link::Down { .. } => {
                let attempt = self.connection(None);
                let attempt = tokio::time::timeout(DIAL_PAUSE_MIN + QUICK_FAILURE_MAX, attempt);
                attempt.await.map_or(Ok(()), |connected| connected.map(drop))
            }
        }
    }

    /// Whether the connection at this moment is one that takes merged messages.
    pub fn takes_merged(&self) -> bool {
        match &self.link.borrow().link {
            Link::Up(connection) => match &connection.transport {
                Transport::Grpc { merging, .. } => merging.is_allowed(),
                Transport::CapnProto(client) => client.takes_merged(),
            },
            Link::Dialling | Link::Down { .. } => false,
        }
    }

    /// The state at this moment.
    pub fn state(&self) -> Link {
        self.link.borrow().link.clone()
    }

    /// Waits for a state.
    #[cfg(test)]
    pub(super) async fn wait_until(&self, mut is: impl FnMut(&Link) -> bool) {
        self.link.clone().wait_for(|standing| is(&standing.link)).await.unwrap();
    }

    /// Since when there has been a connection, or none.
    pub fn since(&self) -> Instant {
        self.link.borrow().since
    }

    /// The number of the newest connection that came up where there was none; 0 before the first.
    pub fn returned(&self) -> u64 {
        self.returned.load(Ordering::Relaxed)
    }

    /// Leaves the connection with this number, which no longer answers, for a new one. Calls under
    /// way on it may still finish.
    pub fn leave(&self, number: u64) {
        // A late call on a connection that was left long ago must not hide a newer wish.
        self.leave.number.fetch_max(number, Ordering::Relaxed);
        self.leave.told.notify_one();
    }
}

/// Which connection is to be left.
#[derive(Default)]
struct Leave {
    number: AtomicU64,
    told: Notify,
}

impl Leave {
    async fn wait_for(&self, number: u64) {
        loop {
            self.told.notified().await;
            // It may be a connection that has been left already.
            if self.number.load(Ordering::Relaxed) >= number {
                return;
            }
        }
    }
}

impl Drop for LinkKeeper {
    fn drop(&mut self) {
        // The connection ends when its last call has.
        self.task.abort();
    }
}

/// What the task of a [`LinkKeeper`] has.
struct Keeping {
    address: Arc<str>,
    dialler: Dialler,
    options: LinkOptions,
    quiet: Arc<Quiet>,
    link: watch::Sender<Standing>,
    leave: Arc<Leave>,
    returned: Arc<AtomicU64>,
    wanted: Arc<Notify>,
    /// Where the last connection went.
    last_address: Option<SocketAddr>,
}

/// How a connection ceased to be used.
enum Over {
    /// By itself, for this reason.
    Ended(String),
    /// The peer takes no more calls on it. Those under way may still be answered.
    Goodbye,
    /// Calls on it were not answered.
    Left,
}

/// A connection that is no more used.
struct Past {
    over: Over,
    /// A call was answered on it.
    has_answered: bool,
    lived: Duration,
}

impl Past {
    /// Whether it was of use, so that the next one is a matter of course.
    fn has_served(&self) -> bool {
        self.has_answered
            || match self.over {
                // A peer has said so from the start if it lets connections live for a second.
                Over::Goodbye => self.lived >= GOODBYE_AGE_MIN,
                Over::Ended(_) | Over::Left => self.lived >= DIAL_PAUSE_MAX,
            }
    }

    /// Which address is to follow.
    fn prefer(&self) -> Prefer {
        match self.over {
            Over::Left => Prefer::Others,
            // It shakes hands and closes: perhaps another address does better.
            Over::Ended(_) | Over::Goodbye if !self.has_served() => Prefer::Others,
            Over::Ended(_) | Over::Goodbye => Prefer::Last,
        }
    }
}

/// Which of several addresses is tried first.
#[derive(Clone, Copy)]
enum Prefer {
    /// The one that worked.
    Last,
    /// Any but the one that did not.
    Others,
    /// Any.
    Any,
}

impl Keeping {
    async fn keep(mut self) {
        let mut number = 0;
        let mut pause = DIAL_PAUSE_MIN;
        let mut outage = Outage::default();
        let mut prefer = Prefer::Last;
        // Whether there is news in a connection that comes up.
        let mut was_away = true;
        loop {
            let begun = Instant::now();
            let was_quick;
            let reason: Arc<str> = match self.dial(prefer, &mut outage).await {
                Ok(dialled) => {
                    number += 1;
                    was_quick = begun.elapsed() <= QUICK_FAILURE_MAX;
                    if was_away || !was_quick {
                        self.returned.store(number, Ordering::Relaxed);
                    }
                    let past = self.hold(dialled, &mut number, &mut outage).await;
                    was_away = !matches!(past.over, Over::Left);
                    prefer = past.prefer();
                    if past.has_served() {
                        pause = DIAL_PAUSE_MIN;
                        outage.end(&self);
                        self.set(Link::Dialling);
                        // A peer that closes after each answer is not dialled without end.
                        tokio::time::sleep_until(begun + DIAL_PAUSE_MIN).await;
                        continue;
                    }
                    match past.over {
                        Over::Ended(why) => format!("connection closed at once{why}").into(),
                        Over::Goodbye | Over::Left => "connection closed at once".into(),
                    }
                }
                Err(error) => {
                    was_quick = begun.elapsed() <= QUICK_FAILURE_MAX;
                    was_away = true;
                    prefer = Prefer::Last;
                    error.to_string().into()
                }
            };
            outage.go_on(&self, &reason);
            self.set(Link::Down { reason, was_quick });
            let ended = Instant::now();
            let asked = async {
                self.wanted.notified().await;
                tokio::time::sleep_until(ended + DIAL_PAUSE_MIN).await;
            };
            // Either way.
            let _ = tokio::time::timeout(pause.mul_f64(0.5 + 0.5 * super::jitter()), asked).await;
            pause = (pause * 2).min(DIAL_PAUSE_MAX);
        }
    }

    /// Dials. When that takes long, calls need not wait for it.
    async fn dial(&self, prefer: Prefer, outage: &mut Outage) -> Result<Dialled, DialError> {
        let mut dialled = std::pin::pin!(self.try_dial(prefer));
        if let Ok(dialled) = tokio::time::timeout(UNANSWERED_MAX, &mut dialled).await {
            return dialled.inspect_err(|error| outage.is_silence = error.is_silence());
        }
        let reason = format!("no answer for {} s, dialling on", UNANSWERED_MAX.as_secs());
        outage.is_silence = true;
        outage.go_on(self, &reason);
        self.set(Link::Down { reason: reason.into(), was_quick: false });
        dialled.await.inspect_err(|error| outage.is_silence = error.is_silence())
    }

    async fn try_dial(&self, prefer: Prefer) -> Result<Dialled, DialError> {
        dial(&self.address, &self.dialler, self.options, |candidates| {
            let last = candidates.iter().position(|address| Some(*address) == self.last_address);
            match (prefer, last) {
                (Prefer::Last, Some(last)) => candidates[..=last].rotate_right(1),
                (Prefer::Others, Some(last)) => candidates[last..].rotate_left(1),
                (Prefer::Any, _) => {
                    let first = super::jitter() * candidates.len() as f64;
                    let first = (first as usize).min(candidates.len().saturating_sub(1));
                    candidates.rotate_left(first);
                }
                (Prefer::Last | Prefer::Others, None) => {}
            }
        })
        .await
    }

    /// Has a connection used, and the one that follows when it has grown old, until one of them
    /// ends. `number` is that of the one in use.
    async fn hold(&mut self, dialled: Dialled, number: &mut u64, outage: &mut Outage) -> Past {
        let Dialled { mut transport, mut ended, mut heard, mut address } = dialled;
        loop {
            let begun = Instant::now();
            self.last_address = Some(address);
            self.set(Link::Up(Connection { transport, number: *number }));
            let over = tokio::select! {
                // An idle connection ends as soon as there is a goodbye.
                why = &mut ended => Ok(match heard.has_said_goodbye() {
                    true => Over::Goodbye,
                    false => Over::Ended(why),
                }),
                () = heard.goodbye() => Ok(Over::Goodbye),
                // Calls that are handed back may be the first to learn of a goodbye.
                () = self.leave.wait_for(*number) => Ok(match heard.has_said_goodbye() {
                    true => Over::Goodbye,
                    false => Over::Left,
                }),
                // One that is closed at once is no news.
                never = outage.end_if_it_lasts(self) => match never {},
                renewed = self.renew() => Err(renewed),
            };
            match over {
                Ok(over) => {
                    let (has_answered, lived) = (heard.has_answered(), begun.elapsed());
                    return Past { over, has_answered, lived };
                }
                // Calls on the old one go on, and it ends with the last of them.
                Err(renewed) => {
                    *number += 1;
                    Dialled { transport, ended, heard, address } = renewed;
                }
            }
        }
    }

    /// Dials anew once the connection has grown old, at a time that others do not share.
    async fn renew(&self) -> Dialled {
        tokio::time::sleep(self.options.age_max.mul_f64(0.9 + 0.2 * super::jitter())).await;
        loop {
            match self.try_dial(Prefer::Any).await {
                Ok(renewed) => return renewed,
                Err(error) => {
                    tracing::debug!(
                        peer = %self.address,
                        err = %error,
                        "a connection that has grown old cannot be replaced yet"
                    );
                    tokio::time::sleep(RENEWAL_PAUSE).await;
                }
            }
        }
    }

    fn set(&self, link: Link) {
        let is_same = |before: &Link| {
            matches!(
                (before, &link),
                (Link::Dialling, Link::Dialling)
                    | (Link::Up(_), Link::Up(_))
                    | (Link::Down { .. }, Link::Down { .. })
            )
        };
        self.link.send_modify(|standing| {
            if !is_same(&standing.link) {
                standing.since = Instant::now();
            }
            standing.link = link.clone();
        });
    }
}

/// A time without connection, told once if it lasts: a peer that restarts is no news.
#[derive(Default)]
struct Outage {
    since: Option<Instant>,
    /// All that is known is that there was no answer.
    is_silence: bool,
    is_told: bool,
}

impl Outage {
    const TOLD_AFTER: Duration = Duration::from_secs(1);

    fn go_on(&mut self, keeping: &Keeping, reason: &str) {
        let since = *self.since.get_or_insert_with(Instant::now);
        let Quiet { has_left, is_known_silent } = &*keeping.quiet;
        let is_known = self.is_silence && is_known_silent.load(Ordering::Relaxed);
        if self.is_told
            || is_known
            || has_left.load(Ordering::Relaxed)
            || since.elapsed() < Outage::TOLD_AFTER
        {
            return;
        }
        self.is_told = true;
        tracing::warn!(peer = %keeping.address, err = reason, "peer cannot be reached");
    }

    /// Ends the outage once a connection has lasted.
    async fn end_if_it_lasts(&mut self, keeping: &Keeping) -> Infallible {
        tokio::time::sleep(DIAL_PAUSE_MAX).await;
        self.end(keeping);
        std::future::pending().await
    }

    fn end(&mut self, keeping: &Keeping) {
        if std::mem::take(self).is_told {
            tracing::info!(peer = %keeping.address, "peer is reached again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_messages_are_sent_once_the_peer_has_said_so_and_never_after_they_were_barred() {
        let merging = Merging::default();
        assert!(!merging.is_allowed());
        merging.allow();
        assert!(merging.is_allowed());
        merging.bar();
        assert!(!merging.is_allowed());
        merging.allow();
        assert!(!merging.is_allowed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_wish_to_leave_an_older_connection_ends_no_newer_one() {
        let leave = Leave::default();
        let wish = |number| {
            leave.number.fetch_max(number, Ordering::Relaxed);
            leave.told.notify_one();
        };
        wish(1);
        let waited = tokio::time::timeout(Duration::from_secs(1), leave.wait_for(2)).await;
        assert!(waited.is_err());
        wish(2);
        wish(1);
        leave.wait_for(2).await;
    }

    #[test]
    fn a_connection_was_of_use_if_it_answered_or_lasted() {
        let short = GOODBYE_AGE_MIN - Duration::from_millis(1);
        let long = DIAL_PAUSE_MAX;
        let ended = || Over::Ended(String::new());
        for (over, has_answered, lived, has_served, is_last_preferred) in [
            (ended(), false, short, false, false),
            (ended(), false, GOODBYE_AGE_MIN, false, false),
            (ended(), false, long, true, true),
            (ended(), true, short, true, true),
            (Over::Goodbye, false, short, false, false),
            (Over::Goodbye, false, GOODBYE_AGE_MIN, true, true),
            (Over::Goodbye, true, short, true, true),
            // It does not answer any more.
            (Over::Left, false, short, false, false),
            (Over::Left, true, short, true, false),
            (Over::Left, false, long, true, false),
        ] {
            let past = Past { over, has_answered, lived };
            assert_eq!(past.has_served(), has_served, "{has_answered} {lived:?}");
            assert_eq!(matches!(past.prefer(), Prefer::Last), is_last_preferred);
        }
    }
}
