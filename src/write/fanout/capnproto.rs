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
use crate::wire::refused::RefusedSeries;
use crate::wire::remote_write_v1::DecodeError;
use crate::write::fanout::Forward;
use crate::write::fanout::answers::Answer;
use crate::write::fanout::call::Call;
use crate::write::heavy::off_thread;

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
            Err(text) => Answer::not_made(batches, text.clone()),
        }
    }

    async fn make(self: &Arc<Call>, groups: &[u32]) -> Result<Messages, String> {
        self.take_apart().await;
        let (call, groups) = (self.clone(), Box::<[u32]>::from(groups));
        let make = move || {
            let numbers: Vec<u32> = call.series.numbers(&groups).collect();
            match call.table()?.split(&numbers, PART_BYTES_MAX) {
                None => call.gather_capnproto(&numbers).map(Messages::One),
                Some(parts) => Ok(Messages::Parts(parts)),
            }
        };
        off_thread(self.series.request_bytes(), make).await
    }

    async fn take_apart(self: &Arc<Call>) {
        let take_apart = || {
            let call = self.clone();
            let take_apart = move || SeriesTable::new(call.series.all_fields());
            off_thread(self.series.request_bytes(), take_apart)
        };
        self.in_capnproto.table.get_or_init(take_apart).await;
    }

    fn table(&self) -> Result<&SeriesTable, String> {
        let table = self.in_capnproto.table.get().ok_or("the series were not taken apart")?;
        table.as_ref().map_err(ToString::to_string)
    }

    fn gather_capnproto(&self, numbers: &[u32]) -> Result<ForwardMessage, String> {
        ForwardMessage::gather_capnproto(self.tenant.as_str(), self.table()?, numbers)
            .map_err(|error| error.to_string())
    }

    /// Sends the series with these numbers part by part, so that what is under way to the peer is
    /// no longer than one of them, and what is made for it neither.
    async fn send_parts<F: Forward>(
        self: &Arc<Call>,
        batches: Range<usize>,
        parts: &[Part],
        numbers: &[u32],
        forward: &F,
        address: &str,
    ) -> Answer {
        let mut answers = PartAnswers::default();
        for part in parts {
            let message = match self.gather_part(batches.clone(), part, numbers).await {
                Ok(message) => message,
                Err(text) => return Answer::not_made(batches, text),
            };
            answers.add(part, send(&message, self.deadline, forward, address).await);
        }
        answer(batches, answers.into_result())
    }

    async fn gather_part(
        self: &Arc<Call>,
        batches: Range<usize>,
        part: &Part,
        numbers: &[u32],
    ) -> Result<ForwardMessage, String> {
        let (Part::CapnProto(places) | Part::Other(places)) = part;
        let numbers = places.iter().filter_map(|place| numbers.get(*place as usize));
        let numbers: Vec<u32> = numbers.copied().collect();
        let call = self.clone();
        match part {
            Part::CapnProto(_) => {
                off_thread(PART_BYTES_MAX, move || call.gather_capnproto(&numbers)).await
            }
            Part::Other(_) => {
                let bytes = self.series.request_bytes();
                off_thread(bytes, move || call.gather_in_protobuf(batches, &numbers)).await
            }
        }
    }

    fn gather_in_protobuf(
        &self,
        batches: Range<usize>,
        numbers: &[u32],
    ) -> Result<ForwardMessage, String> {
        let fields = numbers.iter().filter_map(|number| self.series.field(*number));
        let (tenant, replica) = (self.tenant.as_str(), self.replica_of(batches));
        let series_count = numbers.len() as u32;
        let envelope = Envelope { tenant, replica, is_merged: false, series_count };
        ForwardMessage::gather(envelope, fields, Compression::None)
            .map(|message| message.through(self.path.clone()))
            .map_err(|error| error.to_string())
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

/// What the parts of a write come to. A peer's final refusal is said only where no retry could store
/// the rest.
#[derive(Default)]
struct PartAnswers {
    failure: Option<ForwardError>,
    conflict: Option<(Arc<str>, String)>,
    /// Places in the whole and reasons.
    refused: Vec<(u32, u8)>,
}

impl PartAnswers {
    fn add(&mut self, part: &Part, result: Result<(), ForwardError>) {
        /// No reason has this number.
        const UNKNOWN: u8 = 0;
        let (Part::CapnProto(places) | Part::Other(places)) = part;
        match result {
            Ok(()) => {}
            Err(ForwardError::Conflict { peer, detail, refused }) => {
                match refused {
                    Some(refused) => {
                        self.refused.extend(refused.iter().filter_map(|(place, reason)| {
                            Some((*places.get(place as usize)?, reason))
                        }))
                    }
                    None => self.refused.extend(places.iter().map(|place| (*place, UNKNOWN))),
                }
                self.conflict.get_or_insert((peer, detail));
            }
            Err(error) => self.failure = Some(error),
        }
    }

    fn into_result(mut self) -> Result<(), ForwardError> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let Some((peer, detail)) = self.conflict else { return Ok(()) };
        self.refused.sort_unstable();
        let mut refused = RefusedSeries::default();
        self.refused.into_iter().for_each(|(place, reason)| refused.push(place, reason));
        Err(ForwardError::Conflict { peer, detail, refused: Some(refused) })
    }
}

fn answer(batches: Range<usize>, result: Result<(), ForwardError>) -> Answer {
    match result {
        Ok(()) => Answer::stored(batches),
        Err(error) => Answer::of_failure(batches, error, false),
    }
}
