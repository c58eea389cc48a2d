//! The command line as written: flags and subcommands.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::spec::model::{Device, Dtype};

/// A declarative dataflow engine for Constitutional AI.
///
/// Exit codes: 0 done, 1 failed, 2 usage or a mistake in a file, 3 done with rejects, 75 store
/// locked, 130 interrupted (run again to resume).
#[derive(Debug, Parser)]
#[command(name = "amend", version, propagate_version = true, max_term_width = 100)]
pub(super) struct Cli {
    /// Flags of every subcommand.
    #[command(flatten)]
    pub(super) common: Common,
    /// What to do.
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Flags of every subcommand.
#[derive(Clone, Debug, Args)]
pub(super) struct Common {
    /// Directory of the store [default: .amend beside the pipeline]
    #[arg(long, global = true, value_name = "DIR", env = "AMEND_STORE")]
    pub(super) store: Option<PathBuf>,
    /// Sets a value of the pipeline, such as nodes.sl.train-sl.epochs=2; may be repeated
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    pub(super) sets: Vec<String>,
    /// Worker threads of the dataflow
    #[arg(long, global = true, value_name = "N", default_value_t = 1, value_parser = workers)]
    pub(super) workers: usize,
    /// What to print on stdout: text or json; for `query` also csv; for `import` a file
    #[arg(
        short = 'o',
        long = "output",
        global = true,
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub(super) output: Output,
    /// Says errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(super) quiet: bool,
    /// Says more; twice, much more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(super) verbose: u8,
    /// When to use colour
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(super) color: ColorWhen,
}

/// What is printed on stdout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// For people.
    Text,
    /// One JSON document.
    Json,
    /// Comma-separated values.
    Csv,
    /// A file, where a subcommand writes one.
    File(PathBuf),
}

impl FromStr for Output {
    type Err = String;

    fn from_str(text: &str) -> Result<Output, String> {
        Ok(match text {
            "" => return Err("it is empty".to_owned()),
            "text" => Output::Text,
            "json" => Output::Json,
            "csv" => Output::Csv,
            path => Output::File(PathBuf::from(path)),
        })
    }
}

/// When colour is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ColorWhen {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The most worker threads: each holds a part of every node, and above the cores none makes it faster.
const WORKERS: usize = 256;

fn workers(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(workers @ 1..=WORKERS) => Ok(workers),
        _ => Err(format!(
            "it is a number from 1 to {WORKERS}; more than there are cores make nothing faster"
        )),
    }
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Says what is wrong with a pipeline, its constitution and what they name
    Check(File),
    /// Says what a run would do and cost, before a token is spent
    Plan(PlanArgs),
    /// Brings every table of a pipeline up to date
    Run(RunArgs),
    /// Asks the tables of a snapshot in SQL
    Query(QueryArgs),
    /// Lists the snapshots of a pipeline
    Log(LogArgs),
    /// Says how the rows of two snapshots differ
    Diff(DiffArgs),
    /// Says where a row comes from: its principle, its calls, its parents
    Explain(ExplainArgs),
    /// Looks at every byte of a store, says what is damaged and puts in order what it can
    Verify(VerifyArgs),
    /// Draws the nodes of a pipeline as Mermaid
    Graph(File),
    /// Prints the JSON Schema of a file, or the columns of the relations
    Schema(SchemaArgs),
    /// Reads a published constitution and writes it as ours
    Import(ImportArgs),
    /// Talks with a local model, for a first look
    Chat(ChatArgs),
    /// Serves a local model to other tools, by the interface of OpenAI
    Serve(ServeArgs),
}

/// A pipeline file.
#[derive(Debug, Args)]
pub(super) struct File {
    /// The pipeline file
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
}

/// How far and at what price.
#[derive(Debug, Args)]
pub(super) struct Limits {
    /// Runs only this node and what it needs, and publishes nothing: the calls are remembered
    #[arg(long, value_name = "NODE")]
    pub(super) until: Option<String>,
    /// Keeps the checkpoint of this node although its data changed; may be repeated
    #[arg(long, value_name = "NODE")]
    pub(super) hold: Vec<String>,
    /// Asks again what failed for good
    #[arg(long)]
    pub(super) retry_rejects: bool,
}

/// Arguments of `plan`.
#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// The pipeline.
    #[command(flatten)]
    pub(super) file: File,
    /// How far.
    #[command(flatten)]
    pub(super) limits: Limits,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The pipeline.
    #[command(flatten)]
    pub(super) file: File,
    /// How far.
    #[command(flatten)]
    pub(super) limits: Limits,
    /// Stops before more requests than this are charged for: each of a vote counts, and each failed
    /// attempt that a server answered or may have
    #[arg(long, value_name = "N")]
    pub(super) max_calls: Option<u64>,
    /// Stops before more US dollars than this are spent
    #[arg(long, value_name = "USD", value_parser = usd)]
    pub(super) max_cost: Option<f64>,
    /// Follows a plan that `amend plan -o json` wrote: refuses if files or snapshot moved since
    #[arg(long, value_name = "PLAN.json")]
    pub(super) plan: Option<PathBuf>,
    /// Writes what trainings log to event files of TensorBoard: a folder a node, in DIR/PIPELINE
    #[arg(long, value_name = "DIR")]
    pub(super) tensorboard: Option<PathBuf>,
}

fn usd(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(usd) if usd.is_finite() && usd >= 0.0 => Ok(usd),
        _ => Err("it is a sum of US dollars, such as 2.50".to_owned()),
    }
}

/// Which pipeline of a store is read.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// The pipeline: its name or its file [default: the only one in the store]
    #[arg(short, long, value_name = "NAME|FILE")]
    pub(super) pipeline: Option<String>,
}

/// Arguments of `query`.
#[derive(Debug, Args)]
pub(super) struct QueryArgs {
    /// The query; every node is a table, and so are calls, rejects, metrics and checkpoints
    #[arg(value_name = "SQL")]
    pub(super) sql: String,
    /// The snapshot: its number, `latest`, or `latest~1`
    #[arg(long, value_name = "N", default_value = "latest")]
    pub(super) at: String,
    /// Which pipeline.
    #[command(flatten)]
    pub(super) which: Which,
}

/// Arguments of `log`.
#[derive(Debug, Args)]
pub(super) struct LogArgs {
    /// Lists at most so many, the last ones
    #[arg(short = 'n', long, value_name = "N")]
    pub(super) limit: Option<usize>,
    /// Which pipeline.
    #[command(flatten)]
    pub(super) which: Which,
}

/// Arguments of `diff`.
#[derive(Debug, Args)]
pub(super) struct DiffArgs {
    /// The snapshot before: its number, `latest`, or `latest~1`
    #[arg(value_name = "A", default_value = "latest~1")]
    pub(super) from: String,
    /// The snapshot after
    #[arg(value_name = "B", default_value = "latest")]
    pub(super) to: String,
    /// Only this node
    #[arg(value_name = "NODE")]
    pub(super) node: Option<String>,
    /// Shows the rows, before and after
    #[arg(long)]
    pub(super) rows: bool,
    /// Shows at most so many rows of a node [default: all as JSON, 20 as text]
    #[arg(long, value_name = "N", requires = "rows")]
    pub(super) limit: Option<usize>,
    /// Which pipeline.
    #[command(flatten)]
    pub(super) which: Which,
}

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// The row: NODE/ROW or ROW; a prefix of its id is enough if it is the only one
    #[arg(value_name = "ROW")]
    pub(super) row: String,
    /// The snapshot: its number, `latest`, or `latest~1`
    #[arg(long, value_name = "N", default_value = "latest")]
    pub(super) at: String,
    /// Which pipeline.
    #[command(flatten)]
    pub(super) which: Which,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// The store of this pipeline; the pipelines beside it in the store are looked at as well.
    #[command(flatten)]
    pub(super) which: Which,
}

/// Arguments of `schema`.
#[derive(Debug, Args)]
pub(super) struct SchemaArgs {
    /// Of what
    #[arg(value_name = "WHAT", default_value = "pipeline")]
    pub(super) of: SchemaOf,
}

/// What there are schemas of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum SchemaOf {
    /// The pipeline file.
    Pipeline,
    /// The constitution file.
    Constitution,
    /// The tables: each relation's columns.
    Relations,
}

/// Arguments of `import`.
#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// A published file, or a folder of them; -o names the file to write
    #[arg(value_name = "PATH")]
    pub(super) path: PathBuf,
    /// Writes over a file that is there
    #[arg(long)]
    pub(super) force: bool,
}

/// Which local model, and how it runs.
#[derive(Debug, Args)]
pub(super) struct ModelArgs {
    /// The model: a directory in Hugging Face layout, or a node that trained one
    #[arg(value_name = "NODE|DIR")]
    pub(super) model: String,
    /// The snapshot of the node: its number, `latest`, or `latest~1`
    #[arg(long, value_name = "N", default_value = "latest")]
    pub(super) at: String,
    /// Where it runs: auto, cpu, cuda or cuda:1
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub(super) device: Device,
    /// Number format of weights and activations: auto, f32 or bf16
    #[arg(long, value_name = "DTYPE", default_value = "auto", value_parser = dtype)]
    pub(super) dtype: Dtype,
    /// Threads inside one tensor operation on CPU
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(super) threads: Option<u32>,
    /// Replicas on CPU, each at work on answers of its own [default: one for each core, at most 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(super) replicas: Option<u32>,
    /// Mebibytes that keys and values take, about [default: 2048]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) cache_mib: Option<u32>,
    /// Which pipeline.
    #[command(flatten)]
    pub(super) which: Which,
}

fn dtype(text: &str) -> Result<Dtype, String> {
    match text {
        "auto" => Ok(Dtype::Auto),
        "f32" => Ok(Dtype::F32),
        "bf16" => Ok(Dtype::Bf16),
        _ => Err("it is auto, f32 or bf16".to_owned()),
    }
}

/// Arguments of `chat`.
#[derive(Debug, Args)]
pub(super) struct ChatArgs {
    /// The model.
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// What the model is told first
    #[arg(long, value_name = "TEXT")]
    pub(super) system: Option<String>,
    /// Temperature; 0 is greedy [default: as the checkpoint says, or 1]
    #[arg(long, value_name = "T")]
    pub(super) temperature: Option<f64>,
    /// Tokens after which an answer is cut
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(super) max_tokens: u32,
    /// Seed of the first answer; each further one has the next
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,
}

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// The model.
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// The address to listen at; other than this machine's own only with a token
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub(super) host: IpAddr,
    /// The port; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    pub(super) port: u16,
    /// The token that clients must send
    #[arg(long, value_name = "TOKEN", env = "AMEND_API_KEY", hide_env_values = true)]
    pub(super) api_key: Option<String>,
    /// What the model is called [default: the node's or the directory's name]
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_flags_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn common_flags_stand_before_or_after_the_subcommand() {
        let before = Cli::parse_from(["amend", "-o", "json", "--workers", "2", "plan", "p.yaml"]);
        let after = Cli::parse_from(["amend", "plan", "p.yaml", "-o", "json", "--workers", "2"]);
        for cli in [before, after] {
            assert_eq!((cli.common.output, cli.common.workers), (Output::Json, 2));
        }
    }
}
