//! Data sets as the Hugging Face Hub has them: a folder whose `README.md` declares, in YAML before its
//! text, configs with the files of their splits.

use serde::Deserialize;

/// Bytes of the declarations before the text.
const FRONT_MAX: usize = 4 << 20;

/// A config: a part of a data set, with splits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Its name.
    pub name: String,
    /// Whether it is taken where none is named.
    pub is_default: bool,
    /// The folder that patterns begin at, inside the data set.
    pub folder: Option<String>,
    /// Each split with its patterns, in their order. None: the files are those of the folder.
    pub splits: Vec<(String, Vec<String>)>,
}

/// The configs that a `README.md` declares; none where it declares none, or why they cannot be read.
pub fn configs(readme: &str) -> Result<Vec<Config>, String> {
    let Some(front) = front(readme) else { return Ok(Vec::new()) };
    if front.len() > FRONT_MAX {
        return Err(format!("its declarations have {} bytes, above {FRONT_MAX}", front.len()));
    }
    // Lines are counted as in the whole file.
    let card: Card = serde_yaml::from_str(&format!("\n{front}")).map_err(|error| {
        let message = error.to_string();
        let first = message.lines().next().unwrap_or_default();
        let first = first.strip_prefix("error: ").unwrap_or(first);
        format!("its declarations cannot be read: {first}")
    })?;
    Ok(card.configs.unwrap_or_default().into_iter().map(Written::config).collect())
}

/// The YAML between a first line `---` and the next one.
fn front(readme: &str) -> Option<&str> {
    let readme = readme.strip_prefix('\u{feff}').unwrap_or(readme);
    let rest = readme.strip_prefix("---\n").or_else(|| readme.strip_prefix("---\r\n"))?;
    let mut at = 0;
    for line in rest.split_inclusive('\n') {
        if line.trim_end() == "---" {
            return Some(&rest[..at]);
        }
        at += line.len();
    }
    None
}

/// What matters of the declarations.
#[derive(Deserialize)]
struct Card {
    #[serde(default)]
    configs: Option<Vec<Written>>,
}

#[derive(Deserialize)]
struct Written {
    #[serde(default = "default_name")]
    config_name: String,
    #[serde(default)]
    default: bool,
    #[serde(default)]
    data_dir: Option<String>,
    #[serde(default)]
    data_files: Option<Files>,
}

fn default_name() -> String {
    "default".to_owned()
}

/// Files by split, or those of the split `train`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Files {
    One(String),
    Many(Vec<Item>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Item {
    Path(String),
    Split { split: String, path: Paths },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Paths {
    One(String),
    Many(Vec<String>),
}

impl Written {
    fn config(self) -> Config {
        let items = match self.data_files {
            None => Vec::new(),
            Some(Files::One(path)) => vec![Item::Path(path)],
            Some(Files::Many(items)) => items,
        };
        let mut splits: Vec<(String, Vec<String>)> = Vec::new();
        for item in items {
            let (split, paths) = match item {
                Item::Path(path) => ("train".to_owned(), vec![path]),
                Item::Split { split, path: Paths::One(path) } => (split, vec![path]),
                Item::Split { split, path: Paths::Many(paths) } => (split, paths),
            };
            match splits.iter_mut().find(|(name, _)| *name == split) {
                Some((_, all)) => all.extend(paths),
                None => splits.push((split, paths)),
            }
        }
        let (name, is_default) = (self.config_name, self.default);
        Config { name, is_default, folder: self.data_dir, splits }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(readme: &str) -> String {
        let splits = |config: &Config| {
            let split =
                |(name, paths): &(String, Vec<String>)| format!("{name}={}", paths.join("+"));
            config.splits.iter().map(split).collect::<Vec<_>>().join(" ")
        };
        let config = |config: Config| {
            let mark = if config.is_default { "*" } else { "" };
            let folder = config.folder.as_deref().unwrap_or("-");
            format!("{}{mark} {folder}: {}", config.name, splits(&config))
        };
        configs(readme).map_or_else(
            |error| format!("error: {error}"),
            |all| all.into_iter().map(config).collect::<Vec<_>>().join("; "),
        )
    }

    #[test]
    fn configs_are_declared_in_any_of_the_published_shapes() {
        let of = |configs: &str| {
            shown(&format!(
                "---\nlicense: mit\ntags: [a, b]\n{configs}---\n# Card\n---\nconfigs: no\n"
            ))
        };
        insta::assert_snapshot!(
            [
                of("configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n  - split: test\n    path: data/test-*\n"),
                of("configs:\n- config_name: a\n  default: true\n  data_files:\n  - split: train\n    path: [a.csv, b.csv]\n- config_name: b\n  data_files: b/*.jsonl\n"),
                of("configs:\n- data_files: [x.csv, y.csv]\n  data_dir: sub\n- config_name: c\n  data_dir: c\n"),
                of("dataset_info:\n  features: []\n"),
                of("configs: [3]\n"),
                of("configs: [\n"),
                shown("# A card without declarations\n"),
                shown("---\nconfigs: [never closed\n"),
            ]
            .join("\n"),
            @r"
        default -: train=data/train-* test=data/test-*
        a* -: train=a.csv+b.csv; b -: train=b/*.jsonl
        default sub: train=x.csv+y.csv; c c: 

        error: its declarations cannot be read: line 4 column 11: expected mapping start
        error: its declarations cannot be read: line 4 column 10: unclosed bracket '['
        "
        );
    }
}
