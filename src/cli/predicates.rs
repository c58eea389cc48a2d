//! The conditions of `filter: where`, as the engine asks for them, by those of `query`.

use std::sync::Arc;

use crate::engine::run::Predicates;
use crate::operators::Predicate;
use crate::query::predicate::Condition;
use crate::record::{Batch, Id, Relation};

/// Conditions in SQL.
pub(super) struct SqlPredicates;

impl Predicates for SqlPredicates {
    fn predicate(&self, sql: &str, over: Relation) -> Result<Arc<dyn Predicate>, String> {
        Ok(Arc::new(Where(Condition::new(sql, over)?)))
    }
}

struct Where(Condition);

impl Predicate for Where {
    fn keep(&self, batch: &Batch) -> Result<Vec<bool>, String> {
        self.0.keep(batch)
    }

    fn fingerprint(&self) -> Id {
        self.0.fingerprint()
    }
}
