//! What becomes of each column: made in Python from the table's schema, the same for the binary log and for result sets.

use std::sync::Arc;

use crate::charset::Charset;

/// A column's MySQL type, with what its values need.
#[derive(Debug, Clone)]
pub enum Kind {
    /// TINYINT to BIGINT; `bytes` is 1, 2, 3, 4 or 8.
    Int {
        bytes: u8,
        unsigned: bool,
    },
    Float,
    Double,
    Decimal {
        precision: u8,
        scale: u8,
    },
    /// BIT(n): 1 to 64 bits.
    Bit {
        bits: u8,
    },
    Year,
    Date,
    /// Digits of the fraction of a second.
    Datetime {
        scale: u8,
    },
    Timestamp {
        scale: u8,
    },
    Time {
        scale: u8,
    },
    /// CHAR, VARCHAR, TEXTs.
    Text {
        charset: Charset,
    },
    /// BINARY(n), padded with zero bytes to `length`.
    Binary {
        length: usize,
    },
    /// VARBINARY and BLOBs.
    Varbinary,
    /// Members in UTF-8, in order of their index; `charset` is that of result sets.
    Enum {
        members: Arc<[String]>,
        charset: Charset,
    },
    Set {
        members: Arc<[String]>,
        charset: Charset,
    },
    Json,
    Geometry,
    Vector,
    /// MariaDB's, 16, 4 and 16 bytes in the binary log, text in result sets; text in the lake.
    Uuid,
    Inet4,
    Inet6,
}

/// What the lake has of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// As the type contract says.
    Native,
    /// Its canonical text.
    String,
    /// TINYINT, 0 or 1.
    Boolean,
}

#[derive(Debug, Clone)]
pub struct ColumnPlan {
    pub name: String,
    pub kind: Kind,
    pub output: Output,
    /// Whether it belongs to the primary key.
    pub key: bool,
}

#[cfg(feature = "python")]
mod python {
    use pyo3::exceptions::PyValueError;
    use pyo3::prelude::*;
    use pyo3::types::PyDict;

    use super::*;

    impl<'py> FromPyObject<'_, 'py> for ColumnPlan {
        type Error = PyErr;

        /// `cdc.schema.Column.to_dict()`, with `output` (`native`, `string` or `boolean`) and `key`.
        fn extract(found: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
            let dict = &*found.cast::<PyDict>()?;
            let name: String = required(dict, "name")?;
            let output: Option<String> = optional(dict, "output")?;
            let wrong = |what: &str| PyValueError::new_err(format!("column {name}: {what}"));
            let output = match output.as_deref() {
                None | Some("native") => Output::Native,
                Some("string") => Output::String,
                Some("boolean") => Output::Boolean,
                Some(_) => return Err(wrong("an output that there is not")),
            };
            let kind = kind(dict, &wrong)?;
            if output == Output::Boolean && !matches!(kind, Kind::Int { bytes: 1, .. }) {
                return Err(wrong("only TINYINT can be read as boolean"));
            }
            Ok(ColumnPlan { kind, output, key: optional(dict, "key")?.unwrap_or(false), name })
        }
    }

    fn optional<'py, T>(dict: &Bound<'py, PyDict>, name: &str) -> PyResult<Option<T>>
    where
        T: for<'a> FromPyObject<'a, 'py, Error = PyErr>,
    {
        match dict.get_item(name)? {
            Some(found) if !found.is_none() => found.extract::<T>().map(Some),
            _ => Ok(None),
        }
    }

    fn required(dict: &Bound<'_, PyDict>, name: &str) -> PyResult<String> {
        optional(dict, name)?.ok_or_else(|| PyValueError::new_err(format!("a column without {name}")))
    }

    fn kind(dict: &Bound<'_, PyDict>, wrong: &dyn Fn(&str) -> PyErr) -> PyResult<Kind> {
        let unsigned = optional(dict, "unsigned")?.unwrap_or(false);
        let length: usize = optional(dict, "length")?.unwrap_or(0);
        let precision: u8 = optional(dict, "precision")?.unwrap_or(0);
        let scale: u8 = optional(dict, "scale")?.unwrap_or(0);
        let charset = || -> PyResult<Charset> {
            let name: String = optional(dict, "charset")?.unwrap_or_default();
            Charset::by_name(&name).ok_or_else(|| wrong(&format!("character set {name} is not known")))
        };
        let members =
            || -> PyResult<Arc<[String]>> { Ok(optional::<Vec<String>>(dict, "members")?.unwrap_or_default().into()) };
        let int = |bytes| Kind::Int { bytes, unsigned };
        let type_ = required(dict, "type")?;
        Ok(match type_.as_str() {
            "tinyint" => int(1),
            "smallint" => int(2),
            "mediumint" => int(3),
            "int" => int(4),
            "bigint" => int(8),
            "float" => Kind::Float,
            "double" => Kind::Double,
            "decimal" if (1..=65).contains(&precision) && scale <= precision && scale <= 38 => {
                Kind::Decimal { precision, scale }
            }
            "bit" => match u8::try_from(length) {
                Ok(bits @ 1..=64) => Kind::Bit { bits },
                _ => return Err(wrong("a bit column of 1 to 64 bits has that length")),
            },
            "year" => Kind::Year,
            "date" => Kind::Date,
            "datetime" => Kind::Datetime { scale },
            "timestamp" => Kind::Timestamp { scale },
            "time" => Kind::Time { scale },
            "text" => Kind::Text { charset: charset()? },
            "binary" => Kind::Binary { length },
            "varbinary" => Kind::Varbinary,
            "enum" => Kind::Enum { members: members()?, charset: charset()? },
            "set" => Kind::Set { members: members()?, charset: charset()? },
            "json" => Kind::Json,
            "geometry" => Kind::Geometry,
            "vector" => Kind::Vector,
            "uuid" => Kind::Uuid,
            "inet4" => Kind::Inet4,
            "inet6" => Kind::Inet6,
            _ => return Err(wrong(&format!("type {type_} is not read"))),
        })
    }
}
