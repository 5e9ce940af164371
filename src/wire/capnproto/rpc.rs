//! Cap'n Proto's RPC protocol, level 1, as far as a call to a peer's `Writer` goes.
//!
//! ```text
//! client                          server
//! bootstrap q0                    return q0: capability
//! finish q0
//! call q1 on the capability       return q1: error, extraErrorContext
//! finish q1
//! ```
//!
//! Many calls may be under way on a connection, and are answered in any order. A finish that comes
//! before the return gives the call up; it is answered all the same.

use capnp::message::Builder;
use capnp::traits::HasTypeId as _;
use capnp_rpc::rpc_capnp::{cap_descriptor, exception, message, message_target, return_};

use crate::wire::capnproto::frame::Message;
use crate::wire::capnproto::packed;
use crate::wire::capnproto::write_request_capnp::writer::{write_params, write_results};
pub use crate::wire::capnproto::write_request_capnp::{Concern, WriteError, write_request, writer};

/// The one capability that a server exports.
pub const WRITER_EXPORT: u32 = 0;

const WRITE_METHOD: u16 = 0;

/// What a message says, as far as both sides care.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    Bootstrap {
        question: u32,
    },
    Call {
        question: u32,
        target: Target,
        /// Whether it is [`Writer.write`](writer) with results for the caller.
        is_write: bool,
    },
    /// See [`bootstrapped`] and [`written`] for what it holds.
    Return {
        question: u32,
        needs_finish: bool,
    },
    Finish {
        question: u32,
    },
    /// What we sent is not understood.
    Unimplemented,
    /// The other side has closed the connection, saying why.
    Abort(String),
    /// Of no interest here: capabilities that are released or resolved.
    Nothing,
    /// Asks for what we do not have.
    Unknown,
}

/// What a call is made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Export(u32),
    /// What a question is going to be answered with.
    Answer(u32),
    /// A part of an answer, which ours have none of.
    PartOfAnswer,
}

pub fn read(message: &Message) -> capnp::Result<Incoming> {
    let reader = message.reader();
    let root: message::Reader<'_> = reader.get_root()?;
    Ok(match root.which() {
        Ok(message::Bootstrap(bootstrap)) => {
            Incoming::Bootstrap { question: bootstrap?.get_question_id() }
        }
        Ok(message::Call(call)) => {
            let call = call?;
            let is_for_caller = matches!(
                call.get_send_results_to().which(),
                Ok(capnp_rpc::rpc_capnp::call::send_results_to::Caller(()))
            );
            let is_writer = call.get_interface_id() == writer::Client::TYPE_ID;
            Incoming::Call {
                question: call.get_question_id(),
                target: read_target(call.get_target()?)?,
                is_write: is_for_caller && is_writer && call.get_method_id() == WRITE_METHOD,
            }
        }
        Ok(message::Return(answer)) => {
            let answer = answer?;
            Incoming::Return {
                question: answer.get_answer_id(),
                needs_finish: !answer.get_no_finish_needed(),
            }
        }
        Ok(message::Finish(finish)) => Incoming::Finish { question: finish?.get_question_id() },
        Ok(message::Unimplemented(_)) => Incoming::Unimplemented,
        Ok(message::Abort(reason)) => Incoming::Abort(text(reason?.get_reason()?)),
        Ok(message::Release(_) | message::Resolve(_)) => Incoming::Nothing,
        _ => Incoming::Unknown,
    })
}

fn read_target(target: message_target::Reader<'_>) -> capnp::Result<Target> {
    Ok(match target.which() {
        Ok(message_target::ImportedCap(id)) => Target::Export(id),
        Ok(message_target::PromisedAnswer(answer)) => {
            let answer = answer?;
            let is_whole = answer.get_transform()?.is_empty();
            if is_whole { Target::Answer(answer.get_question_id()) } else { Target::PartOfAnswer }
        }
        Err(_) => Target::PartOfAnswer,
    })
}

/// The request of a call that [`read`] has found to be a write.
pub fn write_request_of<'a>(
    reader: &'a capnp::message::Reader<&Message>,
) -> capnp::Result<write_request::Reader<'a>> {
    let root: message::Reader<'_> = reader.get_root()?;
    match root.which() {
        Ok(message::Call(call)) => {
            let params: write_params::Reader<'_> = call?.get_params()?.get_content().get_as()?;
            params.get_wr()
        }
        _ => Err(capnp::Error::failed("no call".to_owned())),
    }
}

/// Why a call has no answer of the method's own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The bytes are not what they should be.
    #[error("{0}")]
    Malformed(String),
    /// The other side did not come to call the method, or the method failed outside of its schema.
    #[error("{reason}")]
    Exception { is_overload: bool, reason: String },
}

impl From<capnp::Error> for CallError {
    fn from(error: capnp::Error) -> CallError {
        CallError::Malformed(error.to_string())
    }
}

/// The capability that a bootstrap was answered with.
pub fn bootstrapped(message: &Message) -> Result<u32, CallError> {
    let reader = message.reader();
    let results = results_of(reader.get_root()?)?;
    let capability = results.get_cap_table()?.iter().find_map(|capability| {
        match capability.which() {
            // A promise may be called like any other, for as long as it is not released.
            Ok(cap_descriptor::SenderHosted(id) | cap_descriptor::SenderPromise(id)) => Some(id),
            _ => None,
        }
    });
    capability.ok_or_else(|| CallError::Malformed("peer has no interface to call".to_owned()))
}

/// What the method itself answers to a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteAnswer {
    pub error: WriteError,
    /// In words; may be empty.
    pub said: String,
    /// What only nodes of ours tell: the refused series, encoded. `None` from all others.
    pub refused: Option<Vec<u8>>,
    pub concern: Concern,
}

/// The answer to a write.
pub fn written(message: &Message) -> Result<WriteAnswer, CallError> {
    let reader = message.reader();
    let results = results_of(reader.get_root()?)?;
    let results: write_results::Reader<'_> = results.get_content().get_as()?;
    let refused = match results.has_refused() {
        true => Some(results.get_refused()?.to_vec()),
        false => None,
    };
    Ok(WriteAnswer {
        // One that is not known yet is no success.
        error: results.get_error().unwrap_or(WriteError::Internal),
        said: text(results.get_extra_error_context()?),
        refused,
        concern: results.get_concern().unwrap_or(Concern::Unsaid),
    })
}

fn results_of(
    root: message::Reader<'_>,
) -> Result<capnp_rpc::rpc_capnp::payload::Reader<'_>, CallError> {
    let Ok(message::Return(answer)) = root.which() else {
        return Err(CallError::Malformed("no return".to_owned()));
    };
    match answer?.which() {
        Ok(return_::Results(results)) => Ok(results?),
        Ok(return_::Exception(exception)) => {
            let exception = exception?;
            let is_overload = matches!(
                exception.get_type(),
                Ok(exception::Type::Overloaded | exception::Type::Disconnected)
            );
            Err(CallError::Exception { is_overload, reason: text(exception.get_reason()?) })
        }
        Ok(return_::Canceled(())) => {
            Err(CallError::Exception { is_overload: false, reason: "canceled".to_owned() })
        }
        _ => Err(CallError::Malformed("peer answers elsewhere".to_owned())),
    }
}

fn text(text: capnp::text::Reader<'_>) -> String {
    /// Words of the other side are cut here.
    const TEXT_BYTES_MAX: usize = 512;
    let bytes = text.as_bytes();
    String::from_utf8_lossy(bytes.get(..TEXT_BYTES_MAX).unwrap_or(bytes)).into_owned()
}

/// Asks for the interface of the other side.
pub fn bootstrap(question: u32) -> Vec<u8> {
    packed_message(|message| message.init_bootstrap().set_question_id(question))
}

/// Gives the writer to whoever asked for it.
pub fn return_writer(question: u32) -> Vec<u8> {
    const WORDS: u64 = 11;
    let message = [
        WORDS << 32,
        // Message: a return.
        struct_pointer(0, 1, 1),
        3,
        struct_pointer(0, 2, 1),
        // Return: results.
        u64::from(question),
        0,
        struct_pointer(0, 0, 2),
        // Payload: the capability that is first in the table, and the table.
        CAPABILITY_POINTER,
        structs_pointer(0, 2),
        structs_tag(1, 1, 1),
        // CapDescriptor: hosted by the sender.
        1 | u64::from(WRITER_EXPORT) << 32,
        0,
    ];
    let mut bytes = Vec::new();
    packed::pack(&message, &mut bytes);
    bytes
}

/// Answers a write.
pub fn return_written(question: u32, written: &WriteAnswer) -> Vec<u8> {
    packed_message(|message| {
        let mut answer = message.init_return();
        answer.set_answer_id(question);
        let content = answer.init_results().get_content();
        let mut results: write_results::Builder<'_> = content.init_as();
        results.set_error(written.error);
        results.set_concern(written.concern);
        if !written.said.is_empty() {
            results.set_extra_error_context(&written.said[..]);
        }
        if let Some(refused) = &written.refused {
            results.set_refused(refused);
        }
    })
}

/// Answers a call that cannot be made, or a question that we have no answer to.
pub fn return_exception(question: u32, kind: exception::Type, reason: &str) -> Vec<u8> {
    packed_message(|message| {
        let mut answer = message.init_return();
        answer.set_answer_id(question);
        let mut exception = answer.init_exception();
        exception.set_type(kind);
        exception.set_reason(reason);
    })
}

/// Answers a call that was given up.
pub fn return_canceled(question: u32) -> Vec<u8> {
    packed_message(|message| {
        let mut answer = message.init_return();
        answer.set_answer_id(question);
        answer.set_canceled(());
    })
}

/// Lets go of an answer, or gives a call up.
pub fn finish(question: u32) -> Vec<u8> {
    packed_message(|message| {
        let mut finish = message.init_finish();
        finish.set_question_id(question);
        // What a write is answered with holds no capability.
        finish.set_release_result_caps(false);
    })
}

/// Says why the connection is closed.
pub fn abort(reason: &str) -> Vec<u8> {
    packed_message(|message| {
        let mut exception = message.init_abort();
        exception.set_type(exception::Type::Failed);
        exception.set_reason(reason);
    })
}

/// Gives a message back that asks for what we do not have.
pub fn unimplemented(message: &Message) -> capnp::Result<Vec<u8>> {
    let reader = message.reader();
    let theirs: message::Reader<'_> = reader.get_root()?;
    let mut builder = Builder::new_default();
    builder.init_root::<message::Builder<'_>>().set_unimplemented(theirs)?;
    Ok(to_packed(&builder))
}

fn packed_message(fill: impl FnOnce(message::Builder<'_>)) -> Vec<u8> {
    let mut builder = Builder::new_default();
    fill(builder.init_root());
    to_packed(&builder)
}

fn to_packed(builder: &Builder<capnp::message::HeapAllocator>) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Writing to a Vec cannot fail.
    let _ = capnp::serialize_packed::write_message(&mut bytes, builder);
    bytes
}

/// Pointers of a `WriteRequest` that we send: its newest field is in no release of Thanos.
pub(super) const WRITE_REQUEST_POINTERS: u16 = 3;

/// Words of [`call_head`] that stand in the message's only segment.
pub const CALL_HEAD_WORDS: usize = 14;

/// What stands before the body of a call to write: the segment table, and the segment up to the
/// `WriteRequest`, which is `body_words` long and begins with its pointers. Packed.
pub fn call_head(question: u32, export: u32, body_words: u32) -> Vec<u8> {
    let words = u64::from(body_words) + CALL_HEAD_WORDS as u64;
    let head = [
        // One segment.
        words << 32,
        // Message: a call.
        struct_pointer(0, 1, 1),
        2,
        struct_pointer(0, 3, 3),
        // Call: question, method and whom to answer.
        u64::from(question) | u64::from(WRITE_METHOD) << 32,
        writer::Client::TYPE_ID,
        0,
        struct_pointer(2, 1, 1),
        struct_pointer(3, 0, 2),
        0,
        // MessageTarget.
        u64::from(export),
        0,
        // Payload: the parameters, no capabilities.
        struct_pointer(1, 0, 1),
        0,
        // Parameters.
        struct_pointer(0, 0, WRITE_REQUEST_POINTERS),
    ];
    let mut bytes = Vec::new();
    packed::pack(&head, &mut bytes);
    bytes
}

/// A pointer to a struct that begins `offset` words behind it.
pub(super) const fn struct_pointer(offset: u32, data_words: u16, pointers: u16) -> u64 {
    (offset as u64) << 2 | (data_words as u64) << 32 | (pointers as u64) << 48
}

/// A pointer to the capability with index 0.
const CAPABILITY_POINTER: u64 = 3;

/// A pointer to a list of structs, whose tag is `offset` words behind it and is followed by `words`
/// words.
pub(super) const fn structs_pointer(offset: u32, words: u32) -> u64 {
    list_pointer(offset, 7, words)
}

/// A pointer to a list of `count` elements, `offset` words behind it. `size` is 2 for bytes, 4 for
/// elements of four bytes, 5 for those of eight.
pub(super) const fn list_pointer(offset: u32, size: u32, count: u32) -> u64 {
    1 | (offset as u64) << 2 | (size as u64) << 32 | (count as u64) << 35
}

/// What stands before the elements of a list of structs.
pub(super) const fn structs_tag(count: u32, data_words: u16, pointers: u16) -> u64 {
    struct_pointer(count, data_words, pointers)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Takes a packed message off its stream.
    pub(crate) fn unpacked(packed: &[u8]) -> Message {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut reader = crate::wire::capnproto::frame::FrameReader::new(packed);
            let table = reader.read_table().await.unwrap();
            let mut words = Vec::new();
            reader.read_words(&mut words, table.words()).await.unwrap();
            Message::new(table, words)
        })
    }

    fn told(error: WriteError, said: &str, refused: Option<&[u8]>) -> WriteAnswer {
        let refused = refused.map(<[u8]>::to_vec);
        WriteAnswer { error, said: said.to_owned(), refused, concern: Concern::Unsaid }
    }

    #[test]
    fn messages_read_as_they_were_written() {
        let read = |packed: &[u8]| read(&unpacked(packed)).unwrap();
        assert_eq!(read(&bootstrap(7)), Incoming::Bootstrap { question: 7 });
        assert_eq!(read(&finish(8)), Incoming::Finish { question: 8 });
        let answer = Incoming::Return { question: 9, needs_finish: true };
        for packed in [
            return_writer(9),
            return_written(9, &told(WriteError::None, "", None)),
            return_exception(9, exception::Type::Failed, "why"),
            return_canceled(9),
        ] {
            assert_eq!(read(&packed), answer);
        }
        assert_eq!(read(&abort("why")), Incoming::Abort("why".to_owned()));
        let ours = unimplemented(&unpacked(&bootstrap(7))).unwrap();
        assert_eq!(read(&ours), Incoming::Unimplemented);
    }

    #[test]
    fn answers_have_their_content() {
        assert_eq!(bootstrapped(&unpacked(&return_writer(1))), Ok(WRITER_EXPORT));
        let refusal = told(WriteError::AlreadyExists, "out of order", Some(b"list"));
        assert_eq!(written(&unpacked(&return_written(1, &refusal))), Ok(refusal));
        let opening = told(WriteError::InvalidArgument, "opening", None);
        let opening = WriteAnswer { concern: Concern::Tenant, ..opening };
        assert_eq!(written(&unpacked(&return_written(1, &opening))), Ok(opening));
        // A struct of zeros may be left out altogether, and an empty list is one.
        for refused in [None, Some(&b""[..])] {
            let success = told(WriteError::None, "", refused);
            assert_eq!(written(&unpacked(&return_written(1, &success))), Ok(success));
        }
        let exception = return_exception(1, exception::Type::Overloaded, "full");
        let expected = CallError::Exception { is_overload: true, reason: "full".to_owned() };
        assert_eq!(written(&unpacked(&exception)), Err(expected.clone()));
        assert_eq!(bootstrapped(&unpacked(&exception)), Err(expected));
        assert!(written(&unpacked(&bootstrap(1))).is_err());
    }

    #[test]
    fn what_thanos_answers_is_read() {
        let recorded = include_bytes!("../../../tests/data/capnproto/ingestor-answers.bin");
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let messages = runtime.block_on(async {
            let mut reader = crate::wire::capnproto::frame::FrameReader::new(&recorded[..]);
            let mut messages = Vec::new();
            while reader.wait().await.unwrap() {
                let table = reader.read_table().await.unwrap();
                let mut words = Vec::new();
                reader.read_words(&mut words, table.words()).await.unwrap();
                messages.push(Message::new(table, words));
            }
            messages
        });
        let is_return = |message: &Message| {
            matches!(read(message), Ok(Incoming::Return { needs_finish: true, .. }))
        };
        let answers: Vec<_> = messages.iter().filter(|message| is_return(message)).collect();
        let [writer, stored, conflict] = &answers[..] else { panic!("three answers") };
        assert_eq!(bootstrapped(writer), Ok(0));
        assert_eq!(written(stored), Ok(told(WriteError::None, "", None)));
        assert_eq!(written(conflict), Ok(told(WriteError::AlreadyExists, "", None)));
    }

    #[test]
    fn a_call_reads_as_one() {
        let mut packed = call_head(70_000, 3, 4);
        packed::pack(&[0; 4], &mut packed);
        let message = unpacked(&packed);
        let call = Incoming::Call { question: 70_000, target: Target::Export(3), is_write: true };
        assert_eq!(read(&message).unwrap(), call);
        let reader = message.reader();
        let request = write_request_of(&reader).unwrap();
        assert!(!request.has_data() && !request.has_time_series() && !request.has_symbols());
    }
}
