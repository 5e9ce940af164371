//! A request's way out over Cap'n Proto: taken apart once, and each message made once for all peers
//! that get the same series, as all do in a ring that has no more nodes than copies.
//!
//! What is too long for a message goes out in several, one after the other, and what Cap'n Proto has
//! no place for goes over protobuf. Together they are one write.

use std::ops::Range;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::peer::ForwardError;
use crate::peer::message::{Compression, Envelope, ForwardMessage};
use crate::wire::capnproto::encode::{PART_BYTES_MAX, Part, SeriesTable};
use crate::wire::remote_write_v1::DecodeError;
use crate::write::fanout::Forward;
use crate::write::fanout::answers::{Answer, Shortfall};
use crate::write::fanout::call::Call;
use crate::write::quorum::ReplicaOutcome;

/// What the messages of a request have in common.
#[derive(Default)]
pub(super) struct InCapnProto {
    /// The series taken apart.
    table: OnceCell<Result<SeriesTable, DecodeError>>,
    /// What somebody sends at the moment.
    made: Mutex<Vec<Weak<Made>>>,
}

/// What is sent of some groups.
struct Made {
    groups: Box<[u32]>,
    messages: OnceCell<Result<Messages, String>>,
}

enum Messages {
    /// One, as nearly always.
    One(ForwardMessage),
    /// By the series' places in the groups.
    Parts(Vec<Part>),
}

impl InCapnProto {
    /// What is sent of these groups, which may be made already.
    fn of(&self, groups: &[u32]) -> Arc<Made> {
        let mut made = self.made.lock();
        let same = made.iter().filter_map(Weak::upgrade).find(|made| *made.groups == *groups);
        same.unwrap_or_else(|| {
            let new = Arc::new(Made { groups: groups.into(), messages: OnceCell::new() });
            made.push(Arc::downgrade(&new));
            new
        })
    }
}

impl Call {
    /// Sends these batches over Cap'n Proto.
    pub(super) async fn send_in_capnproto<F: Forward>(
        self: Arc<Call>,
        batches: Range<usize>,
        forward: &F,
        address: &str,
    ) -> Answer {
        let made = self.in_capnproto.of(&self.plan.groups(batches.clone()));
        let messages = made.messages.get_or_init(|| self.make(&made.groups)).await;
        match messages {
            Ok(Messages::One(message)) => {
                let deadline = self.deadline;
                // The message is the peer's; the request's bytes are let go.
                drop(self);
                answer(batches, send(message, deadline, forward, address).await)
            }
            Ok(Messages::Parts(parts)) => {
                let numbers: Vec<u32> = self.series.numbers(&made.groups).collect();
                self.send_parts(batches, parts, &numbers, forward, address).await
            }
            Err(text) => not_made(batches, text.clone()),
        }
    }

    async fn make(&self, groups: &[u32]) -> Result<Messages, String> {
        let table = self.table().await?;
        let numbers: Vec<u32> = self.series.numbers(groups).collect();
        match table.split(&numbers, PART_BYTES_MAX) {
            None => self.gather_capnproto(table, &numbers).map(Messages::One),
            Some(parts) => Ok(Messages::Parts(parts)),
        }
    }

    async fn table(&self) -> Result<&SeriesTable, String> {
        let take_apart = async || SeriesTable::new(self.series.all_fields());
        let table = self.in_capnproto.table.get_or_init(take_apart).await;
        table.as_ref().map_err(ToString::to_string)
    }

    fn gather_capnproto(
        &self,
        table: &SeriesTable,
        numbers: &[u32],
    ) -> Result<ForwardMessage, String> {
        ForwardMessage::gather_capnproto(self.tenant.as_str(), table, numbers)
            .map_err(|error| error.to_string())
    }

    /// Sends the series with these numbers part by part, so that what is under way to the peer is
    /// no longer than one of them, and what is made for it neither.
    async fn send_parts<F: Forward>(
        &self,
        batches: Range<usize>,
        parts: &[Part],
        numbers: &[u32],
        forward: &F,
        address: &str,
    ) -> Answer {
        let mut result = Ok(());
        for part in parts {
            let message = match self.gather_part(batches.clone(), part, numbers).await {
                Ok(message) => message,
                Err(text) => return not_made(batches, text),
            };
            let sent = send(&message, self.deadline, forward, address).await;
            result = worse(result, sent.map_err(of_all_series));
        }
        answer(batches, result)
    }

    async fn gather_part(
        &self,
        batches: Range<usize>,
        part: &Part,
        numbers: &[u32],
    ) -> Result<ForwardMessage, String> {
        let numbers_of = |places: &[u32]| -> Vec<u32> {
            places.iter().filter_map(|place| numbers.get(*place as usize)).copied().collect()
        };
        match part {
            Part::CapnProto(places) => {
                self.gather_capnproto(self.table().await?, &numbers_of(places))
            }
            Part::Other(places) => {
                let numbers = numbers_of(places);
                let fields = numbers.iter().filter_map(|number| self.series.field(*number));
                let (tenant, replica) = (self.tenant.as_str(), self.replica_of(batches));
                let series_count = numbers.len() as u32;
                let envelope = Envelope { tenant, replica, is_merged: false, series_count };
                ForwardMessage::gather(envelope, fields, Compression::None)
                    .map(|message| message.through(self.path.clone()))
                    .map_err(|error| error.to_string())
            }
        }
    }
}

async fn send<F: Forward>(
    message: &ForwardMessage,
    deadline: Instant,
    forward: &F,
    address: &str,
) -> Result<(), ForwardError> {
    let timeout = deadline.saturating_duration_since(Instant::now());
    forward.forward(address, message, timeout).await
}

/// What two parts of a write come to. A peer's final refusal is said only where no retry could store
/// the rest.
fn worse(a: Result<(), ForwardError>, b: Result<(), ForwardError>) -> Result<(), ForwardError> {
    let rank = |result: &Result<(), ForwardError>| match result {
        Ok(()) => 0,
        Err(ForwardError::Conflict { .. }) => 1,
        Err(_) => 2,
    };
    if rank(&b) > rank(&a) { b } else { a }
}

/// A refusal of a part, which is one of the whole: its places are not those of the whole.
fn of_all_series(error: ForwardError) -> ForwardError {
    match error {
        ForwardError::Conflict { peer, detail, .. } => {
            ForwardError::Conflict { peer, detail, refused: None }
        }
        error => error,
    }
}

fn not_made(batches: Range<usize>, text: String) -> Answer {
    Answer::failed(batches, ReplicaOutcome::Failed, Shortfall::Refused, text)
}

fn answer(batches: Range<usize>, result: Result<(), ForwardError>) -> Answer {
    match result {
        Ok(()) => Answer::stored(batches),
        Err(error) => Answer::of_failure(batches, error, false),
    }
}
