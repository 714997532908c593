//! The binary log as a server sends it, to Arrow: bytes in any cut, row changes out, table by table.
//!
//! Sans-IO. `feed` takes bytes until the decoder waits for something: an answer, or to be drained. Then `feed` with nothing goes on
//! with what was fed before.

use std::collections::{HashMap, HashSet};

use crate::batches::{Change, Mapped, Mark, Saved, Tables, Target, unfit};
use crate::cursor::Cursor;
use crate::error::{self, Error, Result, damaged};
use crate::events::{self, ARTIFICIAL, Gtid, GtidEvent, HEADER, Header, IGNORABLE_FLAG, Query, Sid, XaVerb, Xid, kind};
use crate::mariadb::{self, kind as maria};
use crate::packets::Packets;
use crate::payload::Payload;
use crate::plan::ColumnPlan;
use crate::rowevent;
use crate::tablemap::{Definition, TableMap, raw_name};
use crate::transaction::{Action, Input, State};

/// Headers hold offsets modulo this.
const FILE_BITS: u64 = 1 << 32;
/// Bytes of row events of prepared XA transactions that may wait.
const HELD_BYTES: u64 = 256 << 20;
const STATEMENT_END: u16 = 1;

#[derive(Debug, Clone)]
pub struct Options {
    pub mariadb: bool,
    /// Bytes of events after which a drain is asked for, at a transaction's end.
    pub drain_bytes: u64,
    /// Bytes of row events after which the open transaction's rows are given.
    pub part_bytes: u64,
    /// Bytes of an event.
    pub max_event: usize,
    /// A planted mistake, for tests of tests.
    pub mutant: Mutant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mutant {
    #[default]
    None,
    PositionAtGtid,
    CreateSelectPosition,
}

/// What the decoder waits for.
pub enum Asked {
    /// `drain`.
    Drain,
    /// `answer_table`: a definition of a captured table that was not seen before.
    Table(Box<TableAsked>),
    /// `answer_statement`.
    Statement(Box<Query>),
}

pub struct TableAsked {
    pub found: Definition,
    id: u64,
    raw: Vec<u8>,
    definition: Vec<u8>,
}

/// What is counted of whole transactions, and of parts that were given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Framing {
    pub events: u64,
    pub bytes: u64,
    pub transactions: u64,
    pub row_events: u64,
    pub statements: u64,
    pub rows_skipped: u64,
    pub unfit: u64,
}

impl Framing {
    fn add(&mut self, other: &Framing) {
        self.events += other.events;
        self.bytes += other.bytes;
        self.transactions += other.transactions;
        self.row_events += other.row_events;
        self.statements += other.statements;
        self.rows_skipped += other.rows_skipped;
        self.unfit += other.unfit;
    }
}

/// A transaction.
#[derive(Debug, Clone)]
pub struct Txn {
    pub gtid: Gtid,
    pub commit_us: i64,
    /// Of every table.
    pub row_events: u32,
}

/// Transactions of one source that follow one another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub sid: Sid,
    pub first: u64,
    pub last: u64,
}

/// From transaction `txn` on there are no rows of a table.
#[derive(Debug, Clone)]
pub struct Stop {
    pub txn: usize,
    pub schema: String,
    pub table: String,
    pub what: String,
}

#[derive(Debug, Default)]
pub struct Drained {
    pub txns: Vec<Txn>,
    pub whole: usize,
    pub executed: Vec<Run>,
    pub changes: Vec<Change>,
    pub stops: Vec<Stop>,
    pub framing: Framing,
    pub skipped: Vec<String>,
    pub file: String,
    pub offset: u64,
}

/// The transaction at hand.
struct Open {
    gtid: Gtid,
    commit_us: i64,
    length: Option<u64>,
    pass_over: bool,
    framing: Framing,
    bytes: u64,
    /// As `bytes`, but for a compressed transaction decompressed.
    weight: u64,
    row_events: u32,
    /// Number of the last change before it.
    seq: i64,
    /// Row events of captured tables; less those that were taken back.
    kept: u64,
    /// Of these, how many were given, in parts.
    given: u64,
    /// Bytes of kept row events since rows were given.
    since_part: u64,
    /// Row events that were given before, by another decoder.
    resumed: u32,
    /// Another transaction was expected, unless this one is prepared and no more.
    unexpected: bool,
    /// Numbers of changes before an XA transaction.
    outer_seq: i64,
    xid: Option<Xid>,
    early: bool,
}

struct Prepared {
    txn: Txn,
    framing: Framing,
    changes: Vec<Change>,
    numbers: i64,
    weight: u64,
    held: u64,
    /// Names of tables that were not captured then.
    passed: HashSet<Vec<u8>>,
}

struct Resume {
    gtid: String,
    commit_us: i64,
    row_events: u32,
}

pub struct Decoder {
    packets: Packets,
    stream: Stream,
}

/// Everything behind the packets.
struct Stream {
    options: Options,
    failed: Option<Error>,
    failed_gtid: Option<String>,
    asked: Option<Asked>,
    part_ready: bool,
    // framing
    checksums: Option<bool>,
    file: String,
    offset: u64,
    end: u64,
    /// A GTID event came on this stream: from here on MariaDB leaves nothing out.
    following: bool,
    payload: Option<Box<Payload>>,
    /// Whether the transaction at hand is compressed.
    compressed: bool,
    /// The payload's transaction has ended, and the payload must do so too.
    ending: Option<Action>,
    // transactions
    state: State,
    open: Option<Open>,
    savepoints: Vec<(String, Saved)>,
    pass_over: HashSet<String>,
    resume: Option<Resume>,
    prepared: HashMap<Xid, Prepared>,
    held: u64,
    tables: Tables,
    // since the last drain
    txns: Vec<Txn>,
    executed: Vec<Run>,
    framing: Framing,
    stops: Vec<Stop>,
    skipped: Vec<String>,
    seq: i64,
    pending: u64,
}

impl Decoder {
    pub fn new(options: Options) -> Decoder {
        // A status byte, and a header beyond the largest statement or row.
        let limit = options.max_event.saturating_add(HEADER + 1);
        let stream = Stream {
            tables: Tables::new(options.mariadb),
            options,
            failed: None,
            failed_gtid: None,
            asked: None,
            part_ready: false,
            checksums: None,
            file: String::new(),
            offset: 0,
            end: 0,
            following: false,
            payload: None,
            compressed: false,
            ending: None,
            state: State::Between,
            open: None,
            savepoints: Vec::new(),
            pass_over: HashSet::new(),
            resume: None,
            prepared: HashMap::new(),
            held: 0,
            txns: Vec::new(),
            executed: Vec::new(),
            framing: Framing::default(),
            stops: Vec::new(),
            skipped: Vec::new(),
            seq: 0,
            pending: 0,
        };
        Decoder { packets: Packets::new(limit), stream }
    }

    /// Take `data`; what the decoder waits for, or None when it needs more bytes. After an error every further call gives the same.
    pub fn feed(&mut self, mut data: &[u8]) -> Result<Option<&Asked>> {
        if let Some(error) = &self.stream.failed {
            return Err(error.clone());
        }
        while self.stream.asked.is_none() {
            let done = match self.stream.inner() {
                Ok(true) => Ok(()),
                Ok(false) => match self.packets.next(&mut data) {
                    Ok(Some(payload)) => self.stream.packet(payload),
                    Ok(None) => return Ok(None),
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            };
            if let Err(error) = done {
                return Err(self.stream.fail(error));
            }
        }
        self.packets.keep(data);
        Ok(self.stream.asked.as_ref())
    }

    /// Bytes that wait to be decoded.
    pub fn waiting(&self) -> usize {
        self.packets.waiting()
    }

    pub fn asked(&self) -> Option<&Asked> {
        self.stream.asked.as_ref()
    }

    /// `plan`: one a column of the definition, None for one that is not wanted; None: its rows are skipped. Only after `Asked::Table`.
    pub fn answer_table(&mut self, plan: Option<Vec<Option<ColumnPlan>>>) -> Result<()> {
        match self.stream.asked.take() {
            Some(Asked::Table(asked)) => self.stream.define(*asked, plan).map_err(|error| self.stream.fail(error)),
            other => {
                self.stream.asked = other;
                Ok(())
            }
        }
    }

    /// What the statement does, and the name of its savepoint. Only after `Asked::Statement`.
    pub fn answer_statement(&mut self, input: Input, savepoint: &str) -> Result<()> {
        match self.stream.asked.take() {
            Some(Asked::Statement(_)) => {
                self.stream.statement(input, savepoint).map_err(|error| self.stream.fail(error))
            }
            other => {
                self.stream.asked = other;
                Ok(())
            }
        }
    }

    /// From here on exactly these tables (schema, name). Only when idle.
    pub fn capture(&mut self, tables: &[(String, String)]) -> Result<()> {
        let names = tables.iter().filter_map(|(schema, name)| raw_name(schema, name)).collect();
        self.stream.tables.capture(names)
    }

    /// No rows of a table from the open transaction on, or the next one.
    pub fn stop_table(&mut self, schema: &str, name: &str) {
        if let Some(raw) = raw_name(schema, name) {
            self.stream.stop_table(&raw);
        }
    }

    /// Of transactions that begin from here on, pass over exactly these.
    pub fn pass_over(&mut self, gtids: HashSet<String>) {
        self.stream.pass_over = gtids;
    }

    /// The first transaction that is not passed over must be this one, of which `row_events` were given before.
    pub fn resume(&mut self, gtid: String, commit_us: i64, row_events: u32) {
        self.stream.resume = Some(Resume { gtid, commit_us, row_events });
    }

    pub fn drain(&mut self) -> Result<Drained> {
        self.stream.drain().map_err(|error| self.stream.fail(error))
    }

    /// Whether no transaction is open.
    pub fn idle(&self) -> bool {
        self.stream.state == State::Between && self.stream.open.is_none()
    }

    /// Bytes of events that a drain would give.
    pub fn pending_bytes(&self) -> u64 {
        let part = self.stream.open.as_ref().filter(|_| self.stream.part_ready).map_or(0, |open| open.since_part);
        self.stream.pending + part
    }

    /// The transaction at hand; after an error the one that it was in.
    pub fn open_gtid(&self) -> Option<String> {
        let open = self.stream.open.as_ref().map(|open| open.gtid.to_string());
        open.or_else(|| self.stream.failed_gtid.clone())
    }

    /// Where the event at hand is.
    pub fn place(&self) -> (&str, u64) {
        (&self.stream.file, self.stream.offset)
    }
}

impl Stream {
    fn fail(&mut self, error: Error) -> Error {
        if self.failed.is_none() {
            if let Some(open) = self.open.take() {
                self.failed_gtid = Some(open.gtid.to_string());
                self.tables.undo(&Mark::default());
                if open.xid.is_some() {
                    self.seq = open.outer_seq;
                }
            }
            self.payload = None;
            self.asked = None;
            self.part_ready = false;
            self.failed = Some(error.clone());
        }
        error
    }

    // -- framing -----------------------------------------------------------------------------------------------------

    fn packet(&mut self, payload: &[u8]) -> Result<()> {
        match payload.split_first() {
            Some((0, event)) => self.outer(event),
            Some((0xFF, _)) => Err(error::of_packet(payload)),
            Some((0xFE, rest)) if rest.len() < 8 => {
                Err(Error::Server { code: 0, state: String::new(), message: "the server ended the stream".into() })
            }
            _ => damaged("a packet that is no event"),
        }
    }

    fn outer(&mut self, event: &[u8]) -> Result<()> {
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
    fn rest(&mut self) {
        if self.open.is_none() {
            self.end = self.offset;
        }
    }

    /// Whether the event has a checksum, which is then right.
    fn has_checksum(&mut self, event: &[u8], head: &Header) -> Result<bool> {
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

    fn advance(&mut self, head: &Header) -> Result<()> {
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
    fn advance_mariadb(&mut self, head: &Header, size: u64) -> Result<()> {
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

    fn heartbeat(&mut self, head: &Header, body: &[u8]) -> Result<()> {
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

    fn rotate(&mut self, head: &Header, body: &[u8]) -> Result<()> {
        if head.log_pos != 0 && head.flags & ARTIFICIAL == 0 {
            self.advance(head)?;
        }
        self.step(Input::Boundary)?;
        let end = events::rotate(body)?;
        self.file = end.file;
        self.offset = end.offset;
        Ok(())
    }

    // -- compressed transactions -------------------------------------------------------------------------------------

    /// The next event of a compressed transaction; false: there is none at hand.
    fn inner(&mut self) -> Result<bool> {
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

    fn open_payload(&mut self, body: &[u8]) -> Result<()> {
        if self.state != State::Started {
            return damaged("a compressed transaction that does not follow its GTID event");
        }
        self.payload = Some(Box::new(Payload::new(body, self.options.max_event)?));
        self.compressed = true;
        Ok(())
    }

    // -- events ------------------------------------------------------------------------------------------------------

    fn event(&mut self, head: &Header, body: &[u8], inner: bool) -> Result<()> {
        let mariadb = self.options.mariadb;
        match head.type_ {
            kind::GTID if !mariadb => return self.start(head, events::gtid(body, head.timestamp)?),
            kind::TAGGED_GTID if !mariadb => return self.start(head, events::tagged_gtid(body, head.timestamp)?),
            maria::GTID if mariadb => return self.start(head, mariadb::gtid(body, head.server, head.timestamp)?),
            _ => {}
        }
        if self.open.as_ref().is_some_and(|open| open.pass_over) {
            self.count(head, inner);
            return self.passed_over(head, body);
        }
        self.count(head, inner);
        match head.type_ {
            kind::TABLE_MAP => {
                self.step(Input::Rows)?;
                self.table_map(body)
            }
            kind::WRITE_ROWS
            | kind::UPDATE_ROWS
            | kind::DELETE_ROWS
            | kind::WRITE_ROWS_V1
            | kind::UPDATE_ROWS_V1
            | kind::DELETE_ROWS_V1
            | kind::PARTIAL_UPDATE_ROWS => {
                self.step(Input::Rows)?;
                self.row_event(head.type_, body, head.size, false)
            }
            kind::QUERY | kind::EXECUTE_LOAD_QUERY => self.query(head.type_, body),
            kind::XID => self.step(Input::Xid),
            kind::INTVAR
            | kind::RAND
            | kind::USER_VAR
            | kind::ROWS_QUERY
            | kind::BEGIN_LOAD_QUERY
            | kind::APPEND_BLOCK
            | kind::VIEW_CHANGE => self.step(Input::Context),
            kind::STOP | kind::FORMAT_DESCRIPTION | kind::PREVIOUS_GTIDS => self.step(Input::Boundary),
            kind::TRANSACTION_PAYLOAD if !mariadb => self.open_payload(body),
            kind::XA_PREPARE if !mariadb => {
                let (one_phase, xid) = events::xa_prepare(body)?;
                if self.open.as_ref().is_none_or(|open| open.xid.as_ref() != Some(&xid)) {
                    return damaged("an XA transaction that ends under another name");
                }
                self.step(if one_phase { Input::XaOnePhase } else { Input::XaPrepare })
            }
            kind::XA_PREPARE => Err(Error::Unsupported(mariadb::XA.into())),
            kind::ANONYMOUS_GTID if !mariadb => Err(Error::Unsupported("a transaction without a GTID".into())),
            kind::INCIDENT => Err(Error::Unsupported(
                "an incident: the server says that events are missing from its binary log".into(),
            )),
            maria::ANNOTATE_ROWS if mariadb => self.step(Input::Context),
            // The server decrypts what it sends, and only says so.
            maria::BINLOG_CHECKPOINT | maria::GTID_LIST | maria::START_ENCRYPTION if mariadb => {
                self.step(Input::Boundary)
            }
            maria::QUERY_COMPRESSED if mariadb => self.query(head.type_, body),
            type_ if mariadb && mariadb::plain(type_).is_some() => {
                self.step(Input::Rows)?;
                self.row_event(mariadb::plain(type_).unwrap_or(type_), body, head.size, true)
            }
            type_ if head.flags & IGNORABLE_FLAG != 0 || type_ == kind::IGNORABLE => Ok(()),
            type_ => Err(Error::Unsupported(format!("an event that is not known ({})", events::name(type_)))),
        }
    }

    fn count(&mut self, head: &Header, inner: bool) {
        let Some(open) = &mut self.open else { return };
        let size = u64::from(head.size);
        open.framing.events += 1;
        if !inner {
            open.framing.bytes += size;
            open.bytes += size;
        }
        if head.type_ != kind::TRANSACTION_PAYLOAD {
            open.weight += size;
        }
    }

    fn start(&mut self, head: &Header, found: GtidEvent) -> Result<()> {
        self.following = true;
        let (action, state) = self.state.step(Input::Gtid)?;
        debug_assert_eq!(action, Action::Start);
        self.state = state;
        let named = !self.pass_over.is_empty() || self.resume.is_some();
        let name = if named { found.gtid.to_string() } else { String::new() };
        let pass_over = self.pass_over.contains(&name);
        let length = found.length;
        self.open = Some(Open {
            gtid: found.gtid,
            commit_us: found.commit_us,
            length,
            pass_over,
            framing: Framing::default(),
            bytes: 0,
            weight: 0,
            row_events: 0,
            seq: self.seq,
            kept: 0,
            given: 0,
            since_part: 0,
            resumed: 0,
            unexpected: false,
            outer_seq: 0,
            xid: None,
            early: false,
        });
        self.count(head, false);
        if pass_over {
            if length.is_none() && !self.options.mariadb {
                return Err(Error::Unsupported("a transaction whose length is not known cannot be passed over".into()));
            }
        } else {
            if found.xa {
                return Err(Error::Unsupported(mariadb::XA.into()));
            }
            self.meet(&name)?;
            if self.options.mutant == Mutant::PositionAtGtid {
                self.end_early();
            }
        }
        if found.group == Some(true) {
            self.state = State::Open;
            self.expected()?;
        }
        Ok(())
    }

    /// Compare the transaction with the one that is to be gone on with.
    fn meet(&mut self, name: &str) -> Result<()> {
        let (Some(resume), Some(open)) = (&self.resume, &mut self.open) else { return Ok(()) };
        if resume.gtid != name {
            // A prepared XA transaction comes again until it is committed.
            open.unexpected = true;
            return Ok(());
        }
        if resume.commit_us != open.commit_us {
            return Err(Error::Identity(format!(
                "{name} was committed at {} µs; the transaction of this name that was read in part, at {} µs",
                open.commit_us, resume.commit_us
            )));
        }
        open.resumed = resume.row_events;
        self.resume = None;
        if open.resumed == 0 {
            self.asked = Some(Asked::Drain);
        }
        Ok(())
    }

    fn expected(&self) -> Result<()> {
        match (&self.open, &self.resume) {
            (Some(open), Some(resume)) if open.unexpected => Err(Error::Identity(format!(
                "{} comes where {} was expected, of which a part was read",
                open.gtid, resume.gtid
            ))),
            _ => Ok(()),
        }
    }

    /// A mutant's: what is known of the transaction is given as if it were all.
    fn end_early(&mut self) {
        let Some(open) = &mut self.open else { return };
        open.early = true;
        open.length = None;
        let framing = std::mem::take(&mut open.framing);
        let txn = Txn { gtid: open.gtid.clone(), commit_us: open.commit_us, row_events: open.row_events };
        self.pending += framing.bytes;
        self.framing.add(&framing);
        self.executed(&txn.gtid);
        self.txns.push(txn);
        self.tables.commit();
        self.asked = Some(Asked::Drain);
    }

    fn passed_over(&mut self, head: &Header, body: &[u8]) -> Result<()> {
        let mut events = u32::from(is_rows(head.type_, self.options.mariadb));
        if head.type_ == kind::TRANSACTION_PAYLOAD && !self.options.mariadb {
            events = row_events(body, self.options.max_event);
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        open.row_events = open.row_events.saturating_add(events);
        open.framing.row_events += u64::from(events);
        open.framing.rows_skipped += u64::from(events);
        let ends = match open.length {
            Some(length) if open.bytes > length => {
                return damaged("a transaction that is longer than its GTID event says");
            }
            Some(length) => open.bytes == length,
            None => self.ends_unread(head, body)?,
        };
        if ends {
            let gtid = self.open.as_ref().map(|open| open.gtid.to_string());
            self.state = State::Between;
            self.skipped.extend(gtid);
            self.end_transaction(Action::End)?;
            self.asked = Some(Asked::Drain);
        }
        Ok(())
    }

    /// Whether an event ends a transaction of MariaDB of which nothing else is read.
    fn ends_unread(&self, head: &Header, body: &[u8]) -> Result<bool> {
        Ok(match head.type_ {
            kind::XID | kind::XA_PREPARE => true,
            kind::QUERY | kind::EXECUTE_LOAD_QUERY | maria::QUERY_COMPRESSED => {
                let sql = self.sql(head.type_, body)?;
                let sql = sql.as_deref().unwrap_or(events::query(body, head.type_ == kind::EXECUTE_LOAD_QUERY)?.sql);
                self.state == State::Started || sql == b"COMMIT" || sql == b"ROLLBACK"
            }
            _ => false,
        })
    }

    // -- statements --------------------------------------------------------------------------------------------------

    /// The text of a compressed statement; None: it is not compressed.
    fn sql(&self, type_: u8, body: &[u8]) -> Result<Option<Vec<u8>>> {
        if type_ != maria::QUERY_COMPRESSED {
            return Ok(None);
        }
        mariadb::decompress(events::query(body, false)?.sql, self.options.max_event).map(Some)
    }

    fn query(&mut self, type_: u8, body: &[u8]) -> Result<()> {
        let raw = events::query(body, type_ == kind::EXECUTE_LOAD_QUERY)?;
        let plain = self.sql(type_, body)?;
        let sql = plain.as_deref().unwrap_or(raw.sql);
        match sql {
            b"BEGIN" => return self.step(Input::Begin),
            b"COMMIT" => return self.step(Input::Commit),
            b"ROLLBACK" => return self.step(Input::Rollback),
            _ => {}
        }
        if let Some(found) = events::xa_statement(sql) {
            if self.options.mariadb {
                return Err(Error::Unsupported(mariadb::XA.into()));
            }
            let (verb, xid) = found?;
            return self.xa(verb, xid);
        }
        if self.state == State::Between {
            return damaged("a statement between transactions");
        }
        self.asked = Some(Asked::Statement(Box::new(raw.read(plain)?)));
        Ok(())
    }

    fn statement(&mut self, input: Input, savepoint: &str) -> Result<()> {
        if matches!(input, Input::Statement | Input::CreateSelect)
            && let Some(open) = &mut self.open
        {
            open.framing.statements += 1;
        }
        match input {
            // Where nothing is open, it is DDL that stands alone.
            Input::CreateSelect if !matches!(self.state, State::Open | State::Xa) => self.step(Input::Statement),
            Input::CreateSelect if self.options.mutant == Mutant::CreateSelectPosition => {
                self.step(input)?;
                self.end_early();
                Ok(())
            }
            Input::Savepoint => {
                self.step(input)?;
                self.save(savepoint);
                Ok(())
            }
            Input::RollbackTo => {
                self.step(input)?;
                self.roll_back_to(savepoint)
            }
            _ => self.step(input),
        }?;
        if !self.compressed {
            self.rest();
        }
        Ok(())
    }

    fn save(&mut self, name: &str) {
        let Some(open) = &self.open else { return };
        let saved = Saved { mark: self.tables.mark(), seq: self.seq, kept: open.kept };
        self.savepoints.retain(|(known, _)| known != name);
        self.savepoints.push((name.to_owned(), saved));
    }

    fn roll_back_to(&mut self, name: &str) -> Result<()> {
        let Some(place) = self.savepoints.iter().position(|(known, _)| known == name) else {
            return damaged("ROLLBACK TO a savepoint that was not set");
        };
        self.savepoints.truncate(place + 1);
        let saved = self.savepoints.last().map(|(_, saved)| saved.clone()).unwrap_or_default();
        self.undo(&saved)
    }

    /// Forget the open transaction's rows since then.
    fn undo(&mut self, saved: &Saved) -> Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        if saved.kept < open.given {
            return Err(Error::Unsupported(format!(
                "a ROLLBACK in transaction {} of rows that were given before it ended, since it is so large",
                open.gtid
            )));
        }
        open.framing.rows_skipped += self.tables.undo(&saved.mark);
        open.kept = saved.kept;
        self.seq = saved.seq;
        Ok(())
    }

    // -- transactions ------------------------------------------------------------------------------------------------

    fn step(&mut self, input: Input) -> Result<()> {
        let (action, state) = self.state.step(input)?;
        if self.state == State::Started && !matches!(input, Input::XaStart | Input::Context) {
            self.expected()?;
        }
        self.state = state;
        match action {
            Action::End | Action::Undo | Action::Hold if self.compressed => {
                self.ending = Some(action);
                Ok(())
            }
            Action::End | Action::Undo | Action::Hold => self.end_transaction(action),
            Action::Nothing | Action::Start | Action::Mark | Action::UndoTo => Ok(()),
        }
    }

    fn end_transaction(&mut self, action: Action) -> Result<()> {
        let Some(open) = &self.open else { return Ok(()) };
        if let Some(length) = open.length.filter(|length| *length != open.bytes) {
            return damaged(format!(
                "a transaction of {} bytes, of which its GTID event says that it has {length}",
                open.bytes
            ));
        }
        if open.row_events < open.resumed {
            return Err(Error::Identity(format!(
                "{} has {} row events, and {} of them were read before",
                open.gtid, open.row_events, open.resumed
            )));
        }
        if action == Action::Undo {
            // Numbers start again where the transaction did.
            let seq = self.seq - self.numbers();
            self.undo(&Saved { seq, ..Saved::default() })?;
        }
        let Some(open) = self.open.take() else { return Ok(()) };
        self.savepoints.clear();
        self.part_ready = false;
        let txn = Txn { gtid: open.gtid, commit_us: open.commit_us, row_events: open.row_events };
        if let Some(xid) = open.xid {
            let (changes, passed) = self.tables.take_held()?;
            let numbers = self.seq;
            self.seq = open.outer_seq;
            let prepared = Prepared {
                txn,
                framing: open.framing,
                changes,
                numbers,
                weight: open.weight,
                held: open.since_part,
                passed,
            };
            if action == Action::Hold {
                self.prepared.insert(xid, prepared);
                return Ok(());
            }
            return self.give_prepared(prepared, true);
        }
        self.tables.commit();
        self.give(txn, open.framing, open.weight, open.early);
        Ok(())
    }

    /// The transaction is among the whole ones.
    fn give(&mut self, txn: Txn, mut framing: Framing, weight: u64, early: bool) {
        framing.transactions += 1;
        self.framing.add(&framing);
        self.pending += weight;
        if !early {
            self.executed(&txn.gtid);
        }
        self.txns.push(txn);
        if self.pending >= self.options.drain_bytes || early {
            self.asked = Some(Asked::Drain);
        }
    }

    fn executed(&mut self, gtid: &Gtid) {
        match self.executed.last_mut() {
            Some(run) if run.last.checked_add(1) == Some(gtid.number) && run.sid == gtid.sid => run.last = gtid.number,
            _ => self.executed.push(Run { sid: gtid.sid.clone(), first: gtid.number, last: gtid.number }),
        }
    }

    // -- XA ----------------------------------------------------------------------------------------------------------

    fn xa(&mut self, verb: XaVerb, xid: Xid) -> Result<()> {
        let own = self.open.as_ref().is_some_and(|open| open.xid.as_ref() == Some(&xid));
        match verb {
            XaVerb::Start => {
                self.step(Input::XaStart)?;
                self.tables.hold();
                if let Some(open) = &mut self.open {
                    open.outer_seq = std::mem::take(&mut self.seq);
                    open.xid = Some(xid);
                }
                Ok(())
            }
            XaVerb::End if own => self.step(Input::XaEnd),
            XaVerb::Rollback if own => self.step(Input::XaRollback),
            XaVerb::End => damaged("XA END of another XA transaction"),
            XaVerb::Commit | XaVerb::Rollback => {
                let commit = verb == XaVerb::Commit;
                // Where it must not stand, the rows stay.
                self.state.step(if commit { Input::XaCommit } else { Input::XaRollback })?;
                self.expected()?;
                let commit_us = self.open.as_ref().map_or(0, |open| open.commit_us);
                match self.prepared.remove(&xid) {
                    Some(mut prepared) => {
                        prepared.txn.commit_us = commit_us;
                        self.held = self.held.saturating_sub(prepared.held);
                        self.give_prepared(prepared, commit)?;
                    }
                    None if commit => {
                        return Err(Error::Unsupported(
                            "XA COMMIT of a transaction that was prepared before the position".into(),
                        ));
                    }
                    None => {}
                }
                self.step(if commit { Input::XaCommit } else { Input::XaRollback })
            }
        }
    }

    fn give_prepared(&mut self, prepared: Prepared, commit: bool) -> Result<()> {
        let Prepared { txn, mut framing, changes, numbers, weight, passed, .. } = prepared;
        if commit {
            let place = self.next_txn()?;
            self.tables.release(changes, place, self.seq)?;
            self.seq += numbers;
            for raw in passed {
                if self.tables.is_captured(&raw) {
                    self.stop_named(
                        &raw,
                        "an XA transaction wrote to it before it was captured, and was committed after",
                    );
                }
            }
        } else {
            framing.rows_skipped = framing.row_events;
        }
        self.give(txn, framing, weight, false);
        Ok(())
    }

    // -- rows --------------------------------------------------------------------------------------------------------

    /// The index of the transaction at hand.
    fn next_txn(&self) -> Result<i32> {
        i32::try_from(self.txns.len()).map_err(|_| Error::Unsupported("more transactions than a drain can have".into()))
    }

    fn table_map(&mut self, body: &[u8]) -> Result<()> {
        let map = TableMap::of(body)?;
        match self.tables.map(&map)? {
            Mapped::Known => {}
            Mapped::New(found) => {
                self.asked = Some(Asked::Table(Box::new(TableAsked {
                    found: *found,
                    id: map.id,
                    raw: map.name.to_vec(),
                    definition: map.definition.to_vec(),
                })));
            }
            Mapped::Unreadable(what) => self.stop_named(map.name, &what),
        }
        Ok(())
    }

    fn define(&mut self, asked: TableAsked, plan: Option<Vec<Option<ColumnPlan>>>) -> Result<()> {
        match self.tables.define(asked.id, &asked.raw, &asked.definition, asked.found, plan) {
            Err(Error::Table(what)) => {
                self.stop_named(&asked.raw, &what);
                Ok(())
            }
            done => done,
        }
    }

    fn row_event(&mut self, type_: u8, body: &[u8], size: u32, compressed: bool) -> Result<()> {
        let mut cursor = Cursor::new(body);
        let (id, flags) = (cursor.uint(6)?, cursor.u16()?);
        let txn = self.next_txn()?;
        let limit = self.options.max_event;
        let Some(open) = &mut self.open else { return Ok(()) };
        let ordinal = i32::try_from(open.row_events);
        let ordinal = ordinal.map_err(|_| Error::Unsupported("a transaction of too many row events".into()))?;
        open.row_events += 1;
        open.framing.row_events += 1;
        let again = open.row_events <= open.resumed;
        match self.tables.target(id) {
            Target::Read(table) => {
                open.kept += 1;
                if again {
                    open.given = open.kept;
                } else {
                    let plain = if compressed { Some(mariadb::rows(body, type_, limit)?) } else { None };
                    let event = rowevent::parse(plain.as_deref().unwrap_or(body), type_)?;
                    let held = open.xid.is_some();
                    open.since_part += plain.as_ref().map_or(u64::from(size), |plain| plain.len() as u64);
                    match self.tables.read(table, &event, txn, ordinal, self.seq + 1, held) {
                        Ok(changes) => self.seq += i64::from(changes),
                        Err(Error::Table(what)) => {
                            open.framing.rows_skipped += 1;
                            if let Some(name) = self.tables.name(table) {
                                self.stop_named(name.raw(), &what);
                            }
                        }
                        Err(error) => return Err(error),
                    }
                    self.after_rows(u64::from(size), held)?;
                }
            }
            Target::Skip => open.framing.rows_skipped += 1,
            Target::Unmapped if id == events::DUMMY_TABLE && flags & STATEMENT_END != 0 => {
                open.framing.rows_skipped += 1;
            }
            Target::Unmapped => {
                return damaged(format!("a row event of a table (id {id}) that no TABLE_MAP names"));
            }
        }
        if flags & STATEMENT_END != 0 {
            self.tables.end_statement();
        }
        self.resumed();
        Ok(())
    }

    /// Whether what was given before has been passed.
    fn resumed(&mut self) {
        if let Some(open) = &mut self.open
            && open.resumed > 0
            && open.row_events == open.resumed
        {
            open.framing = Framing::default();
            open.weight = 0;
            self.asked = Some(Asked::Drain);
        }
    }

    fn after_rows(&mut self, size: u64, held: bool) -> Result<()> {
        let Some(open) = &self.open else { return Ok(()) };
        if held {
            self.held += size;
            if self.held > HELD_BYTES {
                return Err(Error::Unsupported(
                    "XA transactions of more rows than can be held until they are committed".into(),
                ));
            }
        } else if open.since_part >= self.options.part_bytes {
            self.part_ready = true;
            self.asked = Some(Asked::Drain);
        }
        Ok(())
    }

    fn stop_table(&mut self, raw: &[u8]) {
        let forgotten = self.tables.stop(raw);
        if let Some(open) = &mut self.open {
            open.framing.rows_skipped += forgotten;
        }
    }

    fn stop_named(&mut self, raw: &[u8], what: &str) {
        let mut cursor = Cursor::new(raw);
        let mut name = || {
            let part = cursor.u8().and_then(|size| cursor.take(usize::from(size))).unwrap_or_default();
            let part = String::from_utf8_lossy(part).into_owned();
            let _ = cursor.u8();
            part
        };
        let (schema, table) = (name(), name());
        self.stop_table(raw);
        self.stops.push(Stop { txn: self.txns.len(), schema, table, what: what.to_owned() });
    }

    // -- drains ------------------------------------------------------------------------------------------------------

    /// How many changes of the open transaction were numbered since the last drain.
    fn numbers(&self) -> i64 {
        self.open.as_ref().map_or(0, |open| if open.xid.is_some() { self.seq } else { self.seq - open.seq })
    }

    fn drain(&mut self) -> Result<Drained> {
        let part = std::mem::take(&mut self.part_ready);
        let mut framing = std::mem::take(&mut self.framing);
        let whole = self.txns.len();
        let mut txns = std::mem::take(&mut self.txns);
        let before = match &self.open {
            Some(open) if open.xid.is_none() => open.seq,
            Some(open) => open.outer_seq,
            None => self.seq,
        };
        let changes = self.tables.take(part, before)?;
        if let Some(open) = &mut self.open {
            if part {
                txns.push(Txn { gtid: open.gtid.clone(), commit_us: open.commit_us, row_events: open.row_events });
                framing.add(&std::mem::take(&mut open.framing));
                open.since_part = 0;
                open.weight = 0;
                open.given = open.kept;
                self.seq = 0;
                for (_, saved) in &mut self.savepoints {
                    saved.given();
                }
            } else if open.xid.is_some() {
                open.outer_seq = 0;
            } else {
                self.seq -= before;
                for (_, saved) in &mut self.savepoints {
                    saved.seq -= before;
                }
            }
            open.seq = 0;
        } else {
            self.seq = 0;
        }
        framing.unfit += changes.iter().map(|change| unfit(&change.rows)).sum::<u64>();
        let given = txns.len();
        let (stops, kept) = std::mem::take(&mut self.stops).into_iter().partition(|stop| stop.txn < given);
        self.stops = kept;
        for stop in &mut self.stops {
            stop.txn -= whole.min(stop.txn);
        }
        self.pending = 0;
        if matches!(self.asked, Some(Asked::Drain)) {
            self.asked = None;
        }
        Ok(Drained {
            txns,
            whole,
            executed: std::mem::take(&mut self.executed),
            changes,
            stops,
            framing,
            skipped: std::mem::take(&mut self.skipped),
            file: self.file.clone(),
            offset: self.end,
        })
    }
}

fn is_rows(type_: u8, mariadb: bool) -> bool {
    let type_ = if mariadb { mariadb::plain(type_).unwrap_or(type_) } else { type_ };
    matches!(
        type_,
        kind::WRITE_ROWS
            | kind::UPDATE_ROWS
            | kind::DELETE_ROWS
            | kind::WRITE_ROWS_V1
            | kind::UPDATE_ROWS_V1
            | kind::DELETE_ROWS_V1
            | kind::PARTIAL_UPDATE_ROWS
    )
}

/// Row events of a compressed transaction that is passed over, as far as it can be read.
fn row_events(body: &[u8], limit: usize) -> u32 {
    let (mut found, Ok(mut payload)) = (0, Payload::new(body, limit)) else { return 0 };
    while let Ok(Some(event)) = payload.event() {
        found += u32::from(event.get(4).is_some_and(|type_| is_rows(*type_, false)));
    }
    found
}
