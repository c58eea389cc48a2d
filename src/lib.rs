//! amend: a declarative dataflow engine for Constitutional AI.
