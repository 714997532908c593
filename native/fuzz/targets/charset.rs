//! Texts in every character set; the first byte picks the collation, and with it the character set.

#![no_main]

use _native::charset::{Charset, of_collation};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((first, text)) = data.split_first() else { return };
    let Some(charset) = of_collation(u32::from(*first)).and_then(Charset::by_name) else { return };
    let mut out = b"before".to_vec();
    let known = charset.decode(text, &mut out);
    assert!(out.starts_with(b"before"));
    assert!(known || out.len() == 6, "half a text");
    assert!(std::str::from_utf8(&out).is_ok(), "no UTF-8");
});
