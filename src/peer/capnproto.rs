//! A connection to a peer over Cap'n Proto RPC, used by many calls at once.
//!
//! Each call writes its message itself, so that nothing is queued and what a call holds is let go
//! when it ends. One that is given up within its message takes the connection with it, as the
//! stream cannot go on from there. A task takes the answers in and lets the peer forget them.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use bytes::Buf;
use parking_lot::Mutex;
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex as AsyncMutex, Notify, oneshot};
use tokio::task::JoinHandle;
use tonic::Code;

use crate::peer::client::CallFailure;
use crate::peer::socket::Heard;
use crate::wire::capnproto::frame::{FrameReader, Message};
use crate::wire::capnproto::rpc::{self, CallError, Concern, Incoming, WriteAnswer, WriteError};
use crate::wire::refused::RefusedSeries;

/// An answer is an error's name, a few words, and a list of refused series of 1 MiB at most.
const ANSWER_WORDS_MAX: usize = (1 << 20) / 8 + 8 * 1024;

/// The question that asks for the peer's interface.
const BOOTSTRAP: u32 = 0;

type Reader = FrameReader<BufReader<OwnedReadHalf>>;
type Answer = Result<WriteAnswer, CallError>;

/// A connection. It is closed when the last clone is dropped.
#[derive(Clone)]
pub struct Client(Arc<Shared>);

struct Shared {
    /// What the peer calls its writer.
    export: u32,
    /// None once a message was not written to its end.
    writer: AsyncMutex<Option<OwnedWriteHalf>>,
    state: Mutex<State>,
    /// An answer has told refused series, or that there are none.
    tells_refused: AtomicBool,
    /// Told when there is something in [`State::notes`].
    has_notes: Arc<Notify>,
}

struct State {
    next_question: u32,
    waiting: HashMap<u32, oneshot::Sender<Answer>>,
    /// Short messages that are to be written when the stream is free: answers let go of, calls
    /// given up.
    notes: Vec<u8>,
    has_ended: bool,
}

impl Client {
    /// Asks the peer for its interface. The second value ends with the connection; `heard` learns
    /// of answers.
    pub async fn connect(
        stream: TcpStream,
        heard: Arc<Heard>,
    ) -> io::Result<(Client, JoinHandle<()>)> {
        let (reader, mut writer) = stream.into_split();
        let mut reader = FrameReader::new(BufReader::new(reader));
        writer.write_all(&rpc::bootstrap(BOOTSTRAP)).await?;
        let export = loop {
            let message = read_message(&mut reader).await?;
            match rpc::read(&message).map_err(io::Error::other)? {
                Incoming::Return { question: BOOTSTRAP, .. } => {
                    break rpc::bootstrapped(&message).map_err(io::Error::other)?;
                }
                Incoming::Abort(reason) => return Err(io::Error::other(reason)),
                _ => {}
            }
        };
        let has_notes = Arc::new(Notify::new());
        let state = State {
            next_question: BOOTSTRAP + 1,
            waiting: HashMap::new(),
            notes: rpc::finish(BOOTSTRAP),
            has_ended: false,
        };
        let client = Client(Arc::new(Shared {
            export,
            writer: AsyncMutex::new(Some(writer)),
            state: Mutex::new(state),
            tells_refused: AtomicBool::new(false),
            has_notes: has_notes.clone(),
        }));
        has_notes.notify_one();
        let shared = Arc::downgrade(&client.0);
        let ended = tokio::spawn(async move {
            tokio::select! {
                ended = read_answers(reader, &shared, &heard) => {
                    if let Err(error) = ended {
                        tracing::debug!(err = %error, "connection to a peer ended");
                    }
                }
                () = write_notes(&shared, &has_notes) => {}
            }
            if let Some(shared) = shared.upgrade() {
                shared.end();
            }
        });
        Ok((client, ended))
    }

    /// Whether the peer takes series of several replicas in one request: it tells which ones it has
    /// refused.
    pub fn takes_merged(&self) -> bool {
        self.0.tells_refused.load(Ordering::Relaxed)
    }

    /// Calls the peer's writer with a request of `words` words, packed, that holds `series_count`
    /// series, and waits for its answer.
    /// When the connection ends before, the call may be made again on another one: a write that is
    /// made twice stores the same.
    pub async fn write(
        &self,
        words: u32,
        request: impl Buf,
        series_count: u32,
    ) -> Result<(), CallFailure> {
        let (question, answer) = self.0.ask().ok_or(CallFailure::NotSent)?;
        let mut asked = Asked { shared: &self.0, question, is_sent: false };
        let head = rpc::call_head(question, self.0.export, words);
        self.0.send(&head, request).await.map_err(|_| CallFailure::NotSent)?;
        asked.is_sent = true;
        let answer = answer.await.map_err(|_| CallFailure::NotSent)?;
        judge(answer, series_count)
    }
}

/// A question whose answer is waited for.
struct Asked<'a> {
    shared: &'a Shared,
    question: u32,
    is_sent: bool,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        if state.waiting.remove(&self.question).is_some() && self.is_sent {
            state.notes.extend(rpc::finish(self.question));
            drop(state);
            self.shared.has_notes.notify_one();
        }
    }
}

impl Shared {
    /// The next question and its answer to come; `None` if the connection has ended.
    fn ask(&self) -> Option<(u32, oneshot::Receiver<Answer>)> {
        let (sender, answer) = oneshot::channel();
        let mut state = self.state.lock();
        if state.has_ended {
            return None;
        }
        let question = state.next_question;
        // Long before a number comes again its first question has been answered or has timed out.
        state.next_question = question.wrapping_add(1).max(BOOTSTRAP + 1);
        state.waiting.insert(question, sender);
        Some((question, answer))
    }

    /// Writes a message when the stream is free. If it is dropped before the end, or fails, the
    /// connection is closed.
    async fn send(&self, head: &[u8], body: impl Buf) -> io::Result<()> {
        let mut writer = self.writer.lock().await;
        // Taken out for as long as the stream is within a message.
        let mut stream = writer.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let notes = std::mem::take(&mut self.state.lock().notes);
        let mut bytes = notes.chain(head).chain(body);
        stream.write_all_buf(&mut bytes).await?;
        *writer = Some(stream);
        Ok(())
    }

    fn end(&self) {
        let mut state = self.state.lock();
        state.has_ended = true;
        // Those who wait for an answer learn that there is none.
        state.waiting.clear();
    }
}

/// Takes answers in until the connection ends.
async fn read_answers(mut reader: Reader, shared: &Weak<Shared>, heard: &Heard) -> io::Result<()> {
    loop {
        let message = read_message(&mut reader).await?;
        let incoming = rpc::read(&message).map_err(io::Error::other)?;
        let Some(shared) = shared.upgrade() else { return Ok(()) };
        let note = match incoming {
            Incoming::Return { question, needs_finish } => {
                heard.set_answered();
                let asked = shared.state.lock().waiting.remove(&question);
                let Some(asked) = asked else { continue };
                let answer = rpc::written(&message);
                if answer.as_ref().is_ok_and(|answer| answer.refused.is_some()) {
                    shared.tells_refused.store(true, Ordering::Relaxed);
                }
                // The call may have been given up at this moment.
                let _ = asked.send(answer);
                needs_finish.then(|| rpc::finish(question))
            }
            Incoming::Abort(reason) => return Err(io::Error::other(reason)),
            Incoming::Unimplemented => return Err(io::ErrorKind::Unsupported.into()),
            // Peers have nothing to ask here.
            Incoming::Bootstrap { .. } | Incoming::Call { .. } | Incoming::Unknown => {
                rpc::unimplemented(&message).ok()
            }
            Incoming::Finish { .. } | Incoming::Nothing => None,
        };
        if let Some(note) = note {
            shared.state.lock().notes.extend(note);
            shared.has_notes.notify_one();
        }
    }
}

/// Writes notes that no call takes along.
async fn write_notes(shared: &Weak<Shared>, has_notes: &Notify) {
    loop {
        has_notes.notified().await;
        let Some(shared) = shared.upgrade() else { return };
        if !shared.state.lock().notes.is_empty() && shared.send(&[], &[][..]).await.is_err() {
            return;
        }
    }
}

async fn read_message(reader: &mut Reader) -> io::Result<Message> {
    let table = reader.read_table().await.map_err(io::Error::other)?;
    let count = table.words();
    if count > ANSWER_WORDS_MAX {
        return Err(io::Error::other("answer is too long"));
    }
    let mut words = Vec::new();
    reader.read_words(&mut words, count).await?;
    Ok(Message::new(table, words))
}

/// What an answer to a message of so many series comes to.
fn judge(answer: Answer, series_count: u32) -> Result<(), CallFailure> {
    let status = |code, said: String| {
        // Thanos says nothing besides.
        let said = if said.is_empty() { "no reason was given".to_owned() } else { said };
        Err(CallFailure::Status(code, said))
    };
    let WriteAnswer { error, said, refused, concern } = match answer {
        Ok(answer) => answer,
        Err(error @ CallError::Exception { is_overload: true, .. }) => {
            return status(Code::Unavailable, error.to_string());
        }
        Err(error) => return status(Code::Internal, error.to_string()),
    };
    match error {
        WriteError::None => Ok(()),
        _ if concern == Concern::Tenant => Err(CallFailure::TenantNotReady(said)),
        WriteError::Unavailable => status(Code::Unavailable, said),
        WriteError::AlreadyExists => {
            let refused = RefusedSeries::decode(&refused.unwrap_or_default(), series_count);
            match refused {
                Ok(refused) if !refused.is_empty() => Err(CallFailure::Refused(refused, said)),
                // Which ones is not told: any of them.
                _ => status(Code::AlreadyExists, said),
            }
        }
        WriteError::InvalidArgument => status(Code::InvalidArgument, said),
        WriteError::Internal => status(Code::Internal, said),
    }
}
