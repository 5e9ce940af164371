//! One connection of a peer: messages in, calls side by side, answers out.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use capnp_rpc::rpc_capnp::exception;
use parking_lot::Mutex;
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::capnproto::{CallError, ConnectionError, Server, respond};
use crate::door::{FIRST_BYTE_TIMEOUT, closing};
use crate::wire::capnproto::frame::{FrameReader, Message, SegmentTable, WORD_BYTES};
use crate::wire::capnproto::rpc::{self, Incoming, Target, WRITER_EXPORT};
use crate::write::admission::InflightGuard;
use crate::write::sink::WriteSink;

/// Calls under way on one connection, as for gRPC. More are not read.
pub(super) const CALLS_MAX: usize = 1000;

/// Answers that hold the writer and were not let go of. One is usual.
const BOOTSTRAPS_MAX: usize = 1000;

/// Answers made and not yet written.
const ANSWERS_QUEUED_MAX: usize = 64;

/// What a call counts for at least: its task, its answer.
const CALL_BYTES_MIN: u64 = 4 * 1024;

/// Shorter messages are read before anything is asked: those without series. Of a longer one that
/// is refused so much is kept, as a call stands before its parameters.
const SMALL_WORDS: usize = 512;

/// A buffer grows from here, doubling up to the message's length.
const STEP_WORDS: usize = 8 * 1024;

/// So many words are unpacked at a time, in less than a millisecond.
const STEP_WORDS_MAX: usize = 128 * 1024;

/// Bytes of the stream that are buffered.
const STREAM_BYTES: usize = 64 * 1024;

/// The protocol has no word for a node that stops, so a connection is closed between calls: when
/// none has been under way for so long, in which the next of a busy peer would have come.
const BETWEEN_CALLS: Duration = Duration::from_millis(50);

/// A connection on which there is always a call under way is read no more after this time.
const ALWAYS_BUSY_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) struct Connection<S> {
    server: Arc<Server<S>>,
    reader: FrameReader<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
    peer: SocketAddr,
    draining: CancellationToken,
}

/// A message with what it is held by, or why a call in it is not made.
struct Received {
    message: Message,
    admitted: Result<InflightGuard, CallError>,
}

impl<S: WriteSink> Connection<S> {
    pub(super) fn new(
        server: Arc<Server<S>>,
        stream: TcpStream,
        peer: SocketAddr,
        draining: CancellationToken,
    ) -> Connection<S> {
        let (reader, writer) = stream.into_split();
        let reader = FrameReader::new(BufReader::with_capacity(STREAM_BYTES, reader));
        Connection { server, reader, writer, peer, draining }
    }

    /// Serves until the peer closes the connection, sends what is no message, or the node stops.
    pub(super) async fn run(self) {
        let Connection { server, mut reader, mut writer, peer, draining } = self;
        let (answers, queue) = mpsc::channel(ANSWERS_QUEUED_MAX);
        let writing = write_answers(&mut writer, queue, server.options.message_read_timeout);
        let mut session = Session {
            server,
            peer,
            answers: answers.clone(),
            bootstraps: HashSet::new(),
            calls: Arc::default(),
            tasks: TaskTracker::new(),
            places: Arc::new(Semaphore::new(CALLS_MAX)),
            calls_made: 0,
        };
        let (stream, is_stopping) = (&mut reader, draining.clone());
        let reading = async move {
            if let Err(error) = session.serve(stream, &is_stopping).await {
                tracing::debug!(component = "capnproto", err = %error, "connection failed");
                // Nobody may be there to read it.
                let _ = answers.send(rpc::abort(&error.to_string())).await;
            }
        };
        // Answers are written to the last, but one that is not read ends the connection.
        {
            tokio::pin!(reading, writing);
            tokio::select! {
                () = &mut reading => {}
                _ = &mut writing => return,
            }
            let _ = writing.await;
        }
        if writer.shutdown().await.is_ok() {
            closing::pass_over(reader.stream_mut()).await;
        }
    }
}

/// Waits until something has come; false at the end of the stream. A peer that connects says what it
/// wants at once, and then may be silent for as long as it likes.
async fn wait(
    reader: &mut FrameReader<BufReader<OwnedReadHalf>>,
    is_first: bool,
) -> Result<bool, ConnectionError> {
    if !is_first {
        return Ok(reader.wait().await?);
    }
    let has_more = timeout(FIRST_BYTE_TIMEOUT, reader.wait()).await;
    Ok(has_more.map_err(|_| ConnectionError::Silent)??)
}

/// Writes answers until there can be no more.
async fn write_answers(
    writer: &mut OwnedWriteHalf,
    mut answers: mpsc::Receiver<Vec<u8>>,
    patience: Duration,
) -> Result<(), ConnectionError> {
    while let Some(mut bytes) = answers.recv().await {
        while let Ok(more) = answers.try_recv() {
            bytes.extend_from_slice(&more);
        }
        let written = timeout(patience, writer.write_all(&bytes)).await;
        written.map_err(|_| ConnectionError::AnswersNotRead)??;
    }
    Ok(())
}

/// The state of a connection.
struct Session<S> {
    server: Arc<Server<S>>,
    peer: SocketAddr,
    answers: mpsc::Sender<Vec<u8>>,
    /// Questions that are answered with the writer.
    bootstraps: HashSet<u32>,
    calls: Arc<Calls>,
    tasks: TaskTracker,
    places: Arc<Semaphore>,
    calls_made: u64,
}

/// Calls under way by their questions, each with a number of its own: a question that was given up
/// may be asked again before its call has ended. Whoever takes one out answers it.
#[derive(Default)]
struct Calls(Mutex<HashMap<u32, u64>>);

impl Calls {
    /// Takes out the call with this number. False if it was given up.
    fn end(&self, question: u32, number: u64) -> bool {
        let mut calls = self.0.lock();
        let is_under_way = calls.get(&question) == Some(&number);
        if is_under_way {
            calls.remove(&question);
        }
        is_under_way
    }
}

impl<S: WriteSink> Session<S> {
    async fn serve(
        &mut self,
        reader: &mut FrameReader<BufReader<OwnedReadHalf>>,
        draining: &CancellationToken,
    ) -> Result<(), ConnectionError> {
        let always_busy = async {
            draining.cancelled().await;
            sleep(ALWAYS_BUSY_TIMEOUT).await;
        };
        tokio::pin!(always_busy);
        let mut is_first = true;
        loop {
            let between_calls = async {
                draining.cancelled().await;
                self.tasks.close();
                self.tasks.wait().await;
                sleep(BETWEEN_CALLS).await;
            };
            let has_more = tokio::select! {
                biased;
                () = &mut always_busy => {
                    self.tasks.close();
                    self.tasks.wait().await;
                    false
                }
                has_more = wait(reader, is_first) => has_more?,
                () = between_calls => false,
            };
            if !has_more {
                return Ok(());
            }
            is_first = false;
            let patience = self.server.options.message_read_timeout;
            let received = timeout(patience, self.receive(reader)).await;
            let received = received.map_err(|_| ConnectionError::Slow(patience))??;
            self.take(received).await?;
        }
    }

    async fn receive(
        &self,
        reader: &mut FrameReader<BufReader<OwnedReadHalf>>,
    ) -> Result<Received, ConnectionError> {
        let table = reader.read_table().await?;
        let count = table.words();
        let mut words = self.server.words.take();
        let small = count.min(SMALL_WORDS);
        reader.read_words(&mut words, small).await?;
        let mut admitted = self.admit(&table);
        while words.len() < count {
            let left = count - words.len();
            let step = left.min(words.len().max(STEP_WORDS));
            let bytes = (words.len() + step) as u64 * WORD_BYTES as u64;
            admitted = admitted.and_then(|mut guard| {
                guard.resize(CALL_BYTES_MIN + bytes)?;
                Ok(guard)
            });
            if admitted.is_err() {
                reader.skip_words(left).await?;
                words.truncate(small);
                break;
            }
            let doubled = words.len().max(STEP_WORDS).min(left);
            words.reserve_exact(doubled);
            let end = words.len() + step;
            while words.len() < end {
                let words_more = (end - words.len()).min(STEP_WORDS_MAX);
                reader.read_words(&mut words, words_more).await?;
                // What was long before it was packed may all have come.
                if words_more == STEP_WORDS_MAX {
                    tokio::task::yield_now().await;
                }
            }
        }
        Ok(Received { message: Message::new(table, words), admitted })
    }

    /// Whether there is room for a message of a call, all of which must fit now but is held only as
    /// it arrives.
    fn admit(&self, table: &SegmentTable) -> Result<InflightGuard, CallError> {
        self.server.check()?;
        let admission = &self.server.options.admission;
        let bytes = table.bytes();
        let max = admission.bytes_max().saturating_sub(CALL_BYTES_MIN);
        if bytes > max {
            return Err(CallError::TooLong { bytes, max });
        }
        let guard = admission.admit(CALL_BYTES_MIN)?;
        admission.check(bytes)?;
        Ok(guard)
    }

    async fn take(&mut self, received: Received) -> Result<(), ConnectionError> {
        match rpc::read(&received.message)? {
            Incoming::Bootstrap { question } => {
                if self.bootstraps.len() >= BOOTSTRAPS_MAX {
                    return Err(ConnectionError::TooManyAnswers(BOOTSTRAPS_MAX));
                }
                self.bootstraps.insert(question);
                self.answer(rpc::return_writer(question)).await?;
            }
            Incoming::Call { question, target, is_write } => {
                if let Some(reason) = self.why_not(target, is_write) {
                    let kind = exception::Type::Unimplemented;
                    self.answer(rpc::return_exception(question, kind, reason)).await?;
                } else {
                    return self.call(question, received).await;
                }
            }
            Incoming::Finish { question } => {
                self.bootstraps.remove(&question);
                let is_given_up = self.calls.0.lock().remove(&question).is_some();
                if is_given_up {
                    self.answer(rpc::return_canceled(question)).await?;
                }
            }
            Incoming::Abort(reason) => {
                tracing::debug!(component = "capnproto", reason, "peer closes the connection");
            }
            Incoming::Return { .. } | Incoming::Unimplemented | Incoming::Nothing => {}
            Incoming::Unknown => self.answer(rpc::unimplemented(&received.message)?).await?,
        }
        self.server.words.put_back(received.message.into_words());
        Ok(())
    }

    /// Why a call is not one to the writer's method, if it is not.
    fn why_not(&self, target: Target, is_write: bool) -> Option<&'static str> {
        let is_writer = match target {
            Target::Export(export) => export == WRITER_EXPORT,
            Target::Answer(question) => self.bootstraps.contains(&question),
            Target::PartOfAnswer => false,
        };
        match (is_writer, is_write) {
            (true, true) => None,
            (true, false) => Some("the writer has no such method"),
            (false, _) => Some("no such capability"),
        }
    }

    /// Starts a call, or answers why it is not made. One that was started is finished, even if it is
    /// given up or the connection ends: a Thanos router cancels what is still under way when its
    /// verdict is fixed, and good series would be a copy short for ever.
    async fn call(&mut self, question: u32, received: Received) -> Result<(), ConnectionError> {
        let Received { message, admitted } = received;
        let held = match admitted {
            Ok(held) => held,
            Err(error) => {
                self.server.note_failure(&error, self.peer);
                self.server.words.put_back(message.into_words());
                return self.answer(answer(question, &Err(error))).await;
            }
        };
        let metrics = &self.server.options.metrics;
        if self.places.available_permits() == 0 {
            metrics.calls_waited.inc();
        }
        // It is not closed.
        let Ok(place) = self.places.clone().acquire_owned().await else { return Ok(()) };
        let under_way = metrics.calls.count();
        self.calls_made += 1;
        let number = self.calls_made;
        // It keeps no connection open.
        let (calls, answers) = (self.calls.clone(), self.answers.downgrade());
        let (server, peer) = (self.server.clone(), self.peer);
        let message = Arc::new(message);
        let made = async move {
            let result = server.write(&message).await;
            if let Err(error) = &result {
                server.note_failure(error, peer);
            }
            // One that was not stored in time may be worked on still.
            if let Some(message) = Arc::into_inner(message) {
                server.words.put_back(message.into_words());
            }
            drop(held);
            if calls.end(question, number)
                && let Some(answers) = answers.upgrade()
            {
                // The connection may be gone.
                let _ = answers.send(answer(question, &result)).await;
            }
            drop((place, under_way));
        };
        let before = self.calls.0.lock().insert(question, number);
        self.tasks.spawn(self.server.options.tasks.track_future(made));
        match before {
            Some(_) => Err(ConnectionError::QuestionInUse(question)),
            None => Ok(()),
        }
    }

    async fn answer(&self, bytes: Vec<u8>) -> Result<(), ConnectionError> {
        self.answers.send(bytes).await.map_err(|_| ConnectionError::AnswersNotRead)
    }
}

/// The answer to a write.
fn answer(question: u32, result: &Result<(), CallError>) -> Vec<u8> {
    rpc::return_written(question, &respond::written(result))
}
