//! Packets of a binary log, cut in two ways. The first byte: how it is read (four bits), and how it is cut.

#![no_main]

use lakesync_fuzz::stream::{Mode, read};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((first, stream)) = data.split_first() else { return };
    let mode = Mode::of(*first);
    let whole = read(mode, std::iter::once(stream));
    let size = 1 + (usize::from(first >> 4) * 37 + stream.len()) % 257;
    assert_eq!(whole, read(mode, stream.chunks(size)), "it matters how the stream is cut");
});
