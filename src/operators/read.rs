//! `read`: how a node's file is read, in the words of the reader.
//!
//! `file -> prompts | comparisons | demonstrations`. It has no step: [`read`](crate::record::read) does
//! the work.

use crate::record::read::{Format, ReadOptions};
use crate::spec::op::{FileFormat, Read};

/// What the reader is told of a node.
///
/// # Panics
///
/// When the format is neither stated nor in the path's ending: a loaded pipeline always knows.
pub fn options(op: &Read, node: &str) -> ReadOptions {
    let format = match op.format().expect("a loaded pipeline knows the format of its files") {
        FileFormat::Jsonl => Format::Jsonl,
        FileFormat::Parquet => Format::Parquet,
        FileFormat::Csv => Format::Csv,
        FileFormat::HhRlhf => Format::HhRlhf,
    };
    let columns = op.columns.iter();
    ReadOptions {
        format,
        relation: op.relation.relation(),
        verbatim: op.verbatim,
        key: op.key.iter().map(|name| name.value.clone()).collect(),
        columns: columns.map(|(ours, theirs)| (ours.value.clone(), theirs.value.clone())).collect(),
        limit: op.limit,
        source: op.path.written.clone(),
        node: node.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Relation;
    use crate::spec::Op;

    #[test]
    fn a_node_is_read_as_it_is_written() {
        let node = "read: { path: data/pairs.jsonl.gz, relation: comparisons, key: [n], \
                    columns: { prompt: question }, limit: 3 }";
        let Op::Read(op) = crate::operators::testing::op(node) else { panic!("it is a read") };
        let options = options(&op, "pairs");
        assert_eq!((options.format, options.relation), (Format::Jsonl, Relation::Comparisons));
        assert_eq!((options.source.as_str(), options.limit), ("data/pairs.jsonl.gz", Some(3)));
        assert_eq!((options.key.len(), options.columns["prompt"].as_str()), (1, "question"));
    }
}
