//! `spec`: the YAML language, every value with its place in the file, and what is said about mistakes.
//!
//! [`load`] reads a pipeline and its constitution into [`Pipeline`] and [`Constitution`], or gives all [`Mistakes`]
//! at once. The verbs are on one page: [`op`].
//!
//! ```text
//! text ──tree──▶ Tree ──overrides, variables──▶ Tree ──decode──▶ Pipeline ──names, checks──▶ Loaded
//!                 every step adds to the same Mistakes and goes on
//! ```
//!
//! A file is parsed once into a tree that keeps places; the tree is read into the types through serde, again after
//! each mistake without what was wrong, so that nothing hides behind anything.

pub mod constitution;
pub mod hub;
pub mod import;
pub mod model;
pub mod op;
pub mod pipeline;
pub mod schema;

mod checks;
mod decode;
mod fault;
mod hole;
mod load;
mod mistake;
mod names;
mod overrides;
mod place;
mod secrets;
mod selector;
#[cfg(test)]
mod tests;
mod tree;
mod variables;

pub use constitution::{Constitution, Examples, JudgeExample, Principle, Purpose, Stage};
pub use load::{Loaded, load, load_constitution, load_partly, parse_constitution, parse_pipeline};
pub use mistake::{Mistake, Mistakes, SourceFile, did_you_mean};
pub use model::{Backend, Model, Secret};
pub use op::Op;
pub use pipeline::{Budget, Limits, Pipeline};
pub use place::{FilePath, Name, Place, Spanned};
pub use selector::{Selector, Tags};
pub use variables::Environment;
