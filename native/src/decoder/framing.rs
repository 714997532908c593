//! Events out of packets: checksums, the chain of offsets, files, heartbeats, and the events inside a compressed transaction.

use super::{FILE_BITS, Stream};
use crate::error::{self, Error, Result, damaged};
use crate::events::{self, ARTIFICIAL, Header, kind};
use crate::payload::Payload;
use crate::transaction::{Input, State};

impl Stream {
    pub(super) fn packet(&mut self, payload: &[u8]) -> Result<()> {
        match payload.split_first() {
            Some((0, event)) => self.outer(event),
            Some((0xFF, _)) => Err(error::of_packet(payload)),
            Some((0xFE, rest)) if rest.len() < 8 => {
                Err(Error::Server { code: 0, state: String::new(), message: "the server ended the stream".into() })
            }
            _ => damaged("a packet that is no event"),
        }
    }

    pub(super) fn outer(&mut self, event: &[u8]) -> Result<()> {
        let head = Header::of(event)?;
        let body = events::body(event, self.has_checksum(event, &head)?)?;
        if self.file.is_empty() && head.type_ != kind::ROTATE {
            return damaged(format!(
                "a stream that begins with a {} event and not with its file's name",
                events::name(head.type_)
            ));
        }
        if self.checksums.is_none() && !matches!(head.type_, kind::ROTATE | kind::FORMAT_DESCRIPTION) {
            return damaged(format!("a {} event before the file's description", events::name(head.type_)));
        }
        match head.type_ {
            kind::HEARTBEAT | kind::HEARTBEAT_V2 => self.heartbeat(&head, body)?,
            kind::ROTATE => self.rotate(&head, body)?,
            _ => {
                self.advance(&head)?;
                self.event(&head, body, false)?;
            }
        }
        self.rest();
        Ok(())
    }

    /// Remember the place if it is between transactions.
    pub(super) fn rest(&mut self) {
        if self.open.is_none() {
            self.end = self.offset;
        }
    }

    /// Whether the event has a checksum, which is then right.
    pub(super) fn has_checksum(&mut self, event: &[u8], head: &Header) -> Result<bool> {
        let wanted = match (head.type_, self.checksums) {
            (kind::FORMAT_DESCRIPTION, _) => {
                let has = events::has_checksums(event)?;
                self.checksums = Some(has);
                if !has {
                    return Ok(true);
                }
                true
            }
            (_, Some(true)) => true,
            // Events that are in no file may have a checksum where those of the file have none.
            (kind::HEARTBEAT | kind::HEARTBEAT_V2, _) => false,
            _ if head.flags & ARTIFICIAL != 0 => false,
            _ => return Ok(false),
        };
        let right = events::checksum_matches(event);
        if wanted && !right {
            return damaged(format!("a {} event whose checksum is wrong", events::name(head.type_)));
        }
        Ok(right)
    }

    pub(super) fn advance(&mut self, head: &Header) -> Result<()> {
        let size = u64::from(head.size);
        if self.options.mariadb {
            return self.advance_mariadb(head, size);
        }
        if head.log_pos == 0 && head.type_ == kind::FORMAT_DESCRIPTION {
            return Ok(());
        }
        let end = self.offset + size;
        if end % FILE_BITS != u64::from(head.log_pos) {
            return damaged(format!(
                "a {} event of {size} bytes that ends at {} does not follow what ended at {}",
                events::name(head.type_),
                head.log_pos,
                self.offset % FILE_BITS
            ));
        }
        self.offset = end;
        Ok(())
    }

    /// Inside a group most events have no offset. Before the first transaction what was not asked for is left out.
    pub(super) fn advance_mariadb(&mut self, head: &Header, size: u64) -> Result<()> {
        if head.flags & ARTIFICIAL != 0 || (head.log_pos == 0 && self.open.is_none()) {
            return Ok(());
        }
        let end = self.offset + size;
        if head.log_pos == 0 {
            self.offset = end;
            return Ok(());
        }
        let gap = u64::from(head.log_pos).wrapping_sub(end) % FILE_BITS;
        if gap != 0 && (self.following || self.open.is_some() || gap >= FILE_BITS / 2) {
            return damaged(format!(
                "a {} event of {size} bytes that ends at {} does not follow what ended at {}",
                events::name(head.type_),
                head.log_pos,
                self.offset % FILE_BITS
            ));
        }
        self.offset = end + gap;
        Ok(())
    }

    pub(super) fn heartbeat(&mut self, head: &Header, body: &[u8]) -> Result<()> {
        let end = if head.type_ == kind::HEARTBEAT_V2 {
            events::heartbeat_v2(body)?
        } else {
            let gap = u64::from(head.log_pos).wrapping_sub(self.offset) % FILE_BITS;
            events::End { file: events::heartbeat(body)?, offset: self.offset + gap }
        };
        if end.file != self.file || end.offset < self.offset || (self.open.is_some() && end.offset != self.offset) {
            return damaged(format!(
                "a heartbeat at {}:{}, which does not follow {}:{}",
                end.file, end.offset, self.file, self.offset
            ));
        }
        self.offset = end.offset;
        Ok(())
    }

    pub(super) fn rotate(&mut self, head: &Header, body: &[u8]) -> Result<()> {
        if head.log_pos != 0 && head.flags & ARTIFICIAL == 0 {
            self.advance(head)?;
        }
        self.step(Input::Boundary)?;
        let end = events::rotate(body)?;
        self.file = end.file;
        self.offset = end.offset;
        Ok(())
    }

    /// The next event of a compressed transaction; false: there is none at hand.
    pub(super) fn inner(&mut self) -> Result<bool> {
        let Some(mut payload) = self.payload.take() else { return Ok(false) };
        if let Some(event) = payload.event()? {
            let head = Header::of(event)?;
            let body = events::body(event, false)?;
            if self.ending.is_some() {
                return damaged("an event after the end of its transaction");
            }
            match head.type_ {
                kind::ROTATE
                | kind::FORMAT_DESCRIPTION
                | kind::HEARTBEAT
                | kind::HEARTBEAT_V2
                | kind::GTID
                | kind::TAGGED_GTID
                | kind::ANONYMOUS_GTID
                | kind::TRANSACTION_PAYLOAD => {
                    return damaged(format!("a {} event in a compressed transaction", events::name(head.type_)));
                }
                _ => {}
            }
            self.event(&head, body, true)?;
            self.payload = Some(payload);
            return Ok(true);
        }
        self.compressed = false;
        match self.ending.take() {
            Some(action) => self.end_transaction(action)?,
            None => return damaged("a compressed transaction without an end"),
        }
        self.rest();
        Ok(true)
    }

    pub(super) fn open_payload(&mut self, body: &[u8]) -> Result<()> {
        if self.state != State::Started {
            return damaged("a compressed transaction that does not follow its GTID event");
        }
        self.payload = Some(Box::new(Payload::new(body, self.options.max_event)?));
        self.compressed = true;
        Ok(())
    }
}
