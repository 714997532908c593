//! Prints encoding_rs's tables of the multi-byte sets, a code and its code point a line, for `python -m dev.charsets`.

use std::io::{self, BufWriter, Write};

use encoding_rs::{BIG5, EUC_JP, EUC_KR, Encoding, GB18030, GBK, SHIFT_JIS};

fn main() -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    for encoding in [BIG5, EUC_JP, EUC_KR, GB18030, GBK, SHIFT_JIS] {
        for code in 0x8000..=0xFFFFu16 {
            print(&mut out, encoding, &code.to_be_bytes())?;
            if encoding == EUC_JP {
                let [a, b] = code.to_be_bytes();
                print(&mut out, encoding, &[0x8F, a, b])?;
            }
        }
    }
    out.flush()
}

/// Only what is one character of Unicode's first plane: no MySQL set has others at these codes.
fn print(out: &mut impl Write, encoding: &'static Encoding, code: &[u8]) -> io::Result<()> {
    let text = encoding.decode_without_bom_handling_and_without_replacement(code).unwrap_or_default();
    let mut chars = text.chars().map(u32::from);
    if let (Some(point @ ..=0xFFFF), None) = (chars.next(), chars.next()) {
        let hex: String = code.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(out, "{} {hex} {point:x}", encoding.name())?;
    }
    Ok(())
}
