//! A builder: rows of one relation, cell by cell, with each row's content and version.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanBuilder, Float32Builder, Float64Builder, Int32Builder, Int64Builder,
    ListBuilder, RecordBatch, StringBuilder, StructBuilder,
};
use arrow::datatypes::{DataType, Field};

use super::batch::{Batch, CONTENT, Cell, VERSION};
use super::key::{Id, KeyHasher};
use super::relation::{Column, Kind, Part, Relation, file_fields, message_fields};

/// Where a row comes from: the columns that every relation begins with, but for `content`.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The row's id.
    pub row_id: Id,
    /// The source prompt it descends from.
    pub root_id: Id,
    /// The rows it was made of.
    pub parents: Vec<Id>,
    /// The calls that made it, by their first 16 bytes.
    pub call_keys: Vec<Id>,
}

/// Collects rows of one relation.
pub struct BatchBuilder {
    relation: Relation,
    columns: Vec<ColumnBuilder>,
    ids: Vec<(Id, Id)>,
}

impl BatchBuilder {
    /// An empty builder.
    pub fn new(relation: Relation) -> BatchBuilder {
        let columns = relation.columns().iter().map(ColumnBuilder::new).collect();
        BatchBuilder { relation, columns, ids: Vec::new() }
    }

    /// What it collects.
    pub fn relation(&self) -> Relation {
        self.relation
    }

    /// How many rows it holds.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Adds a row; a column that `cells` does not name is null. Returns its content and version.
    ///
    /// # Panics
    ///
    /// When a cell names no column, has another type, or leaves a column null that may not be.
    pub fn push(&mut self, origin: &Origin, cells: &[(&'static str, Cell<'_>)]) -> (Id, Id) {
        for (name, _) in cells {
            self.relation.position(name);
        }
        let columns = self.relation.columns();
        let mut next = 0;
        // What is copied of another row is read once, and then hashed twice and kept.
        let own = columns.iter().filter(|column| column.part != Part::Common);
        let own: Vec<(&Column, Cow<'_, Cell<'_>>)> =
            own.map(|column| (column, read(find(cells, column.name, &mut next)))).collect();
        let mut content = KeyHasher::new(CONTENT);
        content.add_text(self.relation.name());
        for (_, cell) in own.iter().filter(|(column, _)| column.part == Part::Content) {
            cell.hash_into(&mut content);
        }
        let content = content.id();

        let mut version = KeyHasher::new(VERSION);
        version.add_text(self.relation.name());
        let common = [
            Cell::Id(origin.row_id),
            Cell::Id(content),
            Cell::Id(origin.root_id),
            Cell::Ids(&origin.parents),
            Cell::Ids(&origin.call_keys),
        ];
        let common = columns.iter().zip(&common);
        for (at, (column, cell)) in
            common.chain(own.iter().map(|(column, cell)| (*column, &**cell))).enumerate()
        {
            if column.part != Part::Content {
                cell.hash_into(&mut version);
            }
            self.columns[at].push(column, cell);
        }
        let version = version.id();
        self.ids.push((content, version));
        (content, version)
    }

    /// The batch, and each row's content and version.
    pub fn finish(mut self) -> (Batch, Vec<(Id, Id)>) {
        let arrays = self.columns.iter_mut().map(ColumnBuilder::finish).collect();
        let rows = RecordBatch::try_new(self.relation.schema(), arrays)
            .expect("a builder makes arrays of its relation's schema");
        (Batch::new(self.relation, rows), self.ids)
    }
}

/// The cell of a name. Cells are mostly given in the order of the columns, so that the search goes
/// on from where the last one ended.
fn find<'c, 'a>(
    cells: &'c [(&'static str, Cell<'a>)],
    name: &str,
    next: &mut usize,
) -> &'c Cell<'a> {
    let count = cells.len();
    let mut places = (0..count).map(|step| (*next + step) % count);
    match places.find(|at| cells[*at].0 == name) {
        Some(at) => {
            *next = at + 1;
            &cells[at].1
        }
        None => &Cell::Null,
    }
}

/// A cell that is no copy of another row's.
fn read<'c, 'a>(cell: &'c Cell<'a>) -> Cow<'c, Cell<'a>> {
    match cell {
        Cell::Of(row, name) => Cow::Owned(row.read(name)),
        cell => Cow::Borrowed(cell),
    }
}

enum ColumnBuilder {
    Text(StringBuilder),
    Int32(Int32Builder),
    Int64(Int64Builder),
    Float(Float64Builder),
    Bool(BooleanBuilder),
    Texts(ListBuilder<StringBuilder>),
    Ints(ListBuilder<Int32Builder>),
    Floats32(ListBuilder<Float32Builder>),
    Floats(ListBuilder<Float64Builder>),
    Structs(ListBuilder<StructBuilder>),
}

impl ColumnBuilder {
    fn new(column: &Column) -> ColumnBuilder {
        let item = |kind: DataType| Field::new("item", kind, false);
        match column.kind {
            Kind::Text | Kind::Id => ColumnBuilder::Text(StringBuilder::new()),
            Kind::Int32 => ColumnBuilder::Int32(Int32Builder::new()),
            Kind::Int64 => ColumnBuilder::Int64(Int64Builder::new()),
            Kind::Float => ColumnBuilder::Float(Float64Builder::new()),
            Kind::Bool => ColumnBuilder::Bool(BooleanBuilder::new()),
            Kind::Texts | Kind::Ids => ColumnBuilder::Texts(
                ListBuilder::new(StringBuilder::new()).with_field(item(DataType::Utf8)),
            ),
            Kind::Ints => ColumnBuilder::Ints(
                ListBuilder::new(Int32Builder::new()).with_field(item(DataType::Int32)),
            ),
            Kind::Floats32 => ColumnBuilder::Floats32(
                ListBuilder::new(Float32Builder::new()).with_field(item(DataType::Float32)),
            ),
            Kind::Floats => ColumnBuilder::Floats(
                ListBuilder::new(Float64Builder::new()).with_field(item(DataType::Float64)),
            ),
            Kind::Messages | Kind::Files => {
                let fields = match column.kind {
                    Kind::Messages => message_fields(),
                    _ => file_fields(),
                };
                let items = StructBuilder::from_fields(fields.clone(), 0);
                let field = item(DataType::Struct(fields));
                ColumnBuilder::Structs(ListBuilder::new(items).with_field(field))
            }
        }
    }

    fn push(&mut self, column: &Column, cell: &Cell<'_>) {
        assert!(column.nullable || !matches!(cell, Cell::Null), "{} is not null", column.name);
        match (self, cell) {
            (ColumnBuilder::Text(to), Cell::Text(text)) => to.append_value(text),
            (ColumnBuilder::Text(to), Cell::Id(id)) => to.append_value(digits(&id.digits())),
            (ColumnBuilder::Text(to), Cell::Null) => to.append_null(),
            (ColumnBuilder::Int32(to), Cell::Int(number)) => {
                to.append_value(i32::try_from(*number).expect("a column of Int32 holds 32 bits"));
            }
            (ColumnBuilder::Int32(to), Cell::Null) => to.append_null(),
            (ColumnBuilder::Int64(to), Cell::Int(number)) => to.append_value(*number),
            (ColumnBuilder::Int64(to), Cell::Null) => to.append_null(),
            (ColumnBuilder::Float(to), Cell::Float(number)) => to.append_value(*number),
            (ColumnBuilder::Float(to), Cell::Null) => to.append_null(),
            (ColumnBuilder::Bool(to), Cell::Bool(truth)) => to.append_value(*truth),
            (ColumnBuilder::Bool(to), Cell::Null) => to.append_null(),
            (ColumnBuilder::Texts(to), Cell::Texts(texts)) => {
                texts.iter().for_each(|text| to.values().append_value(text));
                to.append(true);
            }
            (ColumnBuilder::Texts(to), Cell::Ids(ids)) => {
                ids.iter().for_each(|id| to.values().append_value(digits(&id.digits())));
                to.append(true);
            }
            (ColumnBuilder::Texts(to), Cell::Null) => to.append_null(),
            (ColumnBuilder::Ints(to), Cell::Ints(numbers)) => {
                to.values().append_slice(numbers);
                to.append(true);
            }
            (ColumnBuilder::Ints(to), Cell::Null) => to.append_null(),
            (ColumnBuilder::Floats32(to), Cell::Floats(numbers)) => {
                numbers.iter().for_each(|number| to.values().append_value(*number as f32));
                to.append(true);
            }
            (ColumnBuilder::Floats32(to), Cell::Null) => to.append_null(),
            (ColumnBuilder::Floats(to), Cell::Floats(numbers)) => {
                to.values().append_slice(numbers);
                to.append(true);
            }
            (ColumnBuilder::Floats(to), Cell::Null) => to.append_null(),
            (ColumnBuilder::Structs(to), Cell::Messages(messages)) => {
                let turns = messages.iter();
                push_turns(to, turns.map(|turn| (&*turn.role, &*turn.content)));
            }
            (ColumnBuilder::Structs(to), Cell::Turns(turns)) => push_turns(to, turns.clone()),
            (ColumnBuilder::Structs(to), Cell::Files(files)) => {
                for (name, bytes, sha256) in files {
                    push_text(to.values(), 0, name);
                    let sizes: &mut Int64Builder =
                        to.values().field_builder(1).expect("the second field of a file is Int64");
                    sizes.append_value(*bytes);
                    push_text(to.values(), 2, sha256);
                    to.values().append(true);
                }
                to.append(true);
            }
            (ColumnBuilder::Structs(to), Cell::Null) => to.append_null(),
            (_, cell) => panic!("{} does not hold {cell:?}", column.name),
        }
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            ColumnBuilder::Text(from) => Arc::new(from.finish()),
            ColumnBuilder::Int32(from) => Arc::new(from.finish()),
            ColumnBuilder::Int64(from) => Arc::new(from.finish()),
            ColumnBuilder::Float(from) => Arc::new(from.finish()),
            ColumnBuilder::Bool(from) => Arc::new(from.finish()),
            ColumnBuilder::Texts(from) => Arc::new(from.finish()),
            ColumnBuilder::Ints(from) => Arc::new(from.finish()),
            ColumnBuilder::Floats32(from) => Arc::new(from.finish()),
            ColumnBuilder::Floats(from) => Arc::new(from.finish()),
            ColumnBuilder::Structs(from) => Arc::new(from.finish()),
        }
    }
}

fn push_turns<'t>(
    to: &mut ListBuilder<StructBuilder>,
    turns: impl Iterator<Item = (&'t str, &'t str)>,
) {
    for (role, content) in turns {
        push_text(to.values(), 0, role);
        push_text(to.values(), 1, content);
        to.values().append(true);
    }
    to.append(true);
}

fn digits(hex: &[u8; 32]) -> &str {
    std::str::from_utf8(hex).expect("hex digits are text")
}

fn push_text(to: &mut StructBuilder, field: usize, text: &str) {
    let texts: &mut StringBuilder = to.field_builder(field).expect("the field is Utf8");
    texts.append_value(text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Message;

    fn origin(n: u64) -> Origin {
        let id = KeyHasher::new("amend/test/1").u64(n).id();
        Origin { row_id: id, root_id: id, parents: vec![], call_keys: vec![] }
    }

    fn prompt(text: &str) -> Vec<(&'static str, Cell<'static>)> {
        vec![
            ("prompt", Cell::messages(vec![Message::user(text)])),
            ("conversation_id", Cell::id(Id::ZERO)),
            ("turn", Cell::Int(0)),
            ("tags", Cell::Texts(vec!["a".into(), "b".into()])),
            ("source", Cell::text("here")),
            ("source_line", Cell::Int(1)),
        ]
    }

    #[test]
    fn a_row_reads_back_what_was_pushed() {
        let mut builder = BatchBuilder::new(Relation::Prompts);
        let (content, version) = builder.push(&origin(1), &prompt("hello"));
        let (batch, ids) = builder.finish();
        let row = batch.row(0);
        assert_eq!(row.messages("prompt"), vec![Message::user("hello")]);
        assert_eq!(row.turns("prompt").collect::<Vec<_>>(), [("user", "hello")]);
        assert_eq!(row.texts("tags"), ["a", "b"]);
        assert_eq!(row.text("category"), None);
        assert_eq!(row.row_id(), origin(1).row_id);
        assert_eq!(ids, [(content, version)]);
        assert_eq!((row.content_hash(), row.version_hash()), (content, version));
    }

    #[test]
    fn a_copied_cell_hashes_and_reads_like_the_original() {
        let mut builder = BatchBuilder::new(Relation::Prompts);
        let first = builder.push(&origin(1), &prompt("hello"));
        let (batch, _) = builder.finish();
        let mut cells = prompt("other");
        cells[0].1 = batch.row(0).cell("prompt");
        let mut builder = BatchBuilder::new(Relation::Prompts);
        assert_eq!(builder.push(&origin(1), &cells), first);
    }

    #[test]
    fn content_is_what_a_row_says_and_not_where_it_comes_from() {
        let mut builder = BatchBuilder::new(Relation::Prompts);
        let (a, b) = (
            builder.push(&origin(1), &prompt("hello")),
            builder.push(&origin(2), &prompt("hello")),
        );
        assert_eq!(a.0, b.0);
        assert_ne!(a.1, b.1);
    }
}
