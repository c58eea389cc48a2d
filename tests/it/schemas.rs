//! `schemas/` is what the code says; `UPDATE=1 cargo test --test it schemas` writes it anew.

use std::fs;
use std::path::Path;

use amend::record::Relation;
use amend::spec::schema;
use serde_json::Value;

/// Compares a file of `schemas/` with what it should say, or writes it.
fn check(name: &str, document: &Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas").join(name);
    let text = format!("{}\n", serde_json::to_string_pretty(document).expect("it is JSON"));
    if std::env::var_os("UPDATE").is_some() {
        fs::create_dir_all(path.parent().expect("it is in a folder"))
            .expect("the checkout can be written");
        fs::write(&path, text).expect("the checkout can be written");
        return;
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == text, "schemas/{name} is stale: run `UPDATE=1 cargo test --test it schemas`");
}

#[test]
fn the_schemas_of_the_files_are_what_the_code_says() {
    check("pipeline.schema.json", &schema::pipeline());
    check("constitution.schema.json", &schema::constitution());
}

#[test]
fn the_relations_are_what_the_code_says() {
    for relation in Relation::ALL {
        check(&format!("relations/{relation}.json"), &relation.describe());
    }
}

#[test]
fn a_file_of_schemas_stands_for_a_relation() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/relations");
    let mut found: Vec<String> = fs::read_dir(folder)
        .expect("the folder is in the checkout")
        .map(|entry| entry.expect("it can be listed").file_name().to_string_lossy().into_owned())
        .collect();
    found.sort();
    let mut expected = Relation::ALL.map(|relation| format!("{relation}.json"));
    expected.sort();
    assert_eq!(found, expected);
}
