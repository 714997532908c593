use std::sync::Arc;

use arrow_data::ArrayData;

use super::*;
use crate::charset::Charset;
use crate::image::{WireColumn, types};
use crate::plan::{ColumnPlan, Kind as Type, Output};
use crate::rows::Finished;

fn plan(columns: Vec<(&str, Type)>) -> Arc<[ColumnPlan]> {
    let made = columns.into_iter().enumerate().map(|(i, (name, kind))| ColumnPlan {
        name: name.into(),
        kind,
        output: Output::Native,
        key: i == 0,
    });
    made.collect()
}

/// `id int primary key, name varchar(20), at datetime(6), doc json`, of which `skipped` on the wire stands between.
fn table() -> (Arc<[ColumnPlan]>, Wire) {
    let plan = plan(vec![
        ("id", Type::Int { bytes: 4, unsigned: false }),
        ("name", Type::Text { charset: Charset::UTF8 }),
        ("at", Type::Datetime { scale: 6 }),
        ("doc", Type::Json),
    ]);
    let column = |type_, meta, place: Option<usize>| WireColumn {
        type_,
        meta,
        unsigned: false,
        plan: place,
        key: place == Some(0),
    };
    let columns = [
        column(types::LONG, 0, Some(0)),
        column(types::VARCHAR, 80, Some(1)),
        column(types::BLOB, 2, None),
        column(types::DATETIME2, 6, Some(2)),
        column(types::JSON, 4, Some(3)),
    ];
    let wire = Wire::new(&columns, &plan).unwrap();
    (plan, wire)
}

const JSON_TRUE: [u8; 2] = [4, 1];

fn at(year: u64, month: u64, day: u64) -> [u8; 8] {
    let bits = 1 << 39 | (year * 13 + month) << 22 | day << 17 | 1 << 12 | 2 << 6 | 3;
    let mut bytes = [0; 8];
    bytes[..5].copy_from_slice(&bits.to_be_bytes()[3..]);
    bytes[7] = 9;
    bytes
}

/// NULL bits of five columns, then the cells.
fn image(id: i32, name: Option<&str>, at: [u8; 8]) -> Vec<u8> {
    let mut bytes = vec![if name.is_none() { 2 } else { 0 }];
    bytes.extend_from_slice(&id.to_le_bytes());
    if let Some(name) = name {
        bytes.push(name.len() as u8);
        bytes.extend_from_slice(name.as_bytes());
    }
    bytes.extend_from_slice(&[3, 0, 1, 2, 3]);
    bytes.extend_from_slice(&at);
    bytes.extend_from_slice(&[2, 0, 0, 0]);
    bytes.extend_from_slice(&JSON_TRUE);
    bytes
}

fn event(type_: u8, bitmaps: &[u8], images: &[Vec<u8>]) -> Vec<u8> {
    let mut body = vec![7, 0, 0, 0, 0, 0, 1, 0];
    if type_ >= 30 {
        body.extend_from_slice(&[5, 0, 1, 2, 3]);
    }
    body.push(5);
    body.extend_from_slice(bitmaps);
    images.iter().for_each(|image| body.extend_from_slice(image));
    body
}

fn read_all(body: &[u8], type_: u8, wire: &Wire, rows: &mut Rows) -> Result<u32> {
    read(&parse(body, type_)?, wire, 3, 4, 100, rows)
}

fn numbers<T: arrow_buffer::ArrowNativeType>(data: &ArrayData, column: usize) -> Vec<T> {
    data.child_data()[column].buffers()[0].typed_data::<T>()[..data.len()].to_vec()
}

fn texts(data: &ArrayData, column: usize) -> Vec<Option<String>> {
    let column = &data.child_data()[column];
    let offsets = column.buffers()[0].typed_data::<i32>();
    (0..column.len())
        .map(|i| {
            let text = &column.buffers()[1][offsets[i] as usize..offsets[i + 1] as usize];
            column.is_valid(i).then(|| String::from_utf8(text.to_vec()).unwrap())
        })
        .collect()
}

fn some(text: &str) -> Option<String> {
    Some(text.to_string())
}

const FULL: u8 = 0x1F;

#[test]
fn an_insert_is_its_rows_with_their_places() {
    let (plan, wire) = table();
    let mut rows = Rows::new(plan);
    let images =
        [image(1, Some("a"), at(2024, 2, 29)), image(-2, None, at(1970, 1, 1)), image(3, Some("ü"), at(9999, 12, 31))];
    for type_ in [23, 30] {
        let body = event(type_, &[FULL], &images);
        let parsed = parse(&body, type_).unwrap();
        assert_eq!((parsed.table_id, parsed.flags, parsed.columns, parsed.kind), (7, STATEMENT_END, 5, Kind::Insert));
        assert_eq!(read_all(&body, type_, &wire, &mut rows).unwrap(), 3);
    }
    assert_eq!(rows.len(), 6);
    let Finished { rows: data, incomplete } = rows.finish().unwrap();
    assert!(incomplete.is_none() && rows.is_empty());
    assert_eq!(data.child_data().len(), 10);
    assert_eq!(numbers::<i8>(&data, 0), [0; 6]);
    assert_eq!(numbers::<i32>(&data, 1), [3; 6]);
    assert_eq!(numbers::<i32>(&data, 2), [4; 6]);
    assert_eq!(numbers::<i32>(&data, 3), [0, 1, 2, 0, 1, 2]);
    assert_eq!(numbers::<i64>(&data, 4), [0; 6]);
    assert_eq!(numbers::<i64>(&data, 5), [100, 101, 102, 100, 101, 102]);
    assert_eq!(numbers::<i32>(&data, 6)[..3], [1, -2, 3]);
    assert_eq!(texts(&data, 7)[..3], [some("a"), None, some("ü")]);
    assert_eq!(numbers::<i64>(&data, 8)[1], (3600 + 2 * 60 + 3) * 1_000_000 + 9);
    assert_eq!(texts(&data, 9)[0], some("true"));
}

#[test]
fn an_update_of_the_key_is_two_rows_and_one_change() {
    let (plan, wire) = table();
    let mut rows = Rows::new(plan);
    let day = at(2024, 1, 1);
    let images = [
        image(1, Some("a"), day),
        image(1, Some("b"), day),
        image(2, Some("c"), day),
        image(3, Some("d"), day),
        image(4, None, day),
        image(4, Some("f"), day),
    ];
    assert_eq!(read_all(&event(31, &[FULL, FULL], &images), 31, &wire, &mut rows).unwrap(), 3);
    let data = rows.finish().unwrap().rows;
    assert_eq!(numbers::<i8>(&data, 0), [1, 3, 1, 1]);
    assert_eq!(numbers::<i32>(&data, 3), [0, 1, 1, 2]);
    assert_eq!(numbers::<i64>(&data, 5), [100, 101, 101, 102]);
    assert_eq!(numbers::<i32>(&data, 6), [1, 2, 3, 4]);
    assert_eq!(texts(&data, 7), [some("b"), some("c"), some("d"), some("f")]);
    assert_eq!(read_all(&event(32, &[FULL], &images[4..5]), 32, &wire, &mut rows).unwrap(), 1);
    assert_eq!(numbers::<i8>(&rows.finish().unwrap().rows, 0), [2]);
}

#[test]
fn what_does_not_fit_is_null_and_a_text_beside() {
    let (plan, wire) = table();
    let mut rows = Rows::new(plan);
    let mut broken = image(2, Some("xx"), at(2024, 2, 30));
    broken[6] = 0xC3;
    let images = [image(1, Some("a"), at(2024, 1, 1)), broken, image(3, None, at(0, 0, 0))];
    read_all(&event(30, &[FULL], &images), 30, &wire, &mut rows).unwrap();
    assert_eq!(rows.unfit(), 3);
    let data = rows.finish().unwrap().rows;
    assert_eq!(texts(&data, 7), [some("a"), None, None]);
    assert!(data.child_data()[8].is_null(1) && data.child_data()[8].is_null(2));
    let map = &data.child_data()[10];
    assert_eq!(map.buffers()[0].typed_data::<i32>(), [0, 0, 2, 3]);
    assert!(map.is_null(0) && map.is_valid(1));
    let entries = &map.child_data()[0];
    assert_eq!(texts(entries, 0), [some("name"), some("at"), some("at")]);
    let expected = [some("C378"), some("2024-02-30 01:02:03.000009"), some("0000-00-00 01:02:03.000009")];
    assert_eq!(texts(entries, 1), expected);
    // None is left for the next batch.
    read_all(&event(30, &[FULL], &images[..1]), 30, &wire, &mut rows).unwrap();
    assert_eq!(rows.finish().unwrap().rows.child_data().len(), 10);
}

#[test]
fn what_does_not_fit_into_a_key_stops_the_table() {
    let plan = plan(vec![("d", Type::Date)]);
    let column = WireColumn { type_: types::DATE, meta: 0, unsigned: false, plan: Some(0), key: true };
    let wire = Wire::new(&[column], &plan).unwrap();
    let mut rows = Rows::new(plan);
    let mut body = vec![7, 0, 0, 0, 0, 0, 1, 0, 2, 0, 1, 1, 0, 0x21, 0, 0];
    body.extend_from_slice(&[0, 0, 0, 0]);
    let error = read_all(&body, 30, &wire, &mut rows).unwrap_err();
    assert!(matches!(error, Error::Table(what) if what.contains("column d") && what.contains("primary key")));
    assert!(rows.is_empty());
}

#[test]
fn minimal_images_come_with_presence() {
    let (plan, wire) = table();
    let mut rows = Rows::new(plan);
    read_all(&event(30, &[FULL], &[image(9, None, at(2024, 1, 1))]), 30, &wire, &mut rows).unwrap();
    // Before: the key. After: the name alone; then the key moves, too.
    let update = |before: i32, after: &[u8]| [&[0][..], &before.to_le_bytes(), after].concat();
    let body = event(31, &[1, 2], &[update(5, &[0, 1, b'n']), update(6, &[1])]);
    assert_eq!(read_all(&body, 31, &wire, &mut rows).unwrap(), 2);
    let mut moved = vec![0];
    moved.extend_from_slice(&8_i32.to_le_bytes());
    let body = event(31, &[1, 1], &[update(7, &moved)]);
    assert_eq!(read_all(&body, 31, &wire, &mut rows).unwrap(), 1);
    // All that is kept is there: a complete row.
    let mut kept = image(10, Some("k"), at(2024, 1, 1));
    kept.drain(7..12);
    read_all(&event(30, &[0x1B], &[kept]), 30, &wire, &mut rows).unwrap();
    let Finished { rows: data, incomplete } = rows.finish().unwrap();
    let (presence, diffs) = incomplete.unwrap();
    assert_eq!(numbers::<i8>(&data, 0), [0, 1, 1, 3, 1, 0]);
    assert_eq!(numbers::<i32>(&data, 6), [9, 5, 6, 7, 8, 10]);
    assert_eq!(texts(&data, 7)[1..3], [some("n"), None]);
    assert_eq!(presence.buffers()[0].as_slice(), [0xF, 3, 3, 1, 1, 0xF]);
    assert_eq!(diffs.len(), 6);
    // An INSERT of defaults alone has no bytes at all.
    assert_eq!(read_all(&event(30, &[0], &[]), 30, &wire, &mut rows).unwrap(), 1);
    assert_eq!(rows.finish().unwrap().incomplete.unwrap().0.buffers()[0].as_slice(), [0]);
}

#[test]
fn partial_json_comes_as_diffs() {
    let (plan, wire) = table();
    let mut rows = Rows::new(plan);
    let before = image(1, Some("a"), at(2024, 1, 1));
    let after = |diffs: &[u8]| {
        let mut image = image(1, Some("b"), at(2024, 1, 1));
        image.truncate(image.len() - 6);
        image.extend_from_slice(&(diffs.len() as u32).to_le_bytes());
        image.extend_from_slice(diffs);
        [&[1, 1][..], &image].concat()
    };
    let whole = [&[0][..], &image(1, Some("c"), at(2024, 1, 1))].concat();
    let remove = [&[2, 3][..], b"$.k"].concat();
    let images =
        [[before.clone(), after(&remove)].concat(), [before.clone(), after(&[])].concat(), [before, whole].concat()];
    assert_eq!(read_all(&event(39, &[FULL, FULL], &images), 39, &wire, &mut rows).unwrap(), 3);
    let Finished { rows: data, incomplete } = rows.finish().unwrap();
    let (presence, diffs) = incomplete.unwrap();
    assert_eq!(presence.buffers()[0].as_slice(), [7, 15, 15]);
    assert_eq!(texts(&data, 9), [None, some("true"), some("true")]);
    assert_eq!(diffs.buffers()[0].typed_data::<i32>(), [0, 1, 1, 1]);
    let entries = &diffs.child_data()[0];
    assert_eq!(numbers::<i32>(entries, 0), [3]);
    assert_eq!(numbers::<i8>(entries, 1), [2]);
    assert_eq!((texts(entries, 2), texts(entries, 3)), (vec![some("$.k")], vec![None]));
}

#[test]
fn a_bit_for_each_json_column_says_whether_it_comes_as_diffs() {
    let plan = plan(vec![("id", Type::Int { bytes: 1, unsigned: false }), ("a", Type::Json), ("b", Type::Json)]);
    let column = |type_, meta, place| WireColumn { type_, meta, unsigned: false, plan: place, key: place == Some(0) };
    let columns = [
        column(types::TINY, 0, Some(0)),
        column(types::JSON, 4, None),
        column(types::JSON, 4, Some(1)),
        column(types::JSON, 4, Some(2)),
    ];
    let wire = Wire::new(&columns, &plan).unwrap();
    let mut rows = Rows::new(plan);
    // Before: the key. After: the second and the third JSON; the bits are of the first (absent) and the third.
    let json = [2, 0, 0, 0, 4, 1];
    let diffs = [7, 0, 0, 0, 2, 5, b'$', b'.', b'a', b'b', b'c'];
    let body = [&[7, 0, 0, 0, 0, 0, 1, 0, 2, 0, 4, 1, 0xC][..], &[0, 9], &[1, 5, 0], &json, &diffs].concat();
    assert_eq!(read_all(&body, 39, &wire, &mut rows).unwrap(), 1);
    let Finished { rows: data, incomplete } = rows.finish().unwrap();
    let (presence, diffs) = incomplete.unwrap();
    assert_eq!(presence.buffers()[0].as_slice(), [3]);
    assert_eq!((texts(&data, 7), texts(&data, 8)), (vec![some("true")], vec![None]));
    assert_eq!(numbers::<i32>(&diffs.child_data()[0], 0), [2]);
}

/// A column of its own as the lake would have it: the text of each cell, or its error.
fn cells(kind: Type, type_: u8, meta: u16, raw: &[&[u8]]) -> Vec<std::result::Result<Option<String>, Error>> {
    let name = "c".to_string();
    let plan: Arc<[ColumnPlan]> = Arc::new([ColumnPlan { name, kind, output: Output::String, key: false }]);
    let column = WireColumn { type_, meta, unsigned: false, plan: Some(0), key: false };
    let wire = Wire::new(&[column], &plan).unwrap();
    let one = |cell: &&[u8]| {
        let mut rows = Rows::new(plan.clone());
        let body = [&[7, 0, 0, 0, 0, 0, 1, 0, 2, 0, 1, 1, 0][..], cell].concat();
        read_all(&body, 30, &wire, &mut rows)?;
        Ok(texts(&rows.finish()?.rows, 6).remove(0))
    };
    raw.iter().map(one).collect()
}

#[test]
fn temporals_from_before_fractions_were_stored() {
    let old = cells(Type::Datetime { scale: 0 }, types::DATETIME, 0, &[&20_240_229_235_958_u64.to_le_bytes(), &[0; 8]]);
    assert_eq!(old, [Ok(some("2024-02-29 23:59:58.000000")), Ok(some("0000-00-00 00:00:00.000000"))]);
    let old = cells(Type::Timestamp { scale: 0 }, types::TIMESTAMP, 0, &[&[1, 0, 0, 0], &[0; 4], &[0xFF; 4]]);
    let expected = ["1970-01-01 00:00:01.000000", "0000-00-00 00:00:00.000000", "2106-02-07 06:28:15.000000"];
    assert_eq!(old, expected.map(|text| Ok(some(text))));
    let digits = |value: i32| value.to_le_bytes();
    let raw = [digits(8_385_959), digits(-8_385_959), digits(-1), digits(60)];
    let old = cells(Type::Time { scale: 0 }, types::TIME, 0, &raw.each_ref().map(|bytes| &bytes[..3]));
    assert_eq!(old[..3], ["838:59:59.000000", "-838:59:59.000000", "-00:00:01.000000"].map(|text| Ok(some(text))));
    assert!(matches!(old[3], Err(Error::Table(_))));
}

#[test]
fn times_count_backwards_below_zero_with_their_fraction() {
    for (scale, raw, expected) in [
        (0, &[0x80, 0x10, 0x83][..], "01:02:03.000000"),
        (0, &[0x7F, 0xEF, 0x7D], "-01:02:03.000000"),
        (1, &[0x7F, 0xFF, 0xFF, 0xF6], "-00:00:00.100000"),
        (2, &[0x7F, 0xFF, 0xFF, 0xF6], "-00:00:00.100000"),
        (4, &[0x7F, 0xFF, 0xFF, 0xFF, 0xFF], "-00:00:00.000100"),
        (6, &[0x7F, 0xFF, 0xFE, 0xFF, 0xFF, 0xFF], "-00:00:01.000001"),
        (6, &[0xB4, 0x6E, 0xFB, 0, 0, 0], "838:59:59.000000"),
    ] {
        let found = cells(Type::Time { scale }, types::TIME2, u16::from(scale), &[raw]);
        assert_eq!(found, [Ok(some(expected))], "{raw:x?}");
    }
    let wrong = cells(Type::Time { scale: 0 }, types::TIME2, 0, &[&[0x80, 0x0F, 0xC0]]);
    assert!(matches!(wrong[0], Err(Error::Table(_))));
}

#[test]
fn what_stands_as_a_string() {
    use crate::image::string_type;
    assert_eq!(string_type(0xFE14), (types::STRING, 20));
    assert_eq!(string_type(0xF702), (types::ENUM, 2));
    assert_eq!(string_type(0xF808), (types::SET, 8));
    // CHAR(255) of four bytes each: 1020.
    assert_eq!(string_type(0xCEFC), (types::STRING, 1020));
    let members: Arc<[String]> = Arc::new(["a".into(), "é".into(), "c".into()]);
    let charset = Charset::UTF8;
    let kind = Type::Enum { members: members.clone(), charset };
    assert_eq!(cells(kind, types::STRING, 0xF701, &[&[0], &[2]]), [Ok(some("")), Ok(some("é"))]);
    let found = cells(Type::Set { members, charset }, types::STRING, 0xF801, &[&[0], &[5], &[8]]);
    assert_eq!(found, [Ok(some("")), Ok(some("a,c")), Ok(None)]);
    let found = cells(Type::Binary { length: 3 }, types::STRING, 0xFE03, &[&[0], &[1, 7], &[3, 1, 2, 0xAB]]);
    assert_eq!(found, [Ok(some("000000")), Ok(some("070000")), Ok(some("0102AB"))]);
    let found = cells(Type::Bit { bits: 9 }, types::BIT, 0x0101, &[&[1, 0x55]]);
    assert_eq!(found, [Ok(some("0155"))]);
}

#[test]
fn types_that_are_not_read_are_refused_by_name() {
    let plan = plan(vec![("c", Type::Varbinary)]);
    for (type_, meta, place, said) in [
        (types::MARIADB_VARCHAR_COMPRESSED, 10, Some(0), "COMPRESSED"),
        (types::TYPED_ARRAY, 0, Some(0), "typed arrays"),
        (200, 0, Some(0), "wire type 200"),
        (types::LONG, 0, Some(0), "not what its plan says"),
        (types::DATETIME, 0, None, "mysql56_temporal_format"),
        (types::VARCHAR, 10, None, "does not have"),
    ] {
        let column = WireColumn { type_, meta, unsigned: false, plan: place, key: false };
        let error = Wire::new(&[column], &plan).unwrap_err();
        assert!(matches!(&error, Error::Table(what) if what.contains(said)), "{error}");
    }
}

#[test]
fn truncated_rows_were_never_there() {
    let (plan, wire) = table();
    let (mut once, mut again) = (Rows::new(plan.clone()), Rows::new(plan));
    let first = event(30, &[FULL], &[image(1, None, at(0, 1, 1)), image(2, Some("b"), at(2024, 1, 1))]);
    let undone = [
        event(30, &[FULL], &[image(3, None, at(0, 0, 0)), image(4, Some("ccc"), at(2024, 1, 1))]),
        event(30, &[3], &[[&[0][..], &5_i32.to_le_bytes(), &[0]].concat()]),
    ];
    for rows in [&mut once, &mut again] {
        read_all(&first, 30, &wire, rows).unwrap();
    }
    for body in &undone {
        read_all(body, 30, &wire, &mut again).unwrap();
    }
    assert!(again.bytes() > once.bytes());
    again.truncate(2);
    assert_eq!((again.bytes(), again.unfit()), (once.bytes(), once.unfit()));
    read_all(&first, 30, &wire, &mut once).unwrap();
    read_all(&first, 30, &wire, &mut again).unwrap();
    let (once, again) = (once.finish().unwrap(), again.finish().unwrap());
    assert_eq!(once.rows, again.rows);
    assert!(once.incomplete.is_none() && again.incomplete.is_none());
}

/// Numbers that look random, the same ones always.
fn noise(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state as usize
}

#[test]
fn damaged_events_are_errors_or_rows_and_leave_nothing_behind() {
    let (plan, wire) = table();
    let mut rows = Rows::new(plan);
    let images = [image(1, Some("a"), at(2024, 2, 29)), image(2, None, at(1970, 1, 1))];
    read_all(&event(30, &[FULL], &images), 30, &wire, &mut rows).unwrap();
    let before = rows.bytes();
    let whole = [
        (30, event(30, &[FULL], &images)),
        (31, event(31, &[FULL, FULL], &images)),
        (31, event(31, &[1, 2], &[vec![0, 1, 0, 0, 0, 0, 1, b'x']])),
        (39, event(39, &[FULL, FULL], &[images[0].clone(), [&[1, 1][..], &images[1]].concat()])),
    ];
    let mut state = 88_172_645_463_325_252;
    for (type_, body) in &whole {
        let start = body.len() - parse(body, *type_).unwrap().body.left();
        for cut in 0..body.len() {
            let found = read_all(&body[..cut], *type_, &wire, &mut rows);
            assert!(found.is_err() || cut == start || cut > start, "{type_} cut at {cut}");
            rows.truncate(2);
            assert_eq!(rows.bytes(), before);
        }
        for _ in 0..20_000 {
            let mut body = body.clone();
            for _ in 0..1 + noise(&mut state) % 3 {
                let place = noise(&mut state) % body.len();
                body[place] = noise(&mut state) as u8;
            }
            if read_all(&body, *type_, &wire, &mut rows).is_err() {
                assert_eq!(rows.bytes(), before);
            }
            rows.truncate(2);
            assert_eq!(rows.bytes(), before);
        }
    }
    assert_eq!(rows.finish().unwrap().rows.len(), 2);
}

#[test]
fn an_event_of_other_columns_than_its_map_is_damaged() {
    let (plan, wire) = table();
    let mut body = event(30, &[FULL], &[]);
    body[13] = 6;
    let error = read_all(&body, 30, &wire, &mut Rows::new(plan)).unwrap_err();
    assert_eq!(error, Error::Damaged("a row event has 6 columns, its table map 5".into()));
}
