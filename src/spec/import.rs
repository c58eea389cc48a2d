//! `import`: constitutions in the shapes that others publish, as ours.
//!
//! | shape | published by |
//! |---|---|
//! | the folder `prompts/`, or one of its five JSON files | Anthropic, with the paper |
//! | `{"constitutions": [{"critic", "revision"}], "system_chat": […]}` | Hugging Face's alignment handbook |
//! | `[{"name", "critique_request", "revision_request"}]` | LangChain |
//!
//! What belongs to a template is taken off: `\n\nCritiqueRequest: …\n\nCritique:` around a critique request,
//! `\n … Options:` around a judge's instruction, blank lines and a last `\n\nHuman:` around worked examples.

mod shapes;

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde_json::Value;

use super::constitution::Constitution;
use super::mistake::{Mistakes, SourceFile};

/// Why a file could not be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It could not be read.
    #[error("\"{}\" cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not JSON.
    #[error("\"{}\" is not JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where it is not.
        source: serde_json::Error,
    },
    /// It has none of the shapes.
    #[error("\"{}\" has none of the shapes that can be imported: {found}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// What was found instead.
        found: String,
    },
    /// What was read is no valid constitution, such as two principles of one name.
    #[error("\"{}\" makes no valid constitution:\n{mistakes}", path.display())]
    Constitution {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, in the YAML made of it.
        mistakes: Mistakes,
    },
}

/// Reads a published constitution: a JSON file, or a folder of them, whose parts are put together.
pub fn read(path: &Path) -> Result<Constitution, ImportError> {
    let mut constitution = Constitution::default();
    for file in files(path)? {
        let text = fs::read_to_string(&file)
            .map_err(|source| ImportError::Read { path: file.clone(), source })?;
        let value: Value = serde_json::from_str(&text)
            .map_err(|source| ImportError::Json { path: file.clone(), source })?;
        shapes::add(&value, &mut constitution)
            .map_err(|found| ImportError::Shape { path: file.clone(), found })?;
    }
    let text = to_yaml(&constitution, None);
    let mut mistakes =
        Mistakes::new(vec![SourceFile { path: path.to_owned(), text: text.clone() }]);
    match super::load::constitution_of(&text, 0, &mut mistakes) {
        Some(again) if mistakes.is_empty() => {
            assert!(again == constitution, "what is written as YAML reads back equal");
            Ok(again)
        }
        _ => Err(ImportError::Constitution { path: path.to_owned(), mistakes }),
    }
}

/// The JSON files of a folder in the order of their names, or the one file.
fn files(path: &Path) -> Result<Vec<PathBuf>, ImportError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let failed = |source| ImportError::Read { path: path.to_owned(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        if file.extension().is_some_and(|ending| ending == "json") {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(ImportError::Shape {
            path: path.to_owned(),
            found: "a folder without JSON files".to_owned(),
        });
    }
    Ok(files)
}

/// Writes a constitution as YAML that reads back equal, long texts as blocks. `heading` becomes a comment.
pub fn to_yaml(constitution: &Constitution, heading: Option<&str>) -> String {
    let options = serde_yaml::ser_options! { compact_list_indent: false };
    let body = serde_yaml::to_string_with_options(constitution, options)
        .expect("a constitution is made of maps, lists, texts and numbers");
    let comment = heading.map(|text| format!("# {}\n", text.replace('\n', "\n# ")));
    comment.unwrap_or_default() + &body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::constitution::Purpose;

    /// The folder of published files, where this machine has it.
    fn published() -> Option<PathBuf> {
        let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
        let data =
            std::env::var_os("AMEND_DATA").map_or(default, PathBuf::from).join("cai/prompts");
        if data.is_dir() {
            return Some(data);
        }
        #[expect(clippy::print_stderr, reason = "a test that does nothing says so")]
        {
            eprintln!("skipped: there is no {}; set AMEND_DATA", data.display());
        }
        None
    }

    #[test]
    fn the_papers_folder_has_16_16_5_5_6() {
        let Some(folder) = published() else { return };
        let constitution = read(&folder).unwrap();
        let serving =
            |purpose| constitution.principles.iter().filter(|one| one.serves(purpose)).count();
        assert_eq!(serving(Purpose::Critique), 16);
        assert_eq!(serving(Purpose::Judge), 16);
        let examples = &constitution.few_shot;
        assert_eq!(
            (examples.critique_revise.len(), examples.judge.len(), examples.judge_cot.len()),
            (5, 5, 6)
        );
    }

    #[test]
    fn what_belongs_to_templates_is_taken_off() {
        let Some(folder) = published() else { return };
        let constitution = read(&folder).unwrap();
        for principle in &constitution.principles {
            for text in
                [&principle.critique, &principle.revise, &principle.judge].into_iter().flatten()
            {
                assert_eq!(text.trim(), text.value);
                assert!(
                    !text.contains("Request:")
                        && !text.ends_with("Options:")
                        && !text.ends_with("Critique:")
                );
            }
        }
        for example in &constitution.few_shot.critique_revise {
            assert!(example.starts_with("Human: ") && !example.ends_with("Human:"), "{example}");
        }
        for example in &constitution.few_shot.judge_cot {
            assert!(
                example.starts_with("Human: ") && example.contains("So the answer is: ("),
                "{example}"
            );
        }
    }

    #[test]
    fn the_wire_texts_can_be_made_again_byte_for_byte() {
        let Some(folder) = published() else { return };
        let constitution = read(&folder).unwrap();
        let json = |name: &str| -> Value {
            serde_json::from_str(&fs::read_to_string(folder.join(name)).unwrap()).unwrap()
        };
        for (id, published) in json("CritiqueRevisionInstructions.json").as_object().unwrap() {
            let ours = constitution.principles.iter().find(|one| one.id.value == *id).unwrap();
            let critique =
                format!("\n\nCritiqueRequest: {}\n\nCritique:", ours.critique.as_ref().unwrap());
            let revise =
                format!("\n\nRevisionRequest: {}\n\nRevision:", ours.revise.as_ref().unwrap());
            assert_eq!(critique, published["prompt"][0].as_str().unwrap());
            assert_eq!(revise, published["edit_request"].as_str().unwrap());
        }
        for (index, published) in
            json("RLMadisonInstructions.json").as_array().unwrap().iter().enumerate()
        {
            let ours = constitution
                .principles
                .iter()
                .find(|one| one.id.value == format!("rl{index}"))
                .unwrap();
            assert_eq!(
                format!("\n{} Options:", ours.judge.as_ref().unwrap()),
                published.as_str().unwrap()
            );
        }
    }

    /// Writes JSON to a file of its own and imports it.
    fn import(json: &str) -> Result<Constitution, ImportError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("published.json");
        fs::write(&path, json).unwrap();
        read(&path)
    }

    #[test]
    fn the_handbooks_chats_become_worked_examples() {
        let constitution = import(
            r#"{"constitutions": [{"critic": "Find harm.", "revision": "Remove it."}],
                "system_chat": [[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"},
                                 {"role": "user", "content": "Find."}, {"role": "assistant", "content": "Harm: x"},
                                 {"role": "user", "content": "Fix."}, {"role": "assistant", "content": "b"}]]}"#,
        );
        insta::assert_snapshot!(to_yaml(&constitution.unwrap(), Some("Imported.")), @r"
        # Imported.
        principles:
          - id: principle0
            critique: Find harm.
            revise: Remove it.
        few_shot:
          critique_revise:
            - |-
              Human: q

              Assistant: a

              CritiqueRequest: Find.

              Critique: Harm: x

              RevisionRequest: Fix.

              Revision: b
        ");
    }

    #[test]
    fn langchains_list_keeps_its_names() {
        let constitution = import(
            r#"[{"name": "uo-1", "critique_request": "Find.", "revision_request": "Fix."}]"#,
        )
        .unwrap();
        assert_eq!(constitution.principles[0].id.value, "uo-1");
        assert!(constitution.principles[0].serves(Purpose::Critique));
    }

    #[test]
    fn a_file_of_another_shape_says_what_was_found() {
        let error = import(r#"{"rules": []}"#).unwrap_err();
        assert!(error.to_string().ends_with("an object with the keys \"rules\""), "{error}");
    }

    #[test]
    fn two_principles_of_one_name_are_refused() {
        let twice = r#"[{"name": "x", "critique_request": "Find.", "revision_request": "Fix."},
                        {"name": "x", "critique_request": "Find.", "revision_request": "Fix."}]"#;
        assert!(import(twice).unwrap_err().to_string().contains("there are two principles \"x\""));
    }
}
