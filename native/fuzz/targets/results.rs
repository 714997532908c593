//! Result sets of a table of every type. The first byte: text rows, the table's variant, and how the packets are cut.

#![no_main]

use std::sync::Arc;

use _native::resultset::ResultSet;
use lakesync_fuzz::{Variant, check, table};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((first, answer)) = data.split_first() else { return };
    let (plan, _) = table(Variant::of(first >> 1));
    let reader = || ResultSet::new(Arc::clone(plan), first & 1 == 0);
    let (mut whole, mut cut) = (reader(), reader());
    let at_once = whole.feed(answer);
    let size = 1 + (usize::from(first >> 3) * 37 + answer.len()) % 101;
    let mut in_pieces = Ok(false);
    for piece in answer.chunks(size) {
        in_pieces = cut.feed(piece);
        if !matches!(in_pieces, Ok(false)) {
            break;
        }
    }
    // What follows the end is nobody's: the whole answer may have it, the pieces stop before.
    assert_eq!(at_once, in_pieces, "it matters how the packets are cut");
    assert_eq!(whole.rows(), cut.rows(), "it matters how the packets are cut");
    let (whole, cut) = (whole.take().expect("columns"), cut.take().expect("columns"));
    check(&whole);
    assert_eq!(whole, cut, "it matters how the packets are cut");
});
