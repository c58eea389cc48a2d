//! SQL over the tables of a snapshot, by DataFusion: `amend query` and `filter: where`.
//!
//! Every node is a table under its name; `red.train` can be written with and without quotes. The
//! memo is the table `calls`. `text(messages)` is the text of a conversation. A query only reads.

use std::fmt;
use std::sync::{Arc, OnceLock};

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, StringArray};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, MemorySchemaProvider, Session, TableProvider};
use datafusion::common::{DFSchema, DataFusionError, TableReference};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::execution::context::SQLOptions;
use datafusion::logical_expr::{ColumnarValue, Expr, TableType, Volatility, create_udf};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::{SessionConfig, SessionContext};

use super::depth;
use super::shown::shown;
use super::{QueryError, Result};
use crate::record::{Kind, Relation};
use crate::store::{Memo, Snapshot, Store, StoreError};

/// The name of the memo's table.
const CALLS: &str = "calls";

/// What a query gave.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The columns.
    pub schema: SchemaRef,
    /// The rows.
    pub batches: Vec<RecordBatch>,
}

impl Answer {
    /// The rows as a table for people, in which nothing steers a terminal.
    pub fn table(&self) -> Result<String> {
        let text = |field: &FieldRef| Field::new(shown(field.name()), DataType::Utf8, true);
        let fields: Vec<Field> = self.schema.fields().iter().map(text).collect();
        let schema = Arc::new(Schema::new(fields));
        let mut batches = vec![RecordBatch::new_empty(Arc::clone(&schema))];
        for batch in &self.batches {
            let options = FormatOptions::default();
            let column = |column: &ArrayRef| -> Result<ArrayRef> {
                let formatter = ArrayFormatter::try_new(column, &options)?;
                let cell = |row| Ok(shown(&formatter.value(row).try_to_string()?).into_owned());
                let cells: Result<Vec<String>> = (0..column.len()).map(cell).collect();
                Ok(Arc::new(StringArray::from(cells?)))
            };
            let columns: Result<Vec<ArrayRef>> = batch.columns().iter().map(column).collect();
            let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
            batches.push(RecordBatch::try_new_with_options(Arc::clone(&schema), columns?, &rows)?);
        }
        Ok(arrow::util::pretty::pretty_format_batches(&batches)?.to_string())
    }
}

/// Asks a snapshot in SQL; before there is one, the memo alone.
pub fn query(store: &Store, snapshot: Option<Snapshot>, sql: &str) -> Result<Answer> {
    if let Some(refusal) = depth::refusal(sql, depth::QUERY_MAX) {
        return Err(QueryError::Sql(refusal));
    }
    depth::with_stack(|| ask(store, snapshot, sql)).map_err(QueryError::Sql)?
}

fn ask(store: &Store, snapshot: Option<Snapshot>, sql: &str) -> Result<Answer> {
    let memo = store.memo_read_only()?;
    let context = context();
    register(&context, snapshot, memo).map_err(said)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|error| QueryError::Sql(error.to_string()))?;
    let read_only =
        SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    runtime.block_on(async {
        let frame = context.sql_with_options(sql, read_only).await.map_err(said)?;
        let schema = Arc::clone(frame.schema().inner());
        Ok(Answer { schema, batches: frame.collect().await.map_err(said)? })
    })
}

/// A context with our functions. One partition, so that rows come in the order of the tables.
fn context() -> SessionContext {
    let config = SessionConfig::new().with_target_partitions(1).with_information_schema(true);
    let context = SessionContext::new_with_config(config);
    let messages = vec![Kind::Messages.data_type()];
    context.register_udf(create_udf(
        "text",
        messages,
        DataType::Utf8,
        Volatility::Immutable,
        Arc::new(|args: &[ColumnarValue]| {
            let array = args[0].to_array(1)?;
            let texts: ArrayRef = Arc::new(text(&array));
            Ok(ColumnarValue::Array(texts))
        }),
    ));
    context
}

/// The text of each conversation: its turns, a blank line between two.
fn text(conversations: &ArrayRef) -> StringArray {
    let of = |turns: ArrayRef| {
        let contents = Arc::clone(turns.as_struct().column(1));
        contents.as_string::<i32>().iter().flatten().collect::<Vec<_>>().join("\n\n")
    };
    conversations.as_list::<i32>().iter().map(|turns| turns.map(of)).collect()
}

/// What DataFusion says, without its own wrapping; an error of the store as itself.
fn said(error: DataFusionError) -> QueryError {
    let root = error.find_root();
    if let DataFusionError::External(source) = root
        && let Some(store) = source.downcast_ref::<StoreError>()
    {
        return QueryError::Store(store.clone());
    }
    let message = root.strip_backtrace();
    let prefixes =
        ["Error during planning: ", "Schema error: ", "SQL error: ", "Execution error: "];
    let plain = prefixes.iter().find_map(|prefix| message.strip_prefix(prefix));
    QueryError::Sql(plain.unwrap_or(&message).to_owned())
}

fn register(
    context: &SessionContext,
    snapshot: Option<Snapshot>,
    memo: Memo,
) -> datafusion::common::Result<()> {
    if let Some(snapshot) = snapshot.map(Arc::new) {
        register_nodes(context, &snapshot)?;
    }
    if !context.table_exist(CALLS)? {
        let schema = Memo::scan_schema(None).map_err(external)?;
        register_as(context, CALLS, Arc::new(CallRows { memo, schema }))?;
    }
    Ok(())
}

fn register_nodes(
    context: &SessionContext,
    snapshot: &Arc<Snapshot>,
) -> datafusion::common::Result<()> {
    let nodes = &snapshot.manifest().nodes;
    let relation_of = |name: &String| nodes[name].table.relation;
    for name in nodes.keys() {
        let rows = Rows::of(snapshot, vec![name.clone()], relation_of(name));
        register_as(context, name, Arc::new(rows))?;
    }
    // Those tables are there even when no node has such rows.
    for relation in [Relation::Rejects, Relation::Metrics, Relation::Checkpoints] {
        if !nodes.contains_key(relation.name()) {
            let names = nodes.keys().filter(|name| relation_of(name) == relation).cloned();
            let rows = Rows::of(snapshot, names.collect(), relation);
            register_as(context, relation.name(), Arc::new(rows))?;
        }
    }
    Ok(())
}

/// Registers a table so that its name can be written as in the pipeline: quoted, or `node.part` as
/// a table of a schema. Names that are not quoted are read in lower case.
fn register_as(
    context: &SessionContext,
    name: &str,
    table: Arc<dyn TableProvider>,
) -> datafusion::common::Result<()> {
    context.register_table(TableReference::bare(name), Arc::clone(&table))?;
    let lower = name.to_lowercase();
    if lower != name && !context.table_exist(TableReference::bare(lower.as_str()))? {
        context.register_table(TableReference::bare(lower.as_str()), Arc::clone(&table))?;
    }
    if let Some((node, part)) = lower.split_once('.') {
        let catalog = catalog(context);
        if catalog.schema(node).is_none() {
            catalog.register_schema(node, Arc::new(MemorySchemaProvider::new()))?;
        }
        context.register_table(TableReference::partial(node, part), table)?;
    }
    Ok(())
}

fn catalog(context: &SessionContext) -> Arc<dyn CatalogProvider> {
    context.catalog("datafusion").expect("it is the default catalog")
}

fn external(error: StoreError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// The rows of nodes of one relation. Read when asked, with the columns asked for.
struct Rows {
    snapshot: Arc<Snapshot>,
    nodes: Vec<String>,
    schema: SchemaRef,
}

impl Rows {
    fn of(snapshot: &Arc<Snapshot>, nodes: Vec<String>, relation: Relation) -> Rows {
        Rows { snapshot: Arc::clone(snapshot), nodes, schema: relation.schema() }
    }
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows").field("nodes", &self.nodes).finish_non_exhaustive()
    }
}

#[async_trait]
impl TableProvider for Rows {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> datafusion::common::Result<Arc<dyn ExecutionPlan>> {
        let columns = columns(&self.schema, projection);
        let mut batches = Vec::new();
        for node in &self.nodes {
            // Without a column there would be no rows to count.
            let names = if columns.is_empty() { &["row_id"][..] } else { &columns[..] };
            batches.extend(self.snapshot.read_table(node, Some(names)).map_err(external)?);
        }
        plan(&self.schema, projection, &columns, &batches)
    }
}

/// The memo as a table.
struct CallRows {
    memo: Memo,
    schema: SchemaRef,
}

impl fmt::Debug for CallRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallRows").finish_non_exhaustive()
    }
}

#[async_trait]
impl TableProvider for CallRows {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> datafusion::common::Result<Arc<dyn ExecutionPlan>> {
        let columns = columns(&self.schema, projection);
        let names = if columns.is_empty() { &["call_key"][..] } else { &columns[..] };
        let batches = self.memo.scan(Some(names)).collect::<std::result::Result<Vec<_>, _>>();
        plan(&self.schema, projection, &columns, &batches.map_err(external)?)
    }
}

/// The names of the columns wanted.
fn columns<'a>(schema: &'a SchemaRef, projection: Option<&Vec<usize>>) -> Vec<&'a str> {
    let all = (0..schema.fields().len()).collect();
    projection.unwrap_or(&all).iter().map(|at| schema.field(*at).name().as_str()).collect()
}

/// A plan that gives the batches with the columns wanted, in their order.
fn plan(
    schema: &SchemaRef,
    projection: Option<&Vec<usize>>,
    columns: &[&str],
    batches: &[RecordBatch],
) -> datafusion::common::Result<Arc<dyn ExecutionPlan>> {
    let schema = match projection {
        Some(projection) => Arc::new(schema.project(projection)?),
        None => Arc::clone(schema),
    };
    let shaped = |batch: &RecordBatch| {
        let own = batch.schema();
        let at = columns
            .iter()
            .map(|name| own.index_of(name))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        batch.project(&at)?.with_schema(Arc::clone(&schema))
    };
    let shaped = batches.iter().map(shaped).collect::<std::result::Result<Vec<_>, _>>()?;
    Ok(MemorySourceConfig::try_new_exec(&[shaped], Arc::clone(&schema), None)?)
}

/// Conditions share a context: making one registers hundreds of functions.
fn shared() -> &'static SessionContext {
    static CONTEXT: OnceLock<SessionContext> = OnceLock::new();
    CONTEXT.get_or_init(context)
}

/// A condition over the columns of a relation.
pub(super) struct Compiled(Arc<dyn PhysicalExpr>);

impl Compiled {
    /// Compiles a condition, or says why it cannot be one.
    pub(super) fn new(sql: &str, relation: Relation) -> std::result::Result<Compiled, String> {
        if let Some(refusal) = depth::refusal(sql, depth::CONDITION_MAX) {
            return Err(refusal);
        }
        depth::with_stack(|| Compiled::of(sql, relation))?
    }

    fn of(sql: &str, relation: Relation) -> std::result::Result<Compiled, String> {
        let wrong = |error: DataFusionError| {
            let hint = "a conversation's text is `text(completion)`";
            let why = said(error).to_string().replace('\n', " ");
            format!("`{sql}` does not fit {relation}: {why}; {hint}")
        };
        let arrow = relation.schema();
        let schema = DFSchema::try_from(arrow.as_ref().clone()).map_err(wrong)?;
        let expr = shared().parse_sql_expr(sql, &schema).map_err(wrong)?;
        if let Some(function) = unstable(&expr) {
            return Err(format!(
                "`{sql}` uses {function}(), whose answer is another one in the next run: use what the row says"
            ));
        }
        let expr = shared().create_physical_expr(expr, &schema).map_err(wrong)?;
        match expr.data_type(&arrow).map_err(wrong)? {
            DataType::Boolean | DataType::Null => Ok(Compiled(expr)),
            other => Err(format!("`{sql}` is {other}, where a condition is true or false")),
        }
    }

    /// For each row whether it is true.
    pub(super) fn keep(&self, rows: &RecordBatch) -> std::result::Result<Vec<bool>, String> {
        let array = self.0.evaluate(rows).and_then(|value| value.into_array(rows.num_rows()));
        let array = array.map_err(|error| said(error).to_string())?;
        let Some(kept): Option<&BooleanArray> = array.as_boolean_opt() else {
            return Ok(vec![false; rows.num_rows()]);
        };
        Ok(kept.iter().map(|kept| kept == Some(true)).collect())
    }
}

/// The first function in an expression that is no function of its arguments.
fn unstable(expr: &Expr) -> Option<String> {
    use datafusion::common::tree_node::TreeNode;

    let mut found = None;
    let seen = expr.exists(|expr| {
        if let Expr::ScalarFunction(call) = expr
            && call.func.signature().volatility != Volatility::Immutable
        {
            found = Some(call.func.name().to_owned());
        }
        Ok(found.is_some())
    });
    seen.expect("looking at an expression does not fail");
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::testing::{Lab, row};

    fn ask(lab: &Lab, sql: &str) -> Result<String> {
        let reader = lab.reader();
        query(&reader.store, Some(reader.snapshot("latest")?), sql)?.table()
    }

    fn lab() -> Lab {
        let lab = Lab::new();
        lab.commit(&[
            ("drafts", &[row(1, "a"), row(2, "b")]),
            ("red.train", &[row(3, "c")]),
            ("Upper", &[row(4, "d")]),
        ]);
        lab.remember(7, r#"{"prompt":"say it"}"#, "said");
        lab
    }

    #[test]
    fn every_node_is_a_table_and_so_are_calls_and_rejects() {
        let sql = "select (select count(*) from drafts) as drafts,
            (select count(*) from red.train) as bare, (select count(*) from \"red.train\") as quoted,
            (select count(*) from Upper) as upper, (select count(*) from rejects) as rejects,
            (select answer from calls) as said";
        insta::assert_snapshot!(ask(&lab(), sql).unwrap(), @r"
        +--------+------+--------+-------+---------+------+
        | drafts | bare | quoted | upper | rejects | said |
        +--------+------+--------+-------+---------+------+
        | 2      | 1    | 1      | 1     | 0       | said |
        +--------+------+--------+-------+---------+------+
        ");
    }

    #[test]
    fn columns_come_in_the_order_asked_for() {
        let sql = "select text(completion) as said, model, sample_index from drafts order by 1";
        insta::assert_snapshot!(ask(&lab(), sql).unwrap(), @r"
        +------+-----------+--------------+
        | said | model     | sample_index |
        +------+-----------+--------------+
        | a    | assistant | 0            |
        | b    | assistant | 0            |
        +------+-----------+--------------+
        ");
    }

    #[test]
    fn no_row_still_has_its_head() {
        let sql = "select node, reason from rejects";
        insta::assert_snapshot!(ask(&lab(), sql).unwrap(), @r"
        +------+--------+
        | node | reason |
        +------+--------+
        +------+--------+
        ");
    }

    #[test]
    fn a_query_only_reads_and_says_what_it_does_not_know() {
        for sql in ["create table x as select 1", "copy drafts to 'x.csv'", "drop table drafts"] {
            assert!(ask(&lab(), sql).is_err(), "{sql}");
        }
        let error = ask(&lab(), "select * from draft").unwrap_err().to_string();
        assert!(error.contains("draft"), "{error}");
        let error = ask(&lab(), "select promt from drafts").unwrap_err().to_string();
        assert!(error.contains("promt") && error.contains("prompt"), "{error}");
    }

    #[test]
    fn sql_that_nests_deep_is_refused_and_what_may_nest_is_answered() {
        let lab = lab();
        let chain = |links: usize, link: &str| format!("select 1{}", link.repeat(links));
        for (link, most) in [("+1", 600), (" union all select 1", 60), (" or true", 600)] {
            let within = chain(most, link).replace("select 1 or", "select true or");
            assert!(ask(&lab, &within).is_ok(), "{most} of {link}");
            let error = ask(&lab, &chain(100_000, link)).unwrap_err().to_string();
            assert!(error.contains("nest too deep") || error.contains("longer"), "{error}");
        }
        let brackets = format!("select {}1{}", "(".repeat(1500), ")".repeat(1500));
        assert!(ask(&lab, &brackets).is_err(), "the parser has a bound of its own");
        let condition =
            |links: usize| format!("sample_index = 0{}", " or sample_index = 1".repeat(links));
        let compiled = Compiled::new(&condition(240), Relation::Responses).unwrap();
        // As in a thread of the dataflow, which has the usual stack.
        let rows = RecordBatch::new_empty(Relation::Responses.schema());
        let computed = std::thread::spawn(move || compiled.keep(&rows));
        assert_eq!(computed.join().unwrap(), Ok(Vec::new()));
        let error = Compiled::new(&condition(400), Relation::Responses).err().unwrap();
        assert!(error.contains("nest too deep"), "{error}");
    }

    #[test]
    fn nothing_in_a_table_for_people_steers_the_terminal() {
        let sql = "select 'a' || chr(27) || '[31m' || chr(13) as said";
        insta::assert_snapshot!(ask(&lab(), sql).unwrap(), @r"
        +-------------+
        | said        |
        +-------------+
        | a\x1b[31m\r |
        +-------------+
        ");
    }
}
