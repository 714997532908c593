use super::*;
use crate::image::types;
use crate::plan::{Kind as Type, Output};

fn packet(sequence: &mut u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut chunks = payload.chunks(LONGEST).collect::<Vec<_>>();
    if payload.len().is_multiple_of(LONGEST) {
        chunks.push(&[]);
    }
    for chunk in chunks {
        bytes.extend_from_slice(&(chunk.len() as u32).to_le_bytes()[..3]);
        bytes.push(*sequence);
        bytes.extend_from_slice(chunk);
        *sequence = sequence.wrapping_add(1);
    }
    bytes
}

fn definition(type_: u8, charset: u16, flags: u16) -> Vec<u8> {
    let mut bytes = b"\x03def\0\0\0\x01c\x01c\x0c".to_vec();
    bytes.extend_from_slice(&charset.to_le_bytes());
    bytes.extend_from_slice(&[9, 0, 0, 0, type_]);
    bytes.extend_from_slice(&flags.to_le_bytes());
    bytes.extend_from_slice(&[0, 0, 0]);
    bytes
}

fn plan() -> Arc<[ColumnPlan]> {
    let column = |name: &str, kind| ColumnPlan { name: name.into(), kind, output: Output::Native, key: false };
    Arc::new([
        column("id", Type::Int { bytes: 4, unsigned: true }),
        column("t", Type::Text { charset: Charset::UTF8 }),
        column("at", Type::Datetime { scale: 6 }),
        column("span", Type::Time { scale: 6 }),
        column("price", Type::Decimal { precision: 10, scale: 2 }),
    ])
}

const END: [u8; 5] = [0xFE, 0, 0, 2, 0];

fn head(sequence: &mut u8) -> Vec<u8> {
    let mut bytes = packet(sequence, &[5]);
    for (type_, charset, flags) in [
        (types::LONG, 63, UNSIGNED),
        (types::VAR_STRING, 255, 0),
        (types::DATETIME, 63, 0),
        (types::TIME, 63, 0),
        (types::NEWDECIMAL, 63, 0),
    ] {
        bytes.extend(packet(sequence, &definition(type_, charset, flags)));
    }
    bytes.extend(packet(sequence, &END));
    bytes
}

fn row(id: u32, text: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0];
    bytes.extend_from_slice(&id.to_le_bytes());
    if text.len() < 251 {
        bytes.push(text.len() as u8);
    } else {
        bytes.push(254);
        bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
    }
    bytes.extend_from_slice(text);
    bytes.extend_from_slice(&[4, 0xE8, 7, 2, 29]);
    bytes.extend_from_slice(&[8, 1, 34, 0, 0, 0, 22, 59, 59]);
    bytes.extend_from_slice(b"\x05-1.50");
    bytes
}

fn binary(texts: &[&[u8]]) -> Vec<u8> {
    let mut sequence = 1;
    let mut bytes = head(&mut sequence);
    for (i, text) in texts.iter().enumerate() {
        bytes.extend(packet(&mut sequence, &row(i as u32, text)));
    }
    bytes.extend(packet(&mut sequence, &[0, 0x7C])); // all NULL
    bytes.extend(packet(&mut sequence, &END));
    bytes
}

fn read_all(bytes: &[u8], binary: bool) -> Result<ArrayData> {
    let mut set = ResultSet::new(plan(), binary);
    assert!(set.feed(bytes)?, "not ended");
    set.take()
}

#[test]
fn binary_rows_cut_anywhere() {
    let bytes = binary(&[b"a", "ü".as_bytes(), b""]);
    let whole = read_all(&bytes, true).unwrap();
    assert_eq!(whole.len(), 4);
    let column = |i: usize| &whole.child_data()[i];
    assert_eq!(column(0).buffers()[0].typed_data::<i64>()[..3], [0, 1, 2]);
    assert_eq!(column(1).buffers()[1].as_slice(), "aü".as_bytes());
    assert_eq!(column(2).buffers()[0].typed_data::<i64>()[0], 1_709_164_800_000_000);
    assert_eq!(column(3).buffers()[0].typed_data::<i64>()[0], -3_020_399_000_000);
    assert_eq!(column(4).buffers()[0].typed_data::<i128>()[0], -150);
    assert!((0..5).all(|i| column(i).is_null(3) && column(i).is_valid(2)));
    for size in 1..bytes.len() {
        let mut set = ResultSet::new(plan(), true);
        let mut ended = false;
        for chunk in bytes.chunks(size) {
            assert!(!ended);
            ended = set.feed(chunk).unwrap();
        }
        assert!(ended);
        assert_eq!(set.take().unwrap(), whole);
        assert_eq!((set.rows(), set.take().unwrap().len()), (0, 0));
    }
}

#[test]
fn rows_that_go_on_over_several_packets() {
    // One that fills its packets: an empty one ends it.
    let overhead = row(0, &[]).len() + 8;
    for size in [LONGEST - overhead - 1, LONGEST - overhead, 2 * LONGEST - overhead, 3 * LONGEST] {
        let text = vec![b'x'; size];
        let bytes = binary(&[&text, b"y"]);
        let mut set = ResultSet::new(plan(), true);
        let mut ended = false;
        for chunk in bytes.chunks(5_000_000) {
            ended = set.feed(chunk).unwrap();
        }
        assert!(ended);
        assert_eq!(set.take().unwrap().child_data()[1].buffers()[0].typed_data::<i32>()[1], size as i32);
    }
}

#[test]
fn text_rows_are_the_same() {
    let mut sequence = 1;
    let mut bytes = head(&mut sequence);
    let texts = [&b"a"[..], "ü".as_bytes(), b""];
    for (i, text) in texts.iter().enumerate() {
        let mut row = Vec::new();
        for cell in [i.to_string().as_bytes(), text, b"2024-02-29 00:00:00.000000", b"-838:59:59", b"-1.50"] {
            row.push(cell.len() as u8);
            row.extend_from_slice(cell);
        }
        bytes.extend(packet(&mut sequence, &row));
    }
    bytes.extend(packet(&mut sequence, &[0xFB; 5]));
    bytes.extend(packet(&mut sequence, &END));
    assert_eq!(read_all(&bytes, false).unwrap(), read_all(&binary(&texts), true).unwrap());
}

#[test]
fn an_error_packet_is_the_servers_error() {
    let mut sequence = 1;
    let error = packet(&mut sequence, b"\xFF\x7A\x04#42S02no such table");
    let expected = Error::Server { code: 1146, state: "42S02".into(), message: "no such table".into() };
    assert_eq!(read_all(&error, true).unwrap_err(), expected);
    let mut sequence = 1;
    let mut late = head(&mut sequence);
    late.extend(packet(&mut sequence, b"\xFF\x7A\x04#42S02no such table"));
    assert_eq!(read_all(&late, true).unwrap_err(), expected);
}

#[test]
fn columns_that_are_not_as_planned_stop_the_table() {
    for (place, type_, charset, flags) in [
        (0, types::LONG, 63, 0),
        (0, types::LONGLONG, 63, UNSIGNED),
        (1, types::LONG, 63, 0),
        (1, types::VAR_STRING, 8, 0),
        (1, types::VAR_STRING, 60_000, 0),
        (2, types::DATE, 63, 0),
        (4, types::DOUBLE, 63, 0),
    ] {
        let mut sequence = 1;
        let mut bytes = packet(&mut sequence, &[5]);
        let mut definitions = [
            definition(types::LONG, 63, UNSIGNED),
            definition(types::VAR_STRING, 255, 0),
            definition(types::DATETIME, 63, 0),
            definition(types::TIME, 63, 0),
            definition(types::NEWDECIMAL, 63, 0),
        ];
        definitions[place] = definition(type_, charset, flags);
        definitions.iter().for_each(|d| bytes.extend(packet(&mut sequence, d)));
        let error = ResultSet::new(plan(), true).feed(&bytes).unwrap_err();
        assert!(matches!(&error, Error::Table(_)), "{error}");
    }
    let mut sequence = 1;
    let error = ResultSet::new(plan(), true).feed(&packet(&mut sequence, &[4])).unwrap_err();
    assert!(matches!(error, Error::Table(_)));
}

#[test]
fn packets_out_of_order_or_after_the_end_are_damage() {
    let bytes = binary(&[b"a"]);
    let mut set = ResultSet::new(plan(), true);
    set.feed(&bytes).unwrap();
    assert!(matches!(set.feed(&[1, 0, 0, 9, 0]), Err(Error::Damaged(_))));
    let mut swapped = bytes.clone();
    swapped[3] = 2;
    assert!(matches!(read_all(&swapped, true), Err(Error::Damaged(_))));
}

/// Numbers that look random, the same ones always.
fn noise(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state as usize
}

#[test]
fn damaged_bytes_are_errors_or_rows() {
    let whole = binary(&[b"abc", "ü".as_bytes(), b""]);
    let mut state = 88_172_645_463_325_252;
    for _ in 0..50_000 {
        let mut bytes = whole.clone();
        for _ in 0..1 + noise(&mut state) % 3 {
            let place = noise(&mut state) % bytes.len();
            bytes[place] = noise(&mut state) as u8;
        }
        let text = noise(&mut state).is_multiple_of(2);
        let mut set = ResultSet::new(plan(), !text);
        let _ = set.feed(&bytes);
        set.take().unwrap();
    }
}
