//! Row events of a table of every type. The first byte is the event's type (six bits) and the table's variant.

#![no_main]

use std::sync::Arc;

use _native::rowevent;
use _native::rows::Rows;
use lakesync_fuzz::{Variant, check, table};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((first, body)) = data.split_first() else { return };
    let (plan, wire) = table(Variant::of(first >> 6));
    let Ok(event) = rowevent::parse(body, first & 0x3F) else { return };
    let mut once = Rows::new(Arc::clone(plan));
    let Ok(changes) = rowevent::read(&event, wire, 0, 0, 1, &mut once) else {
        assert_eq!(once.len(), 0, "rows of an event that cannot be read");
        return;
    };
    let rows = once.len();
    assert!((changes as usize..=2 * changes as usize).contains(&rows), "{changes} changes in {rows} rows");
    let mut undone = Rows::new(Arc::clone(plan));
    for first_seq in [1, 1 + i64::from(changes)] {
        rowevent::read(&event, wire, 0, 0, first_seq, &mut undone).expect("it was read before");
    }
    undone.truncate(rows);
    let (once, undone) = (once.finish().expect("columns"), undone.finish().expect("columns"));
    check(&once.rows);
    assert_eq!(once.rows, undone.rows, "an undone event leaves something");
    assert_eq!(once.incomplete, undone.incomplete, "an undone event leaves something");
    if let Some((presence, diffs)) = &once.incomplete {
        check(presence);
        check(diffs);
    }
});
