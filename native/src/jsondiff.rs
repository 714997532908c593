//! Differences of JSON values, applied to the text that the server printed of the value before.
//!
//! What a difference does not name stays as it is, byte by byte: numbers keep their digits, members their order (of keys by length, then
//! bytes). What it brings was printed as the server prints it, so the whole is what the server prints of the new value.

use std::ops::Range;

use crate::error::{Result, damaged};
use crate::json::{INSERT, REMOVE, REPLACE, quoted};

/// No path and no document of a server is deeper.
const MAX_DEPTH: usize = 100;

/// One step of a path.
#[derive(Debug, PartialEq, Eq)]
enum Leg {
    Member(Vec<u8>),
    Cell(usize),
}

/// Apply one difference to `text`. After an error `text` is as before.
pub fn apply(text: &mut Vec<u8>, op: u8, path: &str, value: Option<&str>) -> Result<()> {
    let legs = legs(path)?;
    match (op, value) {
        (REPLACE, Some(value)) => {
            let found = target(text, &legs)?;
            text.splice(found, value.bytes());
            Ok(())
        }
        (INSERT, Some(value)) => insert(text, &legs, value),
        (REMOVE, None) => remove(text, &legs),
        _ => damaged("a JSON difference of an unknown kind"),
    }
}

fn no_such_place<T>() -> Result<T> {
    damaged("a JSON difference of a place that the value does not have")
}

fn no_json<T>() -> Result<T> {
    damaged("text that is not JSON")
}

/// `$`, then `.name`, `."quoted name"` and `[3]`.
fn legs(path: &str) -> Result<Vec<Leg>> {
    let bad = || damaged("a path in a JSON difference that is none");
    let Some(mut rest) = path.strip_prefix('$').map(str::as_bytes) else { return bad() };
    let mut found = Vec::new();
    while let Some((first, behind)) = rest.split_first() {
        if found.len() > MAX_DEPTH {
            return bad();
        }
        match first {
            b'.' if behind.first() == Some(&b'"') => {
                let Some(end) = string_end(behind, 0) else { return bad() };
                let (Some(quoted), Some(behind)) = (behind.get(..end), behind.get(end..)) else { return bad() };
                let Some(name) = unquoted(quoted) else { return bad() };
                found.push(Leg::Member(name));
                rest = behind;
            }
            b'.' => {
                let end = behind.iter().position(|byte| matches!(byte, b'.' | b'[')).unwrap_or(behind.len());
                let (name, behind) = behind.split_at(end);
                if name.is_empty() || name.contains(&b'*') {
                    return bad();
                }
                found.push(Leg::Member(name.to_vec()));
                rest = behind;
            }
            b'[' => {
                let end = behind.iter().position(|byte| *byte == b']').unwrap_or(behind.len());
                let (number, behind) = behind.split_at(end);
                let number = std::str::from_utf8(number).ok().filter(|n| n.bytes().all(|b| b.is_ascii_digit()));
                let (Some(number), Some((_, behind))) = (number.and_then(|n| n.parse().ok()), behind.split_first())
                else {
                    return bad();
                };
                found.push(Leg::Cell(number));
                rest = behind;
            }
            _ => return bad(),
        }
    }
    Ok(found)
}

/// Where the value is to which the path leads.
fn target(text: &[u8], legs: &[Leg]) -> Result<Range<usize>> {
    let start = space(text, 0);
    let mut found = start..end_of(text, start)?;
    for leg in legs {
        found = child(text, found.start, leg)?.value;
    }
    Ok(found)
}

/// One member of an object, or cell of an array. `whole` begins with its key, if it has one.
#[derive(Debug, Clone)]
struct Entry {
    whole: Range<usize>,
    key: Range<usize>,
    value: Range<usize>,
}

/// The entries of the container that begins at `start`, and where it ends.
struct Entries<'a> {
    text: &'a [u8],
    object: bool,
    at: usize,
    ended: bool,
}

impl<'a> Entries<'a> {
    /// None: no container.
    fn of(text: &'a [u8], start: usize) -> Option<Entries<'a>> {
        let object = match text.get(start) {
            Some(b'{') => true,
            Some(b'[') => false,
            _ => return None,
        };
        let at = space(text, start + 1);
        Some(Entries { text, object, at, ended: matches!(text.get(at), Some(b'}' | b']')) })
    }

    fn next(&mut self) -> Result<Option<Entry>> {
        if self.ended {
            return Ok(None);
        }
        let start = self.at;
        let mut key = start..start;
        let mut at = start;
        if self.object {
            let Some(end) = string_end(self.text, start) else { return no_json() };
            key = start..end;
            at = space(self.text, end);
            if self.text.get(at) != Some(&b':') {
                return no_json();
            }
            at = space(self.text, at + 1);
        }
        let end = end_of(self.text, at)?;
        let value = at..end;
        at = space(self.text, end);
        match (self.text.get(at), self.object) {
            (Some(b','), _) => self.at = space(self.text, at + 1),
            (Some(b'}'), true) | (Some(b']'), false) => self.ended = true,
            _ => return no_json(),
        }
        Ok(Some(Entry { whole: start..end, key, value }))
    }
}

fn child(text: &[u8], start: usize, leg: &Leg) -> Result<Entry> {
    let Some(mut entries) = Entries::of(text, start) else { return no_such_place() };
    let mut number = 0;
    while let Some(entry) = entries.next()? {
        let here = match leg {
            Leg::Member(name) => entries.object && text.get(entry.key.clone()).is_some_and(|key| is_named(key, name)),
            Leg::Cell(wanted) => !entries.object && number == *wanted,
        };
        if here {
            return Ok(entry);
        }
        number += 1;
    }
    no_such_place()
}

fn insert(text: &mut Vec<u8>, legs: &[Leg], value: &str) -> Result<()> {
    let Some((last, before)) = legs.split_last() else { return no_such_place() };
    let parent = target(text, before)?;
    let Some(mut entries) = Entries::of(text, parent.start) else { return no_such_place() };
    let mut new = Vec::new();
    match (last, entries.object) {
        (Leg::Member(name), true) => {
            quoted(name, &mut new)?;
            new.extend_from_slice(b": ");
        }
        (Leg::Cell(_), false) => {}
        _ => return no_such_place(),
    }
    new.extend_from_slice(value.as_bytes());
    let (mut number, mut end) = (0, None);
    while let Some(entry) = entries.next()? {
        let follows = match last {
            Leg::Cell(wanted) => number == *wanted,
            Leg::Member(name) => {
                let Some(key) = text.get(entry.key.clone()).and_then(unquoted) else { return no_json() };
                if key == *name {
                    return no_such_place();
                }
                // Keys stand by length, then bytes.
                (key.len(), &key) > (name.len(), name)
            }
        };
        if follows {
            new.extend_from_slice(b", ");
            text.splice(entry.whole.start..entry.whole.start, new);
            return Ok(());
        }
        number += 1;
        end = Some(entry.whole.end);
    }
    match end {
        Some(end) => {
            text.splice(end..end, b", ".iter().copied().chain(new));
        }
        None => {
            text.splice(parent.start + 1..parent.start + 1, new);
        }
    }
    Ok(())
}

fn remove(text: &mut Vec<u8>, legs: &[Leg]) -> Result<()> {
    let Some((last, before)) = legs.split_last() else { return no_such_place() };
    let parent = target(text, before)?;
    let found = child(text, parent.start, last)?;
    let Some(mut entries) = Entries::of(text, parent.start) else { return no_such_place() };
    let mut end_before = None;
    while let Some(entry) = entries.next()? {
        if entry.whole == found.whole {
            break;
        }
        end_before = Some(entry.whole.end);
    }
    // With what stands between it and its neighbour.
    let gap = match (entries.next()?, end_before) {
        (Some(next), _) => found.whole.start..next.whole.start,
        (None, Some(end)) => end..found.whole.end,
        (None, None) => found.whole,
    };
    text.drain(gap);
    Ok(())
}

fn space(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count()
}

/// The end of the string that begins at `at`.
fn string_end(text: &[u8], at: usize) -> Option<usize> {
    if text.get(at) != Some(&b'"') {
        return None;
    }
    let mut at = at + 1;
    loop {
        match text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// The end of the value that begins at `at`.
fn end_of(text: &[u8], start: usize) -> Result<usize> {
    let mut at = start;
    let mut depth = 0_usize;
    loop {
        match text.get(at) {
            Some(b'"') => match string_end(text, at) {
                Some(end) => at = end,
                None => return no_json(),
            },
            Some(b'{' | b'[') => {
                depth += 1;
                at += 1;
                continue;
            }
            Some(b'}' | b']') if depth > 0 => {
                depth -= 1;
                at += 1;
            }
            Some(b',' | b':' | b' ' | b'\t' | b'\n' | b'\r') if depth > 0 => {
                at += 1;
                continue;
            }
            Some(byte) if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.') => {
                let rest = text.get(at..).unwrap_or_default();
                at += rest
                    .iter()
                    .take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.'))
                    .count();
            }
            _ => return no_json(),
        }
        if depth == 0 {
            return Ok(at);
        }
    }
}

/// Whether a key as it is printed, with its quotes, is this name.
fn is_named(key: &[u8], name: &[u8]) -> bool {
    match key {
        [b'"', plain @ .., b'"'] if !plain.contains(&b'\\') => plain == name,
        _ => unquoted(key).is_some_and(|key| key == name),
    }
}

/// What a JSON string says.
fn unquoted(text: &[u8]) -> Option<Vec<u8>> {
    let [b'"', inner @ .., b'"'] = text else { return None };
    let mut out = Vec::with_capacity(inner.len());
    let mut rest = inner;
    while let Some((byte, behind)) = rest.split_first() {
        rest = behind;
        if *byte != b'\\' {
            out.push(*byte);
            continue;
        }
        let (escape, behind) = rest.split_first()?;
        rest = behind;
        match escape {
            b'"' | b'\\' | b'/' => out.push(*escape),
            b'b' => out.push(8),
            b'f' => out.push(12),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'u' => {
                let mut code = four(rest)?;
                rest = rest.get(4..)?;
                if (0xD800..0xDC00).contains(&code) {
                    let low = four(rest.strip_prefix(b"\\u")?)?;
                    if !(0xDC00..0xE000).contains(&low) {
                        return None;
                    }
                    rest = rest.get(6..)?;
                    code = 0x10000 + (code - 0xD800) * 0x400 + (low - 0xDC00);
                }
                let mut buffer = [0; 4];
                out.extend_from_slice(char::from_u32(code)?.encode_utf8(&mut buffer).as_bytes());
            }
            _ => return None,
        }
    }
    Some(out)
}

fn four(digits: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(digits.get(..4)?).ok()?;
    u32::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(text: &str, op: u8, path: &str, value: Option<&str>) -> Option<String> {
        let mut out = text.as_bytes().to_vec();
        match apply(&mut out, op, path, value) {
            Ok(()) => Some(String::from_utf8(out).unwrap()),
            Err(_) => {
                assert_eq!(out, text.as_bytes());
                None
            }
        }
    }

    const DOCUMENT: &str = r#"{"b": [1, -40000, {}, []], "k": 1.50, "aa": {"x": null}, "ab": "a\"], }", "é\n": true}"#;

    #[test]
    fn one_difference() {
        for (op, path, value, wanted) in [
            (REPLACE, "$.k", Some("2"), DOCUMENT.replace("1.50", "2")),
            (REPLACE, "$", Some("[]"), "[]".into()),
            (REPLACE, "$.b[1]", Some(r#""x""#), DOCUMENT.replace("-40000", r#""x""#)),
            (REPLACE, r#"$."é\n""#, Some("1"), DOCUMENT.replace("true", "1")),
            (REPLACE, "$.ab", Some("1"), DOCUMENT.replace(r#""a\"], }""#, "1")),
            (INSERT, "$.a", Some("1"), DOCUMENT.replace(r#"{"b""#, r#"{"a": 1, "b""#)),
            (INSERT, "$.c", Some("1"), DOCUMENT.replace(r#""k""#, r#""c": 1, "k""#)),
            (INSERT, "$.zzzz", Some("1"), DOCUMENT.replace("true}", r#"true, "zzzz": 1}"#)),
            (INSERT, r#"$."\"q""#, Some("1"), DOCUMENT.replace(r#""aa""#, r#""\"q": 1, "aa""#)),
            (INSERT, "$.b[0]", Some("0"), DOCUMENT.replace("[1", "[0, 1")),
            (INSERT, "$.b[4]", Some("0"), DOCUMENT.replace("[]]", "[], 0]")),
            (INSERT, "$.b[99]", Some("0"), DOCUMENT.replace("[]]", "[], 0]")),
            (INSERT, "$.b[2].y", Some("0"), DOCUMENT.replace("{}", r#"{"y": 0}"#)),
            (INSERT, "$.b[3][0]", Some("0"), DOCUMENT.replace("[]", "[0]")),
            (REMOVE, "$.b[0]", None, DOCUMENT.replace("1, -", "-")),
            (REMOVE, "$.b[3]", None, DOCUMENT.replace(", []", "")),
            (REMOVE, "$.aa.x", None, DOCUMENT.replace(r#""x": null"#, "")),
            (REMOVE, r#"$."é\u000a""#, None, DOCUMENT.replace(r#", "é\n": true"#, "")),
        ] {
            assert_eq!(applied(DOCUMENT, op, path, value).as_ref(), Some(&wanted), "{op} {path}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (op, path, value) in [
            (REPLACE, "$.c", Some("1")),
            (REPLACE, "$.b[4]", Some("1")),
            (REPLACE, "$.b.x", Some("1")),
            (REPLACE, "$.k[0]", Some("1")),
            (REPLACE, "$.k", None),
            (INSERT, "$.k", Some("1")),
            (INSERT, "$.k.x", Some("1")),
            (INSERT, "$[0]", Some("1")),
            (INSERT, "$", Some("1")),
            (REMOVE, "$", None),
            (REMOVE, "$.c", None),
            (REMOVE, "$.b[4]", None),
            (3, "$.k", None),
            (REPLACE, "", Some("1")),
            (REPLACE, "$.", Some("1")),
            (REPLACE, "$.b[", Some("1")),
            (REPLACE, "$.b[x]", Some("1")),
            (REPLACE, "$.b[99999999999999999999]", Some("1")),
            (REPLACE, "$x", Some("1")),
            (REPLACE, "$.\"k", Some("1")),
        ] {
            assert_eq!(applied(DOCUMENT, op, path, value), None, "{op} {path}");
        }
        for text in ["", "{", "[1", "{\"a\": ", "{\"a\" 1}", "{\"a\": 1]", "nothing at all, this"] {
            assert_eq!(applied(text, REPLACE, "$.b.c", Some("1")), None, "{text}");
        }
    }

    #[test]
    fn no_damage_panics() {
        for end in 0..DOCUMENT.len() {
            let Some(text) = DOCUMENT.get(..end) else { continue };
            for (op, path, value) in [
                (REPLACE, "$.ab", Some("1")),
                (INSERT, "$.ac", Some("1")),
                (REMOVE, "$.aa", None),
                (INSERT, "$.b[9]", Some("1")),
            ] {
                let _ = applied(text, op, path, value);
            }
        }
    }
}
