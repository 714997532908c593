//! Every character set of MySQL and MariaDB to UTF-8, exactly as the server converts it.

mod collations;
mod multi_byte;
mod single_byte;

use std::sync::OnceLock;

use encoding_rs::Encoding;

use self::collations::COLLATIONS;
use self::multi_byte::{QUADS, Run, SETS};
use self::single_byte::TABLES;

/// A character set by the server's name of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Charset(Set);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    /// Any of the UTF-8 ones; the server lets no character of four bytes into utf8mb3. Also what `binary` is converted as.
    Utf8,
    Ascii,
    /// Index in `TABLES`.
    SingleByte(usize),
    Swe7(usize),
    /// Index in `SETS`.
    MultiByte(usize),
    /// Also ucs2, into which the server lets no surrogates.
    Utf16,
    Utf16Le,
    Utf32,
}

impl Charset {
    pub const UTF8: Charset = Charset(Set::Utf8);

    /// `utf8` means `utf8mb3`. None for a name that is not known.
    pub fn by_name(name: &str) -> Option<Charset> {
        let set = match name {
            "utf8mb4" | "utf8mb3" | "utf8" | "binary" => Set::Utf8,
            "ascii" => Set::Ascii,
            "ucs2" | "utf16" => Set::Utf16,
            "utf16le" => Set::Utf16Le,
            "utf32" => Set::Utf32,
            "swe7" => Set::Swe7(TABLES.iter().position(|table| table.0 == name)?),
            _ => match TABLES.iter().position(|table| table.0 == name) {
                Some(found) => Set::SingleByte(found),
                None => Set::MultiByte(SETS.iter().position(|set| set.0 == name)?),
            },
        };
        Some(Charset(set))
    }

    /// Append `bytes` to `out` as UTF-8; false, and `out` as it was, if they are no text of this character set, or if the server would
    /// put a question mark in place of a character.
    pub fn decode(self, bytes: &[u8], out: &mut Vec<u8>) -> bool {
        let before = out.len();
        let whole = match self.0 {
            Set::Utf8 => {
                let valid = simdutf8::basic::from_utf8(bytes).is_ok();
                if valid {
                    out.extend_from_slice(bytes);
                }
                valid
            }
            Set::Ascii => {
                let valid = bytes.is_ascii();
                if valid {
                    out.extend_from_slice(bytes);
                }
                valid
            }
            Set::SingleByte(set) => single_byte(&TABLES[set].1, bytes, out),
            Set::Swe7(set) => bytes.iter().all(|byte| match byte {
                0 => {
                    out.push(0);
                    true
                }
                _ => put(out, TABLES[set].1.get(usize::from(*byte)).copied()),
            }),
            Set::MultiByte(set) => MultiByte::of(set).decode(bytes, out),
            Set::Utf16 => utf16(bytes, u16::from_be_bytes, out),
            Set::Utf16Le => utf16(bytes, u16::from_le_bytes, out),
            Set::Utf32 => utf32(bytes, out),
        };
        if !whole {
            out.truncate(before);
        }
        whole
    }
}

/// The character set of a collation, by its number in TABLE_MAP events and column definitions.
pub fn of_collation(id: u32) -> Option<&'static str> {
    let after = COLLATIONS.partition_point(|run| run.0 <= id);
    let (_, last, name) = COLLATIONS.get(after.checked_sub(1)?)?;
    (id <= *last).then_some(name)
}

/// Append a character; false for none, which in the tables is 0.
#[inline]
fn put(out: &mut Vec<u8>, point: Option<u16>) -> bool {
    // A code point of 16 bits has 6, 5 or 4 of them in each byte of its UTF-8.
    let point = point.unwrap_or(0);
    let last = 0x80 | (point & 0x3F) as u8;
    match point {
        0 => return false,
        1..0x80 => out.push(point as u8),
        0x80..0x800 => out.extend_from_slice(&[0xC0 | (point >> 6) as u8, last]),
        _ => out.extend_from_slice(&[0xE0 | (point >> 12) as u8, 0x80 | (point >> 6 & 0x3F) as u8, last]),
    }
    true
}

/// Append the ASCII bytes that come first; what is left.
#[inline]
fn ascii<'a>(bytes: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
    let (found, rest) = bytes.split_at(Encoding::ascii_valid_up_to(bytes));
    out.extend_from_slice(found);
    rest
}

fn single_byte(table: &[u16; 128], bytes: &[u8], out: &mut Vec<u8>) -> bool {
    out.reserve(bytes.len());
    let mut rest = ascii(bytes, out);
    while let Some((byte, behind)) = rest.split_first() {
        if *byte < 0x80 {
            // Spaces between words stand alone: not worth a search for the end of a run.
            out.push(*byte);
        } else if !put(out, table.get(usize::from(*byte & 0x7F)).copied()) {
            return false;
        }
        rest = behind;
    }
    true
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16, out: &mut Vec<u8>) -> bool {
    let pairs = bytes.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return false;
    }
    out.reserve(bytes.len());
    let mut units = pairs.map(|pair| unit([pair[0], pair[1]]));
    while let Some(first) = units.next() {
        let whole = match first {
            0 => {
                out.push(0);
                true
            }
            0xD800..=0xDBFF => {
                let low = units.next().map_or(u32::MAX, u32::from).wrapping_sub(0xDC00);
                low < 0x400 && put_wide(out, 0x10000 + (u32::from(first - 0xD800) << 10) + low)
            }
            0xDC00..=0xDFFF => false,
            _ => put(out, Some(first)),
        };
        if !whole {
            return false;
        }
    }
    true
}

fn utf32(bytes: &[u8], out: &mut Vec<u8>) -> bool {
    let mut units = bytes.chunks_exact(4);
    units.remainder().is_empty()
        && units.all(|four| put_wide(out, u32::from_be_bytes([four[0], four[1], four[2], four[3]])))
}

fn put_wide(out: &mut Vec<u8>, point: u32) -> bool {
    match char::from_u32(point) {
        Some(character) => {
            out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            true
        }
        None => false,
    }
}

/// Half of the codes of two bytes: the others begin with an ASCII character.
const PAIRS: usize = 0x8000;

/// In the EUC sets a character that starts with this byte has two more.
const THIRD_TABLE: u8 = 0x8F;

/// A set of one to four bytes a character, made from encoding_rs's and the differences at its first use. 0 is no character.
struct MultiByte {
    katakana: bool,
    pairs: Vec<u16>,
    /// After `THIRD_TABLE`; empty where that is a lead byte like others.
    triples: Vec<u16>,
    quads: bool,
}

impl MultiByte {
    fn of(set: usize) -> &'static MultiByte {
        static MADE: [OnceLock<MultiByte>; SETS.len()] = [const { OnceLock::new() }; SETS.len()];
        MADE[set].get_or_init(|| {
            let (name, encoding, katakana, differences) = SETS[set];
            let three = encoding == encoding_rs::EUC_JP;
            MultiByte {
                katakana,
                pairs: codes(encoding, &[], differences),
                triples: if three { codes(encoding, &[THIRD_TABLE], differences) } else { Vec::new() },
                quads: name == "gb18030",
            }
        })
    }

    fn decode(&self, bytes: &[u8], out: &mut Vec<u8>) -> bool {
        out.reserve(bytes.len());
        let mut rest = ascii(bytes, out);
        loop {
            rest = match *rest {
                [] => return true,
                [byte @ 0..=0x7F, ref behind @ ..] => {
                    out.push(byte);
                    behind
                }
                [byte @ 0xA1..=0xDF, ref behind @ ..] if self.katakana => {
                    put(out, Some(0xFF61 - 0xA1 + u16::from(byte)));
                    behind
                }
                [THIRD_TABLE, lead @ 0x80..=0xFF, trail, ref behind @ ..] if !self.triples.is_empty() => {
                    if !put(out, self.triples.get(index(lead, trail)).copied()) {
                        return false;
                    }
                    behind
                }
                [a @ 0x81..=0xFE, b @ 0x30..=0x39, c @ 0x81..=0xFE, d @ 0x30..=0x39, ref behind @ ..] if self.quads => {
                    let number = u32::from(a - 0x81) * 10 + u32::from(b - 0x30);
                    let number = (number * 126 + u32::from(c - 0x81)) * 10 + u32::from(d - 0x30);
                    if !quad(number).is_some_and(|point| put_wide(out, point)) {
                        return false;
                    }
                    behind
                }
                [lead, trail, ref behind @ ..] => {
                    if !put(out, self.pairs.get(index(lead, trail)).copied()) {
                        return false;
                    }
                    behind
                }
                [_] => return false,
            };
        }
    }
}

#[inline]
fn index(lead: u8, trail: u8) -> usize {
    usize::from(lead & 0x7F) << 8 | usize::from(trail)
}

/// The code point of every code of two bytes behind `prefix`.
fn codes(encoding: &'static Encoding, prefix: &[u8], differences: &[Run]) -> Vec<u16> {
    let mut found: Vec<u16> = (0..PAIRS)
        .map(|number| {
            let [.., lead, trail] = (number | PAIRS).to_be_bytes();
            let code = [prefix, &[lead, trail]].concat();
            let text = encoding.decode_without_bom_handling_and_without_replacement(&code).unwrap_or_default();
            let mut units = text.encode_utf16();
            match (units.next(), units.next()) {
                (Some(point), None) => point,
                _ => 0,
            }
        })
        .collect();
    let of_this_prefix = |run: &&Run| run.0 >> 16 == u32::from(prefix.first().copied().unwrap_or(0));
    for (first, last, point) in differences.iter().filter(of_this_prefix) {
        for code in *first..=*last {
            if let Some(place) = found.get_mut(code as usize & (PAIRS - 1)) {
                *place = if *point == 0 { 0 } else { (point + code - first) as u16 };
            }
        }
    }
    found
}

fn quad(number: u32) -> Option<u32> {
    let after = QUADS.partition_point(|run| run.0 <= number);
    let (first, last, point) = QUADS.get(after.checked_sub(1)?)?;
    (number <= *last).then(|| point + number - first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(charset: &str, bytes: &[u8]) -> Option<String> {
        let mut out = b"before ".to_vec();
        let whole = Charset::by_name(charset).unwrap().decode(bytes, &mut out);
        let text = String::from_utf8(out).unwrap().strip_prefix("before ").unwrap().to_string();
        assert!(whole || text.is_empty());
        whole.then_some(text)
    }

    #[test]
    fn every_set_has_its_characters() {
        for (charset, bytes, text) in [
            ("utf8mb4", "aä€😀".as_bytes(), "aä€😀"),
            ("utf8mb3", "aä€".as_bytes(), "aä€"),
            ("binary", "aä€😀".as_bytes(), "aä€😀"),
            ("ascii", b"abc", "abc"),
            ("latin1", b"a\xE4\x80\x81\x8D\x8F\x90\x9D", "aä€\u{81}\u{8d}\u{8f}\u{90}\u{9d}"),
            ("cp1251", b"\xCF\xF0\xE8\xE2\xE5\xF2, \xEC\xE8\xF0", "Привет, мир"),
            ("greek", b"\xE1\xE2\xE3", "αβγ"),
            ("swe7", b"a\0[{}", "a\0Ääå"),
            ("sjis", b"\x82\xA0\xB1a\x81\x5F", "あｱa\\"),
            ("cp932", b"\x82\xA0\xB1a\x87\x40", "あｱa①"),
            ("ujis", b"\xA4\xA2\x8E\xB1a\x8F\xB0\xA1", "あｱa丂"),
            ("eucjpms", b"\xA4\xA2\x8E\xB1a\x8F\xF3\xF3", "あｱaⅰ"),
            ("gbk", b"\xC4\xE3a\xBA\xC3", "你a好"),
            ("gb2312", b"\xC4\xE3a\xA1\xAA", "你a―"),
            ("gb18030", b"\xC4\xE3a\x81\x30\x81\x30\x94\x39\xFC\x36", "你a\u{80}😀"),
            ("big5", b"\xA7\x41a\xA6\x6E", "你a好"),
            ("euckr", b"\xB0\xA1a", "가a"),
            ("ucs2", b"\0a\x20\xAC", "a€"),
            ("utf16", b"\0a\xD8\x3D\xDE\x00", "a😀"),
            ("utf16le", b"a\0\x3D\xD8\x00\xDE", "a😀"),
            ("utf32", b"\0\0\0a\0\x01\xF6\x00", "a😀"),
        ] {
            assert_eq!(decoded(charset, bytes).as_deref(), Some(text), "{charset}");
            assert_eq!(decoded(charset, b"").as_deref(), Some(""), "{charset}");
        }
    }

    #[test]
    fn what_is_no_text_leaves_nothing_behind() {
        for (charset, bytes) in [
            ("utf8mb4", &b"a\xFF"[..]),
            ("utf8mb4", b"\xED\xA0\x80"),
            ("ascii", b"a\x80"),
            ("hebrew", b"a\xFB"),
            ("swe7", b"a\x80"),
            ("sjis", b"a\x81"),
            ("sjis", b"a\x87\x40"),
            ("ujis", b"a\x8F\xB0"),
            ("ujis", b"a\xA4a"),
            ("gbk", b"a\x80\x80"),
            ("gb18030", b"a\x81\x30\x81"),
            ("gb18030", b"\x84\x31\xA4\x40"),
            ("gb18030", b"\xFE\x39\xFE\x39"),
            ("big5", b"a\xFF\xFF"),
            ("ucs2", b"\0aa"),
            ("ucs2", b"\xD8\0"),
            ("utf16", b"\xDE\0\xD8\x3D"),
            ("utf32", b"\0\x11\0\0"),
            ("utf32", b"\0\0\xD8\0"),
        ] {
            assert_eq!(decoded(charset, bytes), None, "{charset} {bytes:x?}");
        }
    }

    #[test]
    fn nothing_panics() {
        let names = TABLES.iter().map(|table| table.0).chain(SETS.iter().map(|set| set.0)).chain(["ucs2", "utf32"]);
        for name in names {
            for code in 0..=0xFFFFu16 {
                let [a, b] = code.to_be_bytes();
                decoded(name, &[a, b]);
                decoded(name, &[THIRD_TABLE, a, b]);
                decoded(name, &[a, 0x39, b, 0x30]);
            }
        }
    }

    /// An encoding_rs that changes its mind about a character must not go unnoticed.
    #[test]
    fn the_tables_are_the_servers() {
        for ((name, ..), checksum) in SETS.iter().zip(multi_byte::CHECKSUMS) {
            let mut every = Vec::new();
            let pairs: Vec<[u8; 2]> = (0x8000..=0xFFFFu16).map(u16::to_be_bytes).collect();
            let triples = pairs.iter().map(|[lead, trail]| vec![THIRD_TABLE, *lead, *trail]);
            for code in pairs.iter().map(|pair| pair.to_vec()).chain(triples) {
                let text = decoded(name, &code).filter(|text| text.chars().count() == 1);
                every.extend_from_slice(text.unwrap_or_default().as_bytes());
                every.push(b'\n');
            }
            assert_eq!(crc32fast::hash(&every), checksum, "{name}");
        }
    }

    #[test]
    fn collations_name_their_character_sets() {
        for (id, name) in [
            (1, Some("big5")),
            (8, Some("latin1")),
            (33, Some("utf8mb3")),
            (45, Some("utf8mb4")),
            (63, Some("binary")),
            (255, Some("utf8mb4")),
            (2304, Some("utf8mb4")),
            (0, None),
            (17, None),
            (u32::MAX, None),
        ] {
            assert_eq!(of_collation(id), name, "{id}");
        }
        for (_, _, name) in COLLATIONS {
            assert!(Charset::by_name(name).is_some(), "{name}");
        }
        assert_eq!(Charset::by_name("klingon"), None);
    }
}
