//! Bounds on SQL: what is nested too deep overflows the stack of whoever reads, plans or computes it.
//!
//! A chain such as `a or b or c` nests as deep as it is long. The words and signs that nest are counted,
//! which is never less than the depth; what has few of them is worked on with a stack that holds them.

use std::thread;

/// The most bytes of SQL.
const BYTES_MAX: usize = 1 << 20;
/// The most words and signs that nest, of a query.
pub(super) const QUERY_MAX: usize = 2_000;
/// The same of a condition, which is computed in the threads of the dataflow.
pub(super) const CONDITION_MAX: usize = 500;
/// The stack of a thread in which SQL is read and planned.
const STACK_BYTES: usize = 512 << 20;

/// Words after which something is nested.
const WORDS: &[&str] = &[
    "and",
    "or",
    "not",
    "case",
    "when",
    "select",
    "union",
    "except",
    "intersect",
    "join",
    "is",
    "like",
    "ilike",
    "between",
    "in",
    "over",
    "cast",
    "collate",
    "from",
    "values",
    "with",
    "at",
];

/// Why SQL is not looked at: it is too long, or nests more than `most`.
pub(super) fn refusal(sql: &str, most: usize) -> Option<String> {
    if sql.len() > BYTES_MAX {
        let mib = BYTES_MAX >> 20;
        return Some(format!(
            "SQL of {} bytes is longer than {mib} MiB: put the values that it lists into a table",
            sql.len()
        ));
    }
    let nesting = nesting(sql);
    (nesting > most).then(|| {
        format!(
            "SQL with {nesting} operators and brackets may nest too deep, at most {most} are taken: \
             put alternatives into a list (`x in (…)`), or ask in several steps"
        )
    })
}

/// How many words and signs nest, outside texts, quoted names and comments.
fn nesting(sql: &str) -> usize {
    let bytes = sql.as_bytes();
    let (mut count, mut at) = (0, 0);
    while at < bytes.len() {
        let rest = &bytes[at..];
        at += match rest[0] {
            quote @ (b'\'' | b'"' | b'`') => {
                let end = rest[1..].iter().position(|byte| *byte == quote);
                end.map_or(rest.len(), |end| end + 2)
            }
            b'-' if rest.starts_with(b"--") => {
                rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |end| end + 1)
            }
            b'/' if rest.starts_with(b"/*") => {
                let end = rest.windows(2).skip(2).position(|pair| pair == b"*/");
                end.map_or(rest.len(), |end| end + 4)
            }
            letter if letter.is_ascii_alphanumeric() || letter == b'_' => {
                let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
                let len = rest.iter().position(|byte| !is_part(byte)).unwrap_or(rest.len());
                let word = &sql[at..at + len];
                count += usize::from(WORDS.iter().any(|nests| nests.eq_ignore_ascii_case(word)));
                len
            }
            sign => {
                // A comma between tables is a join; one between values is none, and is far more common.
                count += usize::from(b"+-*/%|&^<>=!~([:".contains(&sign));
                1
            }
        };
    }
    count
}

/// Does something with a stack that holds what is deep.
pub(super) fn with_stack<T: Send>(run: impl FnOnce() -> T + Send) -> Result<T, String> {
    thread::scope(|scope| {
        let deep = thread::Builder::new().name("sql".to_owned()).stack_size(STACK_BYTES);
        let running = deep.spawn_scoped(scope, run);
        let running =
            running.map_err(|error| format!("there is no memory for a query: {error}"))?;
        running.join().or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nests_is_counted_and_what_is_quoted_is_not() {
        assert_eq!(nesting("select a, b, c"), 1);
        assert_eq!(nesting("a or (b and not c)"), 4);
        assert_eq!(nesting("x = 'or or (((' -- and and\n and \"or\" /* or (( */ + 1"), 3);
        assert_eq!(nesting("'open or or"), 0);
        assert_eq!(nesting("/* open or"), 0);
        assert_eq!(nesting("a::int::text"), 4);
        assert_eq!(nesting("“or” or ü"), 2);
    }

    #[test]
    fn a_long_list_is_taken_and_a_long_chain_is_not() {
        let list: Vec<String> = (0..20_000).map(|n| format!("'{n}'")).collect();
        assert_eq!(refusal(&format!("x in ({})", list.join(", ")), CONDITION_MAX), None);
        assert!(refusal(&"1+".repeat(3_000), QUERY_MAX).unwrap().contains("3000 operators"));
        assert!(refusal(&" ".repeat(2 << 20), QUERY_MAX).unwrap().contains("longer than 1 MiB"));
    }
}
