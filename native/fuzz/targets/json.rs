//! JSON documents (the first byte is 0) and lists of their differences.

#![no_main]

use _native::json;
use libfuzzer_sys::fuzz_target;

/// The longest text of a byte is far shorter: a control character is six, a row of digits is packed two in a byte.
const LONGEST: usize = 64;

fuzz_target!(|data: &[u8]| {
    let Some((first, binary)) = data.split_first() else { return };
    if *first == 0 {
        let mut out = b"before".to_vec();
        match json::text(binary, &mut out) {
            Ok(()) => {
                assert!(std::str::from_utf8(&out).is_ok(), "no UTF-8");
                assert!(out.len() <= LONGEST * (binary.len() + 1), "a text of {} bytes", out.len());
            }
            Err(_) => assert_eq!(out, b"before", "half a text"),
        }
    } else if let Ok(diffs) = json::diffs(binary) {
        assert!(diffs.len() <= binary.len());
        assert!(diffs.iter().all(|diff| diff.op <= 2 && diff.value.is_some() == (diff.op != 2)));
    }
});
