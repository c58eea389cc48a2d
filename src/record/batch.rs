//! A batch: rows of one relation in Arrow columns, with a view of one row and a builder.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, BooleanBuilder, Float32Builder, Float64Builder,
    Int32Builder, Int64Builder, ListArray, ListBuilder, RecordBatch, StringArray, StringBuilder,
    StructArray, StructBuilder,
};
use arrow::datatypes::{DataType, Field, Float32Type, Float64Type, Int32Type, Int64Type};

use super::key::{Id, KeyHasher};
use super::message::Message;
use super::relation::{Column, Kind, Part, Relation, file_fields, message_fields};

/// Rows of one relation; its schema is the relation's, always.
#[derive(Clone, Debug)]
pub struct Batch {
    relation: Relation,
    rows: RecordBatch,
}

impl Batch {
    /// The batch of these rows.
    ///
    /// # Panics
    ///
    /// When the schema is not the relation's: readers of files check theirs before.
    pub fn new(relation: Relation, rows: RecordBatch) -> Batch {
        assert_eq!(rows.schema(), relation.schema(), "a batch of {relation} has their schema");
        Batch { relation, rows }
    }

    /// What the rows are.
    pub fn relation(&self) -> Relation {
        self.relation
    }

    /// The Arrow rows.
    pub fn rows(&self) -> &RecordBatch {
        &self.rows
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        self.rows.num_rows()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A view of one row.
    ///
    /// # Panics
    ///
    /// When there is no such row.
    pub fn row(&self, index: usize) -> Row<'_> {
        assert!(index < self.len(), "row {index} of {}", self.len());
        Row { batch: self, index }
    }

    /// Views of all rows.
    pub fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        (0..self.len()).map(|index| self.row(index))
    }
}

/// A view of one row of a batch.
///
/// The getters name a column of the row's relation and panic for another: names of columns are
/// written in code.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    batch: &'a Batch,
    index: usize,
}

impl<'a> Row<'a> {
    /// The row's relation.
    pub fn relation(self) -> Relation {
        self.batch.relation
    }

    /// The batch it is a row of.
    pub fn batch(self) -> &'a Batch {
        self.batch
    }

    /// Its place in the batch.
    pub fn index(self) -> usize {
        self.index
    }

    /// Whether the relation has such a column.
    pub fn has(self, name: &str) -> bool {
        self.batch.relation.columns().iter().any(|column| column.name == name)
    }

    fn column(self, name: &str) -> &'a ArrayRef {
        self.batch.rows.column(self.batch.relation.position(name))
    }

    /// Whether the column is null here.
    pub fn is_null(self, name: &str) -> bool {
        self.column(name).is_null(self.index)
    }

    /// A text, or nothing where it is null.
    pub fn text(self, name: &str) -> Option<&'a str> {
        let array: &StringArray = self.column(name).as_string();
        array.is_valid(self.index).then(|| array.value(self.index))
    }

    /// A text that is never null.
    pub fn str(self, name: &str) -> &'a str {
        self.text(name).unwrap_or_else(|| panic!("{} of {} is not null", name, self.relation()))
    }

    /// An id, or nothing where it is null.
    pub fn id(self, name: &str) -> Option<Id> {
        self.text(name).map(|hex| hex.parse().expect("a column of ids holds 32 hex digits"))
    }

    /// The row's id.
    pub fn row_id(self) -> Id {
        self.id("row_id").expect("row_id is not null")
    }

    /// A whole number of either width.
    pub fn int(self, name: &str) -> Option<i64> {
        let array = self.column(name);
        if array.is_null(self.index) {
            return None;
        }
        Some(match array.data_type() {
            DataType::Int32 => i64::from(array.as_primitive::<Int32Type>().value(self.index)),
            _ => array.as_primitive::<Int64Type>().value(self.index),
        })
    }

    /// A number.
    pub fn float(self, name: &str) -> Option<f64> {
        let array = self.column(name).as_primitive::<Float64Type>();
        array.is_valid(self.index).then(|| array.value(self.index))
    }

    /// A truth value.
    pub fn bool(self, name: &str) -> Option<bool> {
        let array: &BooleanArray = self.column(name).as_boolean();
        array.is_valid(self.index).then(|| array.value(self.index))
    }

    fn list(self, name: &str) -> Option<ArrayRef> {
        let array: &ListArray = self.column(name).as_list();
        array.is_valid(self.index).then(|| array.value(self.index))
    }

    /// A conversation; empty where it is null.
    pub fn messages(self, name: &str) -> Vec<Message> {
        let Some(items) = self.list(name) else { return Vec::new() };
        let items: &StructArray = items.as_struct();
        let (roles, contents) = (items.column(0).as_string::<i32>(), items.column(1).as_string());
        let message = |at| Message {
            role: roles.value(at).to_owned(),
            content: StringArray::value(contents, at).to_owned(),
        };
        (0..items.len()).map(message).collect()
    }

    /// The turns of a conversation without a copy; none where it is null.
    pub fn turns(self, name: &str) -> Turns<'a> {
        let lists: &ListArray = self.column(name).as_list();
        let items: &StructArray = lists.values().as_struct();
        let offsets = lists.value_offsets();
        let (mut at, end) = (offsets[self.index] as usize, offsets[self.index + 1] as usize);
        if lists.is_null(self.index) {
            at = end;
        }
        Turns { roles: items.column(0).as_string(), contents: items.column(1).as_string(), at, end }
    }

    /// A list of texts; empty where it is null.
    pub fn texts(self, name: &str) -> Vec<String> {
        let Some(items) = self.list(name) else { return Vec::new() };
        items.as_string::<i32>().iter().flatten().map(str::to_owned).collect()
    }

    /// A list of ids; empty where it is null.
    pub fn ids(self, name: &str) -> Vec<Id> {
        let parse = |hex: String| hex.parse().expect("a column of ids holds 32 hex digits");
        self.texts(name).into_iter().map(parse).collect()
    }

    /// A list of numbers of either width; empty where it is null.
    pub fn floats(self, name: &str) -> Vec<f64> {
        let Some(items) = self.list(name) else { return Vec::new() };
        match items.data_type() {
            DataType::Float32 => {
                items.as_primitive::<Float32Type>().values().iter().map(|x| f64::from(*x)).collect()
            }
            _ => items.as_primitive::<Float64Type>().values().to_vec(),
        }
    }

    /// A list of whole numbers; empty where it is null.
    pub fn ints(self, name: &str) -> Vec<i32> {
        let Some(items) = self.list(name) else { return Vec::new() };
        items.as_primitive::<Int32Type>().values().to_vec()
    }

    /// A cell that copies this column when it is pushed to a builder.
    pub fn cell(self, name: &'static str) -> Cell<'a> {
        Cell::Of(self, name)
    }

    fn read(self, name: &str) -> Cell<'static> {
        let relation = self.relation();
        let column = relation.columns()[relation.position(name)];
        if self.is_null(name) {
            return Cell::Null;
        }
        match column.kind {
            Kind::Text | Kind::Id => Cell::Text(Cow::Owned(self.str(name).to_owned())),
            Kind::Int32 | Kind::Int64 => Cell::Int(self.int(name).expect("not null")),
            Kind::Float => Cell::Float(self.float(name).expect("not null")),
            Kind::Bool => Cell::Bool(self.bool(name).expect("not null")),
            Kind::Messages => Cell::Messages(Cow::Owned(self.messages(name))),
            Kind::Texts | Kind::Ids => Cell::Texts(self.texts(name)),
            Kind::Ints => Cell::Ints(self.ints(name)),
            Kind::Floats32 | Kind::Floats => Cell::Floats(self.floats(name)),
            Kind::Files => Cell::Files(self.files(name)),
        }
    }

    /// A list of files; empty where it is null.
    pub fn files(self, name: &str) -> Vec<(String, i64, String)> {
        let Some(items) = self.list(name) else { return Vec::new() };
        let items: &StructArray = items.as_struct();
        let names: &StringArray = items.column(0).as_string();
        let bytes = items.column(1).as_primitive::<Int64Type>();
        let hashes: &StringArray = items.column(2).as_string();
        let file = |at| {
            (names.value(at).to_owned(), bytes.value(at), StringArray::value(hashes, at).to_owned())
        };
        (0..items.len()).map(file).collect()
    }

    /// The hash of the row's content columns: what consumers that spend read.
    pub fn content_hash(self) -> Id {
        self.hash("amend/content/1", |column| column.part == Part::Content)
    }

    /// The hash of the whole row but for `content`: what a published row says.
    pub fn version_hash(self) -> Id {
        self.hash("amend/version/1", |column| column.name != "content")
    }

    fn hash(self, domain: &str, part: impl Fn(&Column) -> bool) -> Id {
        let mut hasher = KeyHasher::new(domain);
        hasher.add_text(self.relation().name());
        for column in self.relation().columns().iter().filter(|column| part(column)) {
            self.read(column.name).hash_into(&mut hasher);
        }
        hasher.id()
    }
}

/// The turns of a conversation: role and content, as they lie in the batch.
#[derive(Clone, Debug)]
pub struct Turns<'a> {
    roles: &'a StringArray,
    contents: &'a StringArray,
    at: usize,
    end: usize,
}

impl<'a> Iterator for Turns<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.at;
        self.at += 1;
        (at < self.end).then(|| (self.roles.value(at), self.contents.value(at)))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.end.saturating_sub(self.at);
        (left, Some(left))
    }
}

/// The value of one column of a row to be.
#[derive(Clone, Debug)]
pub enum Cell<'a> {
    /// Null.
    Null,
    /// A text, also an id's digits.
    Text(Cow<'a, str>),
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A conversation.
    Messages(Cow<'a, [Message]>),
    /// A list of texts.
    Texts(Vec<String>),
    /// A list of whole numbers.
    Ints(Vec<i32>),
    /// A list of numbers.
    Floats(Vec<f64>),
    /// Files: name, bytes, sha256.
    Files(Vec<(String, i64, String)>),
    /// The same column of another row.
    Of(Row<'a>, &'static str),
}

impl<'a> Cell<'a> {
    /// A text.
    pub fn text(text: impl Into<Cow<'a, str>>) -> Cell<'a> {
        Cell::Text(text.into())
    }

    /// An id.
    pub fn id(id: Id) -> Cell<'a> {
        Cell::Text(Cow::Owned(id.to_string()))
    }

    /// A list of ids.
    pub fn ids(ids: &[Id]) -> Cell<'a> {
        Cell::Texts(ids.iter().map(Id::to_string).collect())
    }

    /// A conversation.
    pub fn messages(messages: impl Into<Cow<'a, [Message]>>) -> Cell<'a> {
        Cell::Messages(messages.into())
    }

    /// The value, or null.
    pub fn or_null<T>(value: Option<T>, cell: impl FnOnce(T) -> Cell<'a>) -> Cell<'a> {
        value.map_or(Cell::Null, cell)
    }

    /// Adds the value to a hash, with a tag of its type.
    pub fn hash_into(&self, hasher: &mut KeyHasher) {
        match self {
            Cell::Null => hasher.add_u64(0),
            Cell::Text(text) => {
                hasher.add_u64(1);
                hasher.add_text(text);
            }
            Cell::Int(number) => {
                hasher.add_u64(2);
                hasher.add_u64(*number as u64);
            }
            Cell::Float(number) => {
                hasher.add_u64(3);
                hasher.add_f64(*number);
            }
            Cell::Bool(truth) => hasher.add_u64(4 + u64::from(*truth)),
            Cell::Messages(messages) => {
                hasher.add_u64(6);
                hasher.add_u64(messages.len() as u64);
                for message in messages.iter() {
                    hasher.add_text(&message.role);
                    hasher.add_text(&message.content);
                }
            }
            Cell::Texts(texts) => {
                hasher.add_u64(7);
                hasher.add_u64(texts.len() as u64);
                texts.iter().for_each(|text| hasher.add_text(text));
            }
            Cell::Ints(numbers) => {
                hasher.add_u64(8);
                hasher.add_u64(numbers.len() as u64);
                numbers.iter().for_each(|number| hasher.add_u64(*number as u64));
            }
            Cell::Floats(numbers) => {
                hasher.add_u64(9);
                hasher.add_u64(numbers.len() as u64);
                numbers.iter().for_each(|number| hasher.add_f64(*number));
            }
            Cell::Files(files) => {
                hasher.add_u64(10);
                hasher.add_u64(files.len() as u64);
                for (name, bytes, sha256) in files {
                    hasher.add_text(name);
                    hasher.add_u64(*bytes as u64);
                    hasher.add_text(sha256);
                }
            }
            Cell::Of(row, name) => row.read(name).hash_into(hasher),
        }
    }
}

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
        let mut content = KeyHasher::new("amend/content/1");
        content.add_text(self.relation.name());
        for column in columns.iter().filter(|column| column.part == Part::Content) {
            find(cells, column.name).hash_into(&mut content);
        }
        let content = content.id();

        let mut version = KeyHasher::new("amend/version/1");
        version.add_text(self.relation.name());
        let common = [
            Cell::id(origin.row_id),
            Cell::id(content),
            Cell::id(origin.root_id),
            Cell::ids(&origin.parents),
            Cell::ids(&origin.call_keys),
        ];
        for (at, column) in columns.iter().enumerate() {
            let cell = common.get(at).unwrap_or_else(|| find(cells, column.name));
            if column.name != "content" {
                cell.hash_into(&mut version);
            }
            self.columns[at].push(column, cell);
        }
        self.ids.push((content, version.id()));
        (content, version.id())
    }

    /// The batch, and each row's content and version.
    pub fn finish(mut self) -> (Batch, Vec<(Id, Id)>) {
        let arrays = self.columns.iter_mut().map(ColumnBuilder::finish).collect();
        let rows = RecordBatch::try_new(self.relation.schema(), arrays)
            .expect("a builder makes arrays of its relation's schema");
        (Batch::new(self.relation, rows), self.ids)
    }
}

fn find<'c, 'a>(cells: &'c [(&'static str, Cell<'a>)], name: &str) -> &'c Cell<'a> {
    cells.iter().find(|(column, _)| *column == name).map_or(&Cell::Null, |(_, cell)| cell)
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
        let read;
        let cell = match cell {
            Cell::Of(row, name) => {
                read = row.read(name);
                &read
            }
            cell => cell,
        };
        assert!(column.nullable || !matches!(cell, Cell::Null), "{} is not null", column.name);
        match (self, cell) {
            (ColumnBuilder::Text(to), Cell::Text(text)) => to.append_value(text),
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
                for message in messages.iter() {
                    push_text(to.values(), 0, &message.role);
                    push_text(to.values(), 1, &message.content);
                    to.values().append(true);
                }
                to.append(true);
            }
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

fn push_text(to: &mut StructBuilder, field: usize, text: &str) {
    let texts: &mut StringBuilder = to.field_builder(field).expect("the field is Utf8");
    texts.append_value(text);
}

#[cfg(test)]
mod tests {
    use super::*;

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
