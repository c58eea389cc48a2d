//! Conditions: `filter: { where: … }`, true or false of each row of a batch.

use crate::record::{Batch, Id, KeyHasher, Relation};

/// A condition in SQL over the columns of a relation.
pub struct Condition {
    sql: String,
    #[cfg(feature = "sql")]
    compiled: super::sql::Compiled,
}

impl Condition {
    /// Reads a condition over rows of a relation, or says what is wrong with it.
    #[cfg(feature = "sql")]
    pub fn new(sql: &str, over: Relation) -> Result<Condition, String> {
        let compiled = super::sql::Compiled::new(sql, over)?;
        Ok(Condition { sql: sql.to_owned(), compiled })
    }

    /// Says that this program has no SQL.
    #[cfg(not(feature = "sql"))]
    pub fn new(_sql: &str, _over: Relation) -> Result<Condition, String> {
        Err("`where` needs SQL, which this amend was built without: build it with `--features sql`"
            .to_owned())
    }

    /// For each row whether it stays; where the condition is null, it does not.
    #[cfg(feature = "sql")]
    pub fn keep(&self, batch: &Batch) -> Result<Vec<bool>, String> {
        self.compiled.keep(batch.rows())
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
        let rows = batch(&[row(1, "yes"), row(2, "certainly not"), row(3, "")]);
        Condition::new(sql, Relation::Responses)?.keep(&rows)
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
        assert!(keep("length(completion) > 3").unwrap_err().contains("text(completion)"));
    }
}
