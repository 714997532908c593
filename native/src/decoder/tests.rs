//! Made-up streams against what they were made from: whatever is taken back, held, drained or given in parts.

use std::collections::BTreeMap;

use super::*;
use crate::events::CHECKSUM;
use crate::plan::{ColumnPlan, Kind, Output};

/// Numbers that look random, from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

const TABLES: [&str; 3] = ["a", "b", "other"];

/// Events, as a server would send them.
struct Wire {
    bytes: Vec<u8>,
    offset: u64,
    sequence: u8,
    /// Events of the open transaction, and their size.
    open: Vec<(u8, Vec<u8>)>,
    number: u64,
}

impl Wire {
    fn new() -> Wire {
        let mut wire = Wire { bytes: Vec::new(), offset: 4, sequence: 0, open: Vec::new(), number: 0 };
        wire.put(kind::ROTATE, &[&4u64.to_le_bytes()[..], b"log.000001"].concat(), 0x20);
        let mut description = vec![0; 98];
        description[0] = 4;
        description[56] = 19;
        description[97] = 1;
        wire.put(kind::FORMAT_DESCRIPTION, &description, 0);
        wire
    }

    fn put(&mut self, type_: u8, body: &[u8], flags: u16) {
        let size = HEADER + body.len() + CHECKSUM;
        let artificial = flags & events::ARTIFICIAL != 0;
        if !artificial {
            self.offset += size as u64;
        }
        let mut event = 1_700_000_000u32.to_le_bytes().to_vec();
        event.push(type_);
        event.extend(1u32.to_le_bytes());
        event.extend((size as u32).to_le_bytes());
        event.extend((if artificial { 0 } else { self.offset as u32 }).to_le_bytes());
        event.extend(flags.to_le_bytes());
        event.extend_from_slice(body);
        event.extend(crc32fast::hash(&event).to_le_bytes());
        self.bytes.extend(&(event.len() as u32 + 1).to_le_bytes()[..3]);
        self.bytes.extend([self.sequence, 0]);
        self.bytes.extend(event);
        self.sequence = self.sequence.wrapping_add(1);
    }

    fn query(&mut self, sql: &str) {
        let mut body = vec![0; 13];
        body.push(0);
        body.extend_from_slice(sql.as_bytes());
        self.open.push((kind::QUERY, body));
    }

    fn rows(&mut self, table: usize, values: &[i32], last: bool) {
        let name = TABLES[table];
        let mut map = vec![table as u8 + 10, 0, 0, 0, 0, 0, 1, 0, 1, b's', 0, name.len() as u8];
        map.extend_from_slice(name.as_bytes());
        map.extend([0, 1, 3, 0, 0, 4, 3, 2, b'i', b'd', 8, 1, 0]);
        self.open.push((kind::TABLE_MAP, map));
        let mut rows = vec![table as u8 + 10, 0, 0, 0, 0, 0, u8::from(last), 0, 2, 0, 1, 0xFF];
        for value in values {
            rows.push(0);
            rows.extend(value.to_le_bytes());
        }
        self.open.push((kind::WRITE_ROWS, rows));
    }

    /// Send the open transaction under the next number.
    fn end(&mut self, compressed: bool) -> String {
        self.number += 1;
        let mut events = std::mem::take(&mut self.open);
        if compressed {
            let mut all = Vec::new();
            for (type_, body) in events {
                let mut head = vec![0; HEADER];
                head[4] = type_;
                head[9..13].copy_from_slice(&((HEADER + body.len()) as u32).to_le_bytes());
                all.extend(head);
                all.extend(body);
            }
            let packed = zstd::encode_all(&all[..], 1).unwrap();
            let mut body = Vec::new();
            for (field, value) in [(2, 0), (3, all.len() as u64), (1, packed.len() as u64)] {
                body.extend([field, 9, 254]);
                body.extend(value.to_le_bytes());
            }
            body.push(0);
            body.extend(packed);
            events = vec![(kind::TRANSACTION_PAYLOAD, body)];
        }
        let rest: usize = events.iter().map(|(_, body)| HEADER + body.len() + CHECKSUM).sum();
        let mut body = vec![0];
        body.extend([7; 16]);
        body.extend(self.number.to_le_bytes());
        body.push(2);
        body.extend([0; 16]);
        body.extend(&(1_000_000 + self.number).to_le_bytes()[..7]);
        body.push(254);
        let size = (HEADER + body.len() + 8 + CHECKSUM + rest) as u64;
        body.extend(size.to_le_bytes());
        self.put(kind::GTID, &body, 0);
        for (type_, body) in events {
            self.put(type_, &body, 0);
        }
        format!("07070707-0707-0707-0707-070707070707:{}", self.number)
    }
}

/// Of a transaction: table, value and row event of each row.
type Rows = Vec<(usize, i32, i32)>;

/// Random transactions, and what becomes of them.
fn made_up(dice: &mut Dice) -> (Vec<u8>, Vec<(String, Rows)>) {
    let (mut wire, mut expected, mut value) = (Wire::new(), Vec::new(), 0);
    let mut prepared: Vec<(u64, String, Rows)> = Vec::new();
    for _ in 0..12 {
        let xa = dice.roll(5) == 0;
        let number = wire.number + 1;
        wire.query(&if xa { format!("XA START X'{number:02x}',X'',1") } else { "BEGIN".into() });
        let (mut rows, mut event, mut marks) = (Rows::new(), 0, Vec::new());
        for _ in 0..dice.roll(8) {
            match dice.roll(7) {
                0 => {
                    let name = dice.roll(3);
                    wire.query(&format!("SAVEPOINT {name}"));
                    marks.retain(|(known, _)| *known != name);
                    marks.push((name, rows.len()));
                }
                1 if !marks.is_empty() => {
                    let place = dice.roll(marks.len() as u64) as usize;
                    let (name, keep) = marks[place];
                    wire.query(&format!("ROLLBACK TO {name}"));
                    rows.truncate(keep);
                    marks.truncate(place + 1);
                }
                _ => {
                    let table = dice.roll(3) as usize;
                    let values: Vec<i32> = (0..dice.roll(5) as i32 + 1).map(|i| value + i).collect();
                    value += values.len() as i32;
                    wire.rows(table, &values, dice.roll(2) == 0);
                    rows.extend(values.iter().map(|v| (table, *v, event)));
                    event += 1;
                }
            }
        }
        rows.retain(|(table, _, _)| *table != 2);
        if !xa {
            match dice.roll(6) {
                0 => {
                    wire.query("ROLLBACK");
                    rows.clear();
                }
                1 => wire.query("COMMIT"),
                _ => wire.open.push((kind::XID, vec![0; 8])),
            }
            let gtid = wire.end(dice.roll(3) == 0);
            expected.push((gtid, rows));
        } else {
            wire.query(&format!("XA END X'{number:02x}',X'',1"));
            let one_phase = dice.roll(3) == 0;
            let mut body = vec![u8::from(one_phase), 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
            body.push(number as u8);
            wire.open.push((kind::XA_PREPARE, body));
            let gtid = wire.end(dice.roll(3) == 0);
            if one_phase {
                expected.push((gtid, rows));
            } else {
                prepared.push((number, gtid, rows));
            }
        }
        while !prepared.is_empty() && dice.roll(2) == 0 {
            let (number, gtid, mut rows) = prepared.swap_remove(dice.roll(prepared.len() as u64) as usize);
            let verb = if dice.roll(3) == 0 { "ROLLBACK" } else { "COMMIT" };
            if verb == "ROLLBACK" {
                rows.clear();
            }
            wire.query(&format!("XA {verb} X'{number:02x}',X'',1"));
            expected.push((gtid, rows));
            expected.push((wire.end(false), Rows::new()));
        }
    }
    (wire.bytes, expected)
}

fn plan() -> Vec<Option<ColumnPlan>> {
    let kind = Kind::Int { bytes: 4, unsigned: false };
    vec![Some(ColumnPlan { name: "id".into(), kind, output: Output::Native, key: true })]
}

fn decoder(drain_bytes: u64, part_bytes: u64) -> Decoder {
    let options = Options { mariadb: false, drain_bytes, part_bytes, max_event: 1 << 20, mutant: Mutant::None };
    let mut decoder = Decoder::new(options);
    decoder.capture(&[("s".into(), "a".into()), ("s".into(), "b".into())]).unwrap();
    decoder
}

/// What came out, transaction by transaction; parts put together.
#[derive(Default)]
struct Out {
    order: Vec<String>,
    whole: Vec<String>,
    rows: BTreeMap<String, Rows>,
    framing: Framing,
}

impl Out {
    fn take(&mut self, drained: &Drained) {
        let names: Vec<String> = drained.txns.iter().map(|txn| txn.gtid.to_string()).collect();
        self.whole.extend_from_slice(&names[..drained.whole]);
        for name in &names {
            if !self.order.contains(name) {
                self.order.push(name.clone());
            }
        }
        self.framing.add(&drained.framing);
        let mut numbered = Vec::new();
        for change in &drained.changes {
            let table = TABLES.iter().position(|name| *name == change.name.table).unwrap();
            let int = |column: usize, row: usize| {
                let data = &change.rows.child_data()[column];
                data.buffers()[0].typed_data::<i32>()[data.offset() + row]
            };
            let numbers = &change.rows.child_data()[5];
            for row in 0..change.rows.len() {
                let seq = numbers.buffers()[0].typed_data::<i64>()[numbers.offset() + row];
                numbered.push((seq, int(1, row), table, int(6, row), int(2, row)));
            }
        }
        numbered.sort_unstable();
        for (i, (seq, txn, table, value, event)) in numbered.into_iter().enumerate() {
            assert_eq!(seq, i as i64 + 1);
            self.rows.entry(names[txn as usize].clone()).or_default().push((table, value, event));
        }
    }
}

fn answer(decoder: &mut Decoder, out: &mut Out) -> Result<()> {
    match decoder.asked() {
        Some(Asked::Drain) => out.take(&decoder.drain()?),
        Some(Asked::Table(_)) => decoder.answer_table(Some(plan()))?,
        Some(Asked::Statement(query)) => {
            let sql = String::from_utf8(query.sql.clone()).unwrap();
            let name = sql.rsplit(' ').next().unwrap().to_owned();
            let input = match sql.split(' ').next().unwrap() {
                "SAVEPOINT" => Input::Savepoint,
                "ROLLBACK" => Input::RollbackTo,
                _ => Input::Statement,
            };
            decoder.answer_statement(input, &name)?;
        }
        None => {}
    }
    Ok(())
}

fn run(decoder: &mut Decoder, bytes: &[u8], out: &mut Out, dice: &mut Dice, drains: bool) -> Result<()> {
    let mut left = bytes;
    while !left.is_empty() {
        let (now, after) = left.split_at((dice.roll(200) as usize + 1).min(left.len()));
        left = after;
        let mut data = now;
        while decoder.feed(data)?.is_some() {
            data = &[];
            answer(decoder, out)?;
        }
        if drains && dice.roll(4) == 0 {
            out.take(&decoder.drain()?);
        }
    }
    out.take(&decoder.drain()?);
    Ok(())
}

#[test]
fn what_comes_out_is_what_took_place() {
    for seed in 0..400 {
        let mut dice = Dice(seed);
        let (bytes, expected) = made_up(&mut dice);
        for drains in [false, true] {
            let drain_bytes = if dice.roll(2) == 0 { u64::MAX } else { 1 };
            let (mut decoder, mut out) = (decoder(drain_bytes, u64::MAX), Out::default());
            run(&mut decoder, &bytes, &mut out, &mut dice, drains).unwrap();
            let names: Vec<&String> = expected.iter().map(|(name, _)| name).collect();
            assert_eq!(out.whole.iter().collect::<Vec<_>>(), names, "seed {seed}");
            for (name, rows) in &expected {
                assert_eq!(out.rows.get(name).unwrap_or(&Vec::new()), rows, "seed {seed}, {name}");
            }
            assert_eq!(out.framing.transactions, expected.len() as u64);
            assert!(decoder.idle());
            assert_eq!(decoder.stream.held > 0, decoder.stream.prepared.values().any(|p| p.held > 0));
        }
    }
}

#[test]
fn parts_add_up_to_the_whole_wherever_they_are_cut() {
    let mut refused = 0;
    for seed in 0..400 {
        let mut dice = Dice(seed);
        let (bytes, expected) = made_up(&mut dice);
        let (mut decoder, mut out) = (decoder(u64::MAX, dice.roll(120)), Out::default());
        match run(&mut decoder, &bytes, &mut out, &mut dice, true) {
            Ok(()) => {
                for (name, rows) in &expected {
                    assert_eq!(out.rows.get(name).unwrap_or(&Vec::new()), rows, "seed {seed}, {name}");
                }
                assert_eq!(out.framing.transactions, expected.len() as u64);
            }
            Err(Error::Unsupported(what)) if what.starts_with("a ROLLBACK in transaction") => refused += 1,
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
    assert!((10..390).contains(&refused), "{refused}");
}

#[test]
fn what_is_gone_on_with_is_the_rest() {
    let mut wire = Wire::new();
    wire.query("BEGIN");
    for i in 0..6 {
        wire.rows(i as usize % 3, &[i], i % 2 == 1);
    }
    wire.open.push((kind::XID, vec![0; 8]));
    let gtid = wire.end(false);
    for read in 0..=7 {
        let (mut decoder, mut out) = (decoder(u64::MAX, u64::MAX), Out::default());
        decoder.resume(gtid.clone(), 1_000_001, read);
        let done = run(&mut decoder, &wire.bytes, &mut out, &mut Dice(1), false);
        if read == 7 {
            assert!(matches!(done, Err(Error::Identity(_))));
            continue;
        }
        done.unwrap();
        let left: Rows = (0..6).filter(|i| i % 3 != 2 && *i >= read as i32).map(|i| (i as usize % 3, i, i)).collect();
        assert_eq!(out.rows.get(&gtid).unwrap_or(&Vec::new()), &left, "{read}");
        assert_eq!(out.framing.row_events, 6 - u64::from(read));
    }
    for (name, commit_us) in [("x:1", 1_000_001), (gtid.as_str(), 1)] {
        let mut decoder = decoder(u64::MAX, u64::MAX);
        decoder.resume(name.to_owned(), commit_us, 1);
        let done = run(&mut decoder, &wire.bytes, &mut Out::default(), &mut Dice(1), false);
        assert!(matches!(done, Err(Error::Identity(_))));
    }
}

#[test]
fn a_stopped_table_gives_nothing_from_its_transaction_on() {
    for seed in 0..100 {
        let mut dice = Dice(seed);
        let (bytes, expected) = made_up(&mut dice);
        let (mut decoder, mut out) = (decoder(u64::MAX, u64::MAX), Out::default());
        let (before, after) = bytes.split_at(dice.roll(bytes.len() as u64) as usize);
        let feed = |decoder: &mut Decoder, bytes: &[u8], out: &mut Out| {
            let mut data = bytes;
            while decoder.feed(data).unwrap().is_some() {
                data = &[];
                answer(decoder, out).unwrap();
            }
        };
        feed(&mut decoder, before, &mut out);
        if dice.roll(2) == 0 {
            out.take(&decoder.drain().unwrap());
        }
        let open = decoder.open_gtid();
        let whole = decoder.stream.txns.len() + out.whole.len();
        decoder.stop_table("s", "a");
        feed(&mut decoder, after, &mut out);
        // Numbers have holes now, so the last drain is looked at without them.
        let drained = decoder.drain().unwrap();
        let names: Vec<String> = drained.txns.iter().map(|txn| txn.gtid.to_string()).collect();
        for change in drained.changes.iter().filter(|change| change.name.table == "a") {
            for txn in change.rows.child_data()[1].buffers()[0].typed_data::<i32>() {
                let place = expected.iter().position(|(name, _)| *name == names[*txn as usize]).unwrap();
                assert!(place < whole, "seed {seed}");
                assert_ne!(Some(&names[*txn as usize]), open.as_ref());
            }
        }
    }
}

#[test]
fn damage_is_refused_and_never_a_panic() {
    let mut dice = Dice(5);
    for seed in 0..300 {
        let (mut bytes, _) = made_up(&mut Dice(seed % 20));
        for _ in 0..dice.roll(3) + 1 {
            let at = dice.roll(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << dice.roll(8);
        }
        let mut decoder = decoder(u64::MAX, u64::MAX);
        let mut out = Out::default();
        let done = run(&mut decoder, &bytes, &mut out, &mut dice, true);
        // A length that grew leaves the stream unfinished.
        assert!(done.is_err() || decoder.waiting() > 0, "seed {seed}");
    }
}
