//! Cap'n Proto streams of peers: no bytes panic, no message is written out longer than its caps allow,
//! and series that were encoded come back as they were.
//!
//! Input: a packed stream, which is also read as series to encode.

use ringest::wire::capnproto::decode::{Position, SeriesCaps, next_piece};
use ringest::wire::capnproto::encode::SeriesTable;
use ringest::wire::capnproto::frame::{FrameReader, Message};
use ringest::wire::capnproto::rpc;

/// Longer messages would only make a run slow.
const WORDS_MAX: usize = 1 << 14;
const PIECE_BYTES: usize = 1 << 16;
const CAPS: SeriesCaps = SeriesCaps { labels_max: 100, bytes_max: 4096 };
/// Of one series: its capped labels with their lengths, one sample at most a word.
const SERIES_BYTES_MAX: usize = 1 << 20;

/// Tries one input.
pub(crate) fn run(input: &[u8]) {
    if let Some(message) = message_of(input) {
        let _ = rpc::read(&message);
        let _ = rpc::written(&message);
        let _ = rpc::bootstrapped(&message);
        let _ = rpc::unimplemented(&message);
        take_apart(&message);
    }
    let Ok(table) = SeriesTable::new([input]) else { return };
    let numbers: Vec<u32> = (0..table.len() as u32).collect();
    let Ok(encoded) = table.encode("t", &numbers) else { return };
    let head = rpc::call_head(1, 0, encoded.words);
    let stream = [head, encoded.packed].concat();
    let message = message_of(&stream);
    if table.len() < 100 {
        let message = message.expect("our own message");
        take_apart(&message);
    }
}

/// The first message of a stream.
fn message_of(stream: &[u8]) -> Option<Message> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let mut reader = FrameReader::new(stream);
        let table = reader.read_table().await.ok()?;
        let words_count = table.words();
        if words_count > WORDS_MAX {
            return None;
        }
        let mut words = Vec::new();
        reader.read_words(&mut words, words_count).await.ok()?;
        Some(Message::new(table, words))
    })
}

fn take_apart(message: &Message) {
    let mut position = Position::default();
    let mut out = Vec::new();
    // Each piece has a series at least, or ends the message; symbols may make them long.
    for _ in 0..1000 {
        out.clear();
        match next_piece(message, &mut position, CAPS, PIECE_BYTES, &mut out) {
            Ok(Some(_)) => assert!(out.len() <= PIECE_BYTES + SERIES_BYTES_MAX, "{}", out.len()),
            Ok(None) | Err(_) => break,
        }
    }
}

/// Inputs to begin with: messages of the protocol, and series.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let series =
        b"\x0a\x2b\x0a\x0d\x0a\x08__name__\x12\x01m\x0a\x08\x0a\x03job\x12\x01a\x12\x10\x09\
                   \0\0\0\0\0\0\xf0\x3f\x10\x80\xd0\x95\xff\xbc\x31";
    let table = SeriesTable::new([&series[..]]).expect("a series");
    let encoded = table.encode("tenant", &[0]).expect("a short message");
    let call = [rpc::call_head(1, 0, encoded.words), encoded.packed].concat();
    vec![series.to_vec(), call, rpc::bootstrap(7), rpc::finish(8), rpc::return_writer(9)]
}
