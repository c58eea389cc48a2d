//! Conditions: `filter: { where: … }`, true or false of each row of a batch.

#[cfg(feature = "sql")]
use std::collections::BTreeMap;
#[cfg(feature = "sql")]
use std::sync::{Mutex, PoisonError};

#[cfg(feature = "sql")]
use crate::record::Relation;
use crate::record::{Batch, Id, KeyHasher};

/// A condition in SQL over the columns of a row.
pub struct Condition {
    sql: String,
    /// Compiled for the relations it was asked about.
    #[cfg(feature = "sql")]
    compiled: Mutex<BTreeMap<Relation, super::sql::Compiled>>,
}

impl Condition {
    /// Reads a condition, or says what is wrong with it. Its columns are looked up with the rows.
    #[cfg(feature = "sql")]
    pub fn new(sql: &str) -> Result<Condition, String> {
        super::sql::check_condition(sql)?;
        Ok(Condition { sql: sql.to_owned(), compiled: Mutex::default() })
    }

    /// Says that this program has no SQL.
    #[cfg(not(feature = "sql"))]
    pub fn new(sql: &str) -> Result<Condition, String> {
        let unused = Condition { sql: sql.to_owned() };
        Err(format!(
            "this amend was built without SQL, which `where: {}` needs: build it with `--features sql`",
            unused.sql
        ))
    }

    /// For each row whether it stays; where the condition is null, it does not.
    #[cfg(feature = "sql")]
    pub fn keep(&self, batch: &Batch) -> Result<Vec<bool>, String> {
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let expr = if let Some(expr) = compiled.get(&batch.relation()) {
            expr.clone()
        } else {
            let expr = super::sql::Compiled::new(&self.sql, batch.relation())?;
            compiled.insert(batch.relation(), expr.clone());
            expr
        };
        drop(compiled);
        expr.keep(batch.rows())
    }

    /// Never called: there is no condition without SQL.
    #[cfg(not(feature = "sql"))]
    pub fn keep(&self, _batch: &Batch) -> Result<Vec<bool>, String> {
        Err(format!("`{}` needs SQL", self.sql))
    }

    /// The hash of the condition.
    pub fn fingerprint(&self) -> Id {
        KeyHasher::new("amend/condition/1").text(&self.sql).id()
    }
}

#[cfg(all(test, feature = "sql"))]
mod tests {
    use super::*;
    use crate::query::testing::{batch, row};

    fn keep(sql: &str) -> Result<Vec<bool>, String> {
        Condition::new(sql)?.keep(&batch(&[row(1, "yes"), row(2, "certainly not"), row(3, "")]))
    }

    #[test]
    fn a_condition_sees_columns_and_the_text_of_conversations() {
        assert_eq!(keep("length(text(completion)) between 1 and 5"), Ok(vec![true, false, false]));
        assert_eq!(keep("model = 'assistant' and finish_reason <> 'length'"), Ok(vec![true; 3]));
    }

    #[test]
    fn a_row_whose_condition_is_null_does_not_stay() {
        assert_eq!(keep("category = 'x'"), Ok(vec![false; 3]));
    }

    #[test]
    fn a_condition_that_cannot_be_followed_says_why() {
        assert!(keep("lenght(model) > 3").unwrap_err().contains("lenght"));
        assert!(keep("modl = 'x'").unwrap_err().contains("modl"));
        assert!(keep("model =").unwrap_err().contains("model ="));
        assert!(keep("length(model)").unwrap_err().contains("true or false"));
        assert!(keep("random() < 0.5").unwrap_err().contains("random"));
        assert!(keep("now() is not null").unwrap_err().contains("now"));
    }
}
