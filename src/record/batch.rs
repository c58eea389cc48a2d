//! A batch: rows of one relation in Arrow columns, with a view of one row.

use std::borrow::Cow;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, ListArray, RecordBatch, StringArray, StructArray,
};
use arrow::datatypes::{DataType, Float32Type, Float64Type, Int32Type, Int64Type};

use super::key::{Id, KeyHasher};
use super::message::Message;
use super::relation::{Column, Kind, Part, Relation};

/// The domain of the hash of a row's content columns.
pub(super) const CONTENT: &str = "amend/content/1";
/// The domain of the hash of a whole row.
pub(super) const VERSION: &str = "amend/version/2";

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
        let message =
            |(role, content): (&str, &str)| Message { role: role.into(), content: content.into() };
        self.turns(name).map(message).collect()
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

    /// A list of texts without a copy; none where it is null.
    fn items(self, name: &str) -> impl Iterator<Item = &'a str> {
        let lists: &ListArray = self.column(name).as_list();
        let items: &StringArray = lists.values().as_string();
        let offsets = lists.value_offsets();
        let (begin, end) = (offsets[self.index] as usize, offsets[self.index + 1] as usize);
        let end = if lists.is_null(self.index) { begin } else { end };
        (begin..end).map(|at| items.value(at))
    }

    /// A list of texts; empty where it is null.
    pub fn texts(self, name: &str) -> Vec<String> {
        self.items(name).map(str::to_owned).collect()
    }

    /// A list of ids; empty where it is null.
    pub fn ids(self, name: &str) -> Vec<Id> {
        let parse = |hex: &str| hex.parse().expect("a column of ids holds 32 hex digits");
        self.items(name).map(parse).collect()
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

    /// The value, as a cell of its own.
    pub(super) fn read(self, name: &str) -> Cell<'a> {
        let relation = self.relation();
        let column = relation.columns()[relation.position(name)];
        if self.is_null(name) {
            return Cell::Null;
        }
        match column.kind {
            Kind::Text | Kind::Id => Cell::Text(Cow::Borrowed(self.str(name))),
            Kind::Int32 | Kind::Int64 => Cell::Int(self.int(name).expect("not null")),
            Kind::Float => Cell::Float(self.float(name).expect("not null")),
            Kind::Bool => Cell::Bool(self.bool(name).expect("not null")),
            Kind::Messages => Cell::Turns(self.turns(name)),
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
        self.hash(CONTENT, |column| column.part == Part::Content)
    }

    /// The hash of the whole row: of its content's hash and of the other columns. What a
    /// published row says.
    pub fn version_hash(self) -> Id {
        self.hash(VERSION, |column| column.part != Part::Content)
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

impl ExactSizeIterator for Turns<'_> {}

/// The value of one column of a row to be.
#[derive(Clone, Debug)]
pub enum Cell<'a> {
    /// Null.
    Null,
    /// A text.
    Text(Cow<'a, str>),
    /// An id, which is kept and hashed as its digits.
    Id(Id),
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A conversation.
    Messages(Cow<'a, [Message]>),
    /// A conversation as it lies in a batch.
    Turns(Turns<'a>),
    /// A list of texts.
    Texts(Vec<String>),
    /// A list of ids.
    Ids(&'a [Id]),
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
        Cell::Id(id)
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
            Cell::Id(id) => {
                hasher.add_u64(1);
                hasher.add_bytes(&id.digits());
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
            Cell::Turns(turns) => {
                hasher.add_u64(6);
                hasher.add_u64(turns.len() as u64);
                for (role, content) in turns.clone() {
                    hasher.add_text(role);
                    hasher.add_text(content);
                }
            }
            Cell::Texts(texts) => {
                hasher.add_u64(7);
                hasher.add_u64(texts.len() as u64);
                texts.iter().for_each(|text| hasher.add_text(text));
            }
            Cell::Ids(ids) => {
                hasher.add_u64(7);
                hasher.add_u64(ids.len() as u64);
                ids.iter().for_each(|id| hasher.add_bytes(&id.digits()));
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
