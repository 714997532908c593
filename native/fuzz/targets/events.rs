//! Events of a binary log, made to follow one another: sizes, places and checksums are right, whatever is in them. The first byte says
//! how they are read; an event is its type, flags (2), place of its end (4), length (2) and body.

#![no_main]

use _native::cursor::Cursor;
use _native::error::Result;
use lakesync_fuzz::stream::{Mode, read};
use libfuzzer_sys::fuzz_target;

const ROTATE: u8 = 4;
const FORMAT_DESCRIPTION: u8 = 15;
const HEARTBEAT: u8 = 27;
const MARIADB_GTID: u8 = 162;
const ARTIFICIAL: u16 = 0x20;
const HEADER: usize = 19;

fuzz_target!(|data: &[u8]| {
    let Some((first, events)) = data.split_first() else { return };
    let (mut cursor, mut sealed) = (Cursor::new(events), Sealed::default());
    while sealed.event(&mut cursor).is_ok() {}
    read(Mode::of(*first), std::iter::once(sealed.packets.as_slice()));
});

#[derive(Default)]
struct Sealed {
    packets: Vec<u8>,
    number: u8,
    place: u32,
    group: bool,
}

impl Sealed {
    fn event(&mut self, from: &mut Cursor<'_>) -> Result<()> {
        let (type_, flags, log_pos, size) = (from.u8()?, from.u16()?, from.u32()?, from.u16()?);
        let body = from.take(usize::from(size).min(from.left()))?;
        let size = (HEADER + body.len()) as u32;
        let in_file = log_pos != 0 && flags & ARTIFICIAL == 0;
        self.group |= type_ == MARIADB_GTID;
        match type_ {
            HEARTBEAT => self.place = log_pos,
            ROTATE if flags & ARTIFICIAL != 0 => self.place = Cursor::new(body).u32().unwrap_or(4),
            // Inside a group MariaDB's events have no place of their own.
            _ if in_file || self.group && flags & ARTIFICIAL == 0 => self.place = self.place.wrapping_add(size),
            _ => {}
        }
        let log_pos = if in_file || type_ == HEARTBEAT { self.place } else { log_pos };
        self.packets.extend_from_slice(&(size + 1).to_le_bytes()[..3]);
        self.packets.extend_from_slice(&[self.number.wrapping_add(1), 0]);
        self.number = self.number.wrapping_add(1);
        let start = self.packets.len();
        self.packets.extend_from_slice(&1_700_000_000_u32.to_le_bytes());
        self.packets.push(type_);
        self.packets.extend_from_slice(&1_u32.to_le_bytes());
        self.packets.extend_from_slice(&size.to_le_bytes());
        self.packets.extend_from_slice(&log_pos.to_le_bytes());
        self.packets.extend_from_slice(&flags.to_le_bytes());
        self.packets.extend_from_slice(body);
        if type_ == FORMAT_DESCRIPTION && body.len() >= 4 {
            // It has a checksum though the others have none.
            let end = self.packets.len() - 4;
            let sum = crc32fast::hash(&self.packets[start..end]);
            self.packets[end..].copy_from_slice(&sum.to_le_bytes());
        }
        Ok(())
    }
}
