//! What the targets share: the table `every` of `dev/fuzzseeds.py`, and what must be true of whatever is decoded.

pub mod stream;

use std::sync::{Arc, LazyLock};

use _native::charset::Charset;
use _native::image::{Wire, WireColumn};
use _native::plan::{ColumnPlan, Kind, Output};
use arrow_data::ArrayData;

/// How the table is read: all variants that a byte can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variant {
    /// Every column as its canonical text.
    pub texts: bool,
    /// Without every third column.
    pub fewer: bool,
}

impl Variant {
    /// From the two lowest bits.
    pub fn of(bits: u8) -> Variant {
        Variant { texts: bits & 1 != 0, fewer: bits & 2 != 0 }
    }

    fn index(self) -> usize {
        usize::from(self.texts) | usize::from(self.fewer) << 1
    }
}

/// Columns as in a TABLE_MAP: what they are, type, metadata.
fn every() -> Vec<(Kind, u8, u16)> {
    let charset = |name| Charset::by_name(name).expect("a character set of MySQL");
    let members = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    let text = |name| Kind::Text { charset: charset(name) };
    let int = |bytes, unsigned| Kind::Int { bytes, unsigned };
    let utf8 = charset("utf8mb4");
    vec![
        (int(4, false), 3, 0),
        (int(1, false), 1, 0),
        (int(2, true), 2, 0),
        (int(3, false), 9, 0),
        (int(8, true), 8, 0),
        (Kind::Float, 4, 4),
        (Kind::Double, 5, 8),
        (Kind::Decimal { precision: 12, scale: 3 }, 246, 12 << 8 | 3),
        (Kind::Decimal { precision: 65, scale: 30 }, 246, 65 << 8 | 30),
        (Kind::Bit { bits: 1 }, 16, 1),
        (Kind::Bit { bits: 17 }, 16, 2 << 8 | 1),
        (Kind::Year, 13, 0),
        (Kind::Date, 10, 0),
        (Kind::Datetime { scale: 0 }, 18, 0),
        (Kind::Datetime { scale: 6 }, 18, 6),
        (Kind::Timestamp { scale: 3 }, 17, 3),
        (Kind::Time { scale: 2 }, 19, 2),
        (text("latin1"), 254, 254 << 8 | 10),
        (text("utf8mb4"), 15, 1200),
        (text("utf8mb4"), 252, 2),
        (Kind::Binary { length: 5 }, 254, 254 << 8 | 5),
        (Kind::Varbinary, 15, 20),
        (Kind::Varbinary, 252, 2),
        (Kind::Enum { members: members(&["a", "b", "c"]), charset: utf8 }, 254, 247 << 8 | 1),
        (Kind::Set { members: members(&["p", "q", "r"]), charset: utf8 }, 254, 248 << 8 | 1),
        (Kind::Json, 245, 4),
        (Kind::Geometry, 255, 4),
        (Kind::Vector, 242, 4),
    ]
}

fn kept(variant: Variant, column: usize) -> bool {
    !variant.fewer || column.is_multiple_of(3)
}

fn plan(variant: Variant) -> Arc<[ColumnPlan]> {
    let output = if variant.texts { Output::String } else { Output::Native };
    let columns = every().into_iter().enumerate().filter(|(i, _)| kept(variant, *i));
    columns.map(|(i, (kind, _, _))| ColumnPlan { name: format!("c{i}"), kind, output, key: i == 0 }).collect()
}

fn wire(variant: Variant) -> Wire {
    let mut kept_before = 0;
    let columns = every().into_iter().enumerate().map(|(i, (kind, type_, meta))| {
        let plan = kept(variant, i).then_some(kept_before);
        kept_before += usize::from(plan.is_some());
        WireColumn { type_, meta, unsigned: matches!(kind, Kind::Int { unsigned: true, .. }), plan, key: i == 0 }
    });
    Wire::new(&columns.collect::<Vec<_>>(), &self::plan(variant)).expect("the table can be read")
}

/// The kept columns, and how their rows are read in the binary log.
pub fn table(variant: Variant) -> &'static (Arc<[ColumnPlan]>, Wire) {
    static TABLES: LazyLock<Vec<(Arc<[ColumnPlan]>, Wire)>> =
        LazyLock::new(|| (0..4).map(Variant::of).map(|variant| (plan(variant), wire(variant))).collect());
    &TABLES[variant.index()]
}

/// Whatever is given is well-formed Arrow: offsets, lengths, UTF-8.
pub fn check(data: &ArrayData) {
    data.validate_full().expect("valid Arrow data");
}
