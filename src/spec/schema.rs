//! JSON Schemas of the two files, for editors: generated from the types, so that they say what the code says.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::Value;

use super::constitution::Constitution;
use super::pipeline::Pipeline;

/// The schema of a pipeline file.
pub fn pipeline() -> Value {
    generate::<Pipeline>("amend pipeline")
}

/// The schema of a constitution file.
pub fn constitution() -> Value {
    generate::<Constitution>("amend constitution")
}

fn generate<T: JsonSchema>(title: &str) -> Value {
    let mut schema: Schema =
        SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>();
    schema.insert("title".to_owned(), title.into());
    let mut value = schema.to_value();
    loosen(&mut value);
    value
}

/// Lets a text with a variable, `"${ROUNDS:-4}"`, stand where a number or a flag is wanted.
fn loosen(value: &mut Value) {
    if let Value::Object(object) = value {
        let typed = object.get("type").cloned();
        let types = match typed {
            Some(Value::Array(types)) => types,
            one => one.into_iter().collect(),
        };
        let is_plain =
            types.iter().any(|one| matches!(one.as_str(), Some("integer" | "number" | "boolean")));
        object.values_mut().for_each(loosen);
        if is_plain {
            let mut plain = serde_json::Map::new();
            for key in ["type", "format", "minimum", "maximum"] {
                plain.extend(object.shift_remove(key).map(|value| (key.to_owned(), value)));
            }
            let variable = serde_json::json!({ "type": "string", "pattern": "\\$\\{" });
            object.insert("anyOf".to_owned(), Value::Array(vec![Value::Object(plain), variable]));
        }
    } else if let Value::Array(items) = value {
        items.iter_mut().for_each(loosen);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn check(name: &str, schema: &Value) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas").join(name);
        let text = format!("{}\n", serde_json::to_string_pretty(schema).unwrap());
        if std::env::var_os("UPDATE").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            return;
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(found == text, "schemas/{name} is stale: run `UPDATE=1 cargo test schema`");
    }

    #[test]
    fn the_schema_of_a_pipeline_is_what_the_code_says() {
        check("pipeline.schema.json", &pipeline());
    }

    #[test]
    fn the_schema_of_a_constitution_is_what_the_code_says() {
        check("constitution.schema.json", &constitution());
    }
}
