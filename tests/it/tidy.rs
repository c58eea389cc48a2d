//! The shape of the tree, held by a test: who may name whom, and how a file begins and ends.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// The folders of `src` in the order in which data goes through them, each with those it may name.
const LAYERS: &[(&str, &[&str])] = &[
    ("record", &[]),
    ("spec", &["record"]),
    ("plan", &["record", "spec"]),
    ("model", &["record"]),
    ("operators", &["record", "spec", "model"]),
    ("store", &["record", "model"]),
    ("engine", &["record", "spec", "plan", "model", "operators", "store"]),
    ("query", &["record", "store"]),
    ("cli", &["record", "spec", "plan", "model", "operators", "store", "engine", "query"]),
];

/// The crates that only some folders name, so that one can be replaced by editing one folder.
const OWNED: &[(&str, &[&str])] = &[
    ("amend_autograd", &["model"]),
    ("amend_kernels", &["model"]),
    ("anyhow", &["cli"]),
    ("axum", &["cli"]),
    ("clap", &["cli"]),
    ("datafusion", &["query"]),
    ("differential_dataflow", &["engine"]),
    ("hyper", &["cli"]),
    ("hyper_util", &["cli"]),
    ("indicatif", &["cli"]),
    ("miette", &["spec", "cli"]),
    ("minijinja", &["operators", "model"]),
    ("minijinja_contrib", &["operators", "model"]),
    ("object_store", &["store"]),
    ("parquet", &["record", "store"]),
    ("reqwest", &["model"]),
    ("safetensors", &["model"]),
    ("schemars", &["spec"]),
    ("serde_yaml", &["spec"]),
    ("tch", &["model"]),
    ("timely", &["engine"]),
    ("tokenizers", &["model"]),
    ("tracing_subscriber", &["cli"]),
];

/// No file is longer, its trailing `mod tests` not counted.
const LINES_MAX: usize = 500;

#[test]
fn layers_name_only_those_before_them() {
    let mut faults = String::new();
    for (path, text) in sources("src") {
        let Some(layer) = layer_of(&path) else { continue };
        let Some((_, may_name)) = LAYERS.iter().find(|(name, _)| *name == layer) else {
            let _ = writeln!(faults, "{}: {layer:?} is in no layer of this test", path.display());
            continue;
        };
        for (line, named) in crate_paths(&text) {
            let is_layer = LAYERS.iter().any(|(name, _)| *name == named);
            if is_layer && named != layer && !may_name.contains(&named.as_str()) {
                let _ = writeln!(faults, "{}:{line}: {layer} names {named}", path.display());
            }
        }
    }
    assert!(faults.is_empty(), "a layer names one that is not below it:\n{faults}");
}

#[test]
fn heavy_crates_are_named_in_their_own_folder_alone() {
    let mut faults = String::new();
    for (path, text) in sources("src") {
        let layer = layer_of(&path).unwrap_or_else(|| "lib.rs".into());
        for (line, named) in foreign_crates(&text) {
            let owner = OWNED.iter().find(|(name, _)| *name == named);
            if let Some((_, layers)) = owner.filter(|(_, layers)| !layers.contains(&layer.as_str()))
            {
                let _ = writeln!(
                    faults,
                    "{}:{line}: {named} is named by {layers:?} alone",
                    path.display()
                );
            }
        }
    }
    assert!(faults.is_empty(), "a crate is named outside its folder:\n{faults}");
}

#[test]
fn lib_declares_the_layers_in_their_order() {
    let text = fs::read_to_string(root().join("src/lib.rs")).expect("the library has a root");
    let declared: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ").or_else(|| line.strip_prefix("mod ")))
        .filter_map(|line| line.strip_suffix(';'))
        .collect();
    let expected: Vec<&str> =
        LAYERS.iter().map(|(name, _)| *name).filter(|name| declared.contains(name)).collect();
    assert_eq!(declared, expected, "src/lib.rs declares the folders of LAYERS, in that order");
}

#[test]
fn every_file_begins_with_a_sentence_that_says_what_it_holds() {
    let mut faults = String::new();
    for (path, text) in ["src", "tests", "benches"].into_iter().flat_map(sources) {
        let header: Vec<&str> =
            text.lines().map_while(|line| line.strip_prefix("//! ")).map(str::trim).collect();
        if !header.last().is_some_and(|line| line.ends_with(['.', ':', '?'])) {
            let _ = writeln!(faults, "{}", path.display());
        }
    }
    assert!(faults.is_empty(), "these begin with no `//!` sentence:\n{faults}");
}

#[test]
fn no_file_is_long() {
    let mut faults = String::new();
    for (path, text) in sources("src") {
        let lines = lines_before_tests(&text);
        if lines > LINES_MAX {
            let _ = writeln!(faults, "{}: {lines} lines", path.display());
        }
    }
    assert!(
        faults.is_empty(),
        "these have more than {LINES_MAX} lines before their tests:\n{faults}"
    );
}

#[test]
fn only_code_names_a_layer() {
    let text = r##"
        //! See [`crate::cli`] and tch::Tensor.
        use crate::{record::{Batch, key}, spec, plan as steps};
        const NOTE: &str = "crate::engine"; /* crate::query /* timely::x */ */
        fn f(c: char) -> bool { c == '"' && crate::store::open(r#"crate::model "quoted" "#) }
    "##;
    let named: Vec<String> = crate_paths(text).into_iter().map(|(_, name)| name).collect();
    assert_eq!(named, ["record", "spec", "plan", "store"]);
    let begun: Vec<String> = foreign_crates(text).into_iter().map(|(_, name)| name).collect();
    assert_eq!(begun, ["record"], "inside a `use` tree too, a name may begin a path");
}

#[test]
fn a_crate_is_named_by_a_path_or_a_use() {
    let text = "use tch;\nuse parquet::arrow;\nlet x: ::timely::X = arrow::parquet::y(clap);\n\
                #[derive(schemars::JsonSchema)]\nmod miette {}";
    let named = foreign_crates(text);
    let expected = [(1, "tch"), (2, "parquet"), (3, "timely"), (3, "arrow"), (4, "schemars")];
    assert_eq!(named, expected.map(|(line, name)| (line, name.to_owned())));
}

/// Every Rust file under a folder of the checkout, with its path there and its text, sorted.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.expect("a folder of the checkout can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file is UTF-8");
                let path = path.strip_prefix(root()).expect("it lies in the checkout").to_owned();
                found.push((path, text));
            }
        }
    }
    found.sort();
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The layer that a file under `src` belongs to: its folder; none for the root of the library.
fn layer_of(path: &Path) -> Option<String> {
    let inside = path.strip_prefix("src").expect("a source of the library");
    let first = Path::new(inside.iter().next().expect("a file has a name"));
    match first.file_stem().and_then(|stem| stem.to_str()).expect("a name is UTF-8") {
        "lib" => None,
        "main" => Some("cli".into()),
        layer => Some(layer.into()),
    }
}

fn lines_before_tests(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    lines
        .windows(2)
        .position(|pair| pair[0] == "#[cfg(test)]" && pair[1] == "mod tests {")
        .unwrap_or(lines.len())
}

/// The modules of this crate that a file names, in `crate::a`, `amend::a` and `crate::{a, b::c}`.
fn crate_paths(text: &str) -> Vec<(usize, String)> {
    let tokens = tokens(text);
    let mut named = Vec::new();
    for (at, (_, token)) in tokens.iter().enumerate() {
        let begins =
            matches!(token.as_str(), "crate" | "amend") && text_at(&tokens, at + 1) == "::";
        if !begins {
            continue;
        }
        if text_at(&tokens, at + 2) != "{" {
            named.extend(tokens.get(at + 2).cloned());
            continue;
        }
        let mut depth = 1;
        for after in at + 3.. {
            match text_at(&tokens, after) {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ if depth == 1 && matches!(text_at(&tokens, after - 1), "{" | ",") => {
                    named.push(tokens[after].clone());
                }
                _ => {}
            }
            if depth == 0 || after == tokens.len() {
                break;
            }
        }
    }
    named
}

/// The names at which a path to something outside this module may begin: `a` of `a::b` and `use a`.
fn foreign_crates(text: &str) -> Vec<(usize, String)> {
    let tokens = tokens(text);
    let is_name =
        |at: usize| text_at(&tokens, at).starts_with(|c: char| c.is_alphabetic() || c == '_');
    let is_keyword =
        |at| matches!(text_at(&tokens, at), "crate" | "self" | "super" | "Self" | "amend" | "std");
    (0..tokens.len())
        .filter(|&at| is_name(at) && !is_keyword(at))
        .filter(|&at| {
            text_at(&tokens, at + 1) == "::" || at > 0 && text_at(&tokens, at - 1) == "use"
        })
        .filter(|&at| at == 0 || text_at(&tokens, at - 1) != "::" || at == 1 || !is_name(at - 2))
        .map(|at| tokens[at].clone())
        .collect()
}

fn text_at(tokens: &[(usize, String)], at: usize) -> &str {
    tokens.get(at).map_or("", |(_, token)| token)
}

/// The names, `::` and signs of a Rust text with their lines, without comments and literals.
fn tokens(text: &str) -> Vec<(usize, String)> {
    let pattern = r#"(?sx)
        //[^\n]* | /\*(?:[^*/]|\*[^/]|/[^*]|/\*(?:[^*]|\*[^/])*\*/)*\*/      # Comments, nested once.
        | b?r\#\#".*?"\#\# | b?r\#".*?"\# | b?r"[^"]*" | b?"(?:\\.|[^"\\])*"   # Strings.
        | b?'(?:\\[^\n]{1,10}?|[^\\'\n])'                                   # Characters.
        | '\w+                                                              # Lifetimes.
        | (?<token>\w+ | :: | \S)"#;
    let pattern = regex::Regex::new(pattern).expect("the pattern is one");
    let (mut line, mut counted) = (1, 0);
    let mut tokens = Vec::new();
    for found in pattern.captures_iter(text) {
        if let Some(token) = found.name("token") {
            line += text[counted..token.start()].matches('\n').count();
            counted = token.start();
            tokens.push((line, token.as_str().to_owned()));
        }
    }
    tokens
}
