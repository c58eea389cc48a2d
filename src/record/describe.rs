//! Relations as JSON, for those who read the tables: each column's name, type and nullability.

use serde_json::{Value, json};

use super::relation::{Kind, Part, Relation};

impl Relation {
    /// The relation's name and columns.
    pub fn describe(self) -> Value {
        let columns = self.columns().iter().map(|column| {
            json!({
                "name": column.name,
                "type": column.kind.type_name(),
                "nullable": column.nullable,
                "part": match column.part {
                    Part::Common => "common",
                    Part::Content => "content",
                    Part::Provenance => "provenance",
                },
            })
        });
        json!({ "relation": self.name(), "columns": columns.collect::<Vec<Value>>() })
    }
}

impl Kind {
    /// The Arrow type, as people write it. An id is text of 32 hex digits.
    pub fn type_name(self) -> &'static str {
        match self {
            Kind::Text | Kind::Id => "Utf8",
            Kind::Int32 => "Int32",
            Kind::Int64 => "Int64",
            Kind::Float => "Float64",
            Kind::Bool => "Boolean",
            Kind::Messages => "List<Struct<role: Utf8, content: Utf8>>",
            Kind::Texts | Kind::Ids => "List<Utf8>",
            Kind::Ints => "List<Int32>",
            Kind::Floats32 => "List<Float32>",
            Kind::Floats => "List<Float64>",
            Kind::Files => "List<Struct<name: Utf8, bytes: Int64, sha256: Utf8>>",
        }
    }
}
