//! The binary log as a server sends it, to Arrow: bytes in any cut, row changes out, table by table.
//!
//! Sans-IO. `feed` takes bytes until the decoder waits for something: an answer, or to be drained. Then `feed` with nothing goes on
//! with what was fed before.

mod framing;
mod rows;
#[cfg(test)]
mod tests;
mod transactions;

use std::collections::{HashMap, HashSet};

use crate::batches::{Change, Mark, Saved, Tables};
use crate::error::{Error, Result, damaged};
use crate::events::{self, Gtid, HEADER, Header, IGNORABLE_FLAG, Query, Sid, Xid, kind};
use crate::mariadb::{self, kind as maria};
use crate::packets::Packets;
use crate::payload::Payload;
use crate::plan::ColumnPlan;
use crate::tablemap::{Definition, raw_name};
use crate::transaction::{Action, Input, State};

/// Headers hold offsets modulo this.
const FILE_BITS: u64 = 1 << 32;
/// Bytes of row events of prepared XA transactions that may wait.
const HELD_BYTES: u64 = 256 << 20;

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
    /// Of the binary log's bytes before its end, those of transactions that are prepared and no more.
    pub prepared_bytes: u64,
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
    /// Row events that were counted before, of one that is passed over.
    counted: u32,
    /// Changes of captured tables in them.
    again: u64,
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
    counted: Option<(String, u32)>,
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
            counted: None,
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

    /// Of this transaction, if it is passed over, so many row events, and what was before them, were counted before.
    pub fn counted(&mut self, gtid: String, row_events: u32) {
        self.stream.counted = Some((gtid, row_events));
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

    /// Of the open transaction: changes of captured tables in the row events that were given before.
    pub fn resumed_changes(&self) -> u64 {
        self.stream.open.as_ref().map_or(0, |open| open.again)
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
            | kind::DELETE_FILE
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
}
