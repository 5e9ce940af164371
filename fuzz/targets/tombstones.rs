//! Tombstones of arbitrary bytes: they are read or refused, and what was read is the same once it was
//! written and read again.
//!
//! Input: the file. It is read as it is, and once more with the checksum set right.

use ringest::tsdb::block::tombstones::Tombstones;

const HEADER_BYTES: usize = 5;

/// Tries one input.
pub(crate) fn run(input: &[u8]) {
    read_and_write(input);
    let mut mended = input.to_vec();
    if let Some(end) = input.len().checked_sub(4).filter(|end| *end >= HEADER_BYTES) {
        let crc = crc32c::crc32c(&input[HEADER_BYTES..end]);
        mended[end..].copy_from_slice(&crc.to_be_bytes());
        read_and_write(&mended);
    }
}

fn read_and_write(bytes: &[u8]) {
    let Ok(tombstones) = Tombstones::decode(bytes) else { return };
    let spans: Vec<_> = tombstones.iter().collect();
    assert!(spans.iter().all(|(_, span)| span.mint <= span.maxt));
    assert!(spans.windows(2).all(|pair| {
        let (before, after) = (&pair[0], &pair[1]);
        before.0 < after.0 || before.0 == after.0 && before.1.maxt < after.1.mint
    }));
    assert_eq!(Tombstones::decode(&tombstones.encode()).expect("what we wrote"), tombstones);
}

/// Tombstones of Prometheus, of five series.
const RECORDED: &[u8] =
    include_bytes!("../../tests/data/tsdb/blocks/tombstones/01M85ZRP9VA6NTPNHXS8YWCHYK/tombstones");

/// Inputs to begin with: none, four, two of which touch, and those of Prometheus.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let file = |spans: &[u8]| {
        let crc = crc32c::crc32c(spans).to_be_bytes();
        [&[0x01, 0x30, 0xba, 0x30, 1][..], spans, &crc].concat()
    };
    let four = [3, 2, 8, 3, 10, 12, 4, 1, 0, 0x80, 1, 0, 0xff, 0x7f];
    vec![file(&[]), file(&four), RECORDED.to_vec()]
}
