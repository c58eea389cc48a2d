//! Moved endpoints: entries of `models` whose URL is another one than in the last snapshot. Name and
//! revision identify a model, so what the other server answered stays.

use crate::engine::run::Options;
use crate::plan::Plan;
use crate::spec::{Mistakes, Model, Name, Pipeline, parse_pipeline};
use crate::store::{Inputs, Store};

/// Warns of endpoints that moved since the last snapshot, once: the next one is made by the URL of
/// today. A snapshot that cannot be read warns of nothing: the run will say so.
pub fn moved(plan: &Plan, options: &Options, warnings: &mut Mistakes) {
    let snapshots = Store::new(&options.store).snapshots(&plan.pipeline().name);
    if let Ok(Some(latest)) = snapshots.latest()
        && let given = snapshots.given(&latest)
        && let Some(before) = pipeline_of(given.as_ref().unwrap_or(&latest.manifest().inputs))
    {
        compare(&before, plan.pipeline(), latest.manifest().number, warnings);
    }
}

/// The pipeline that a run was given.
fn pipeline_of(inputs: &Inputs) -> Option<Pipeline> {
    // Flags that are none of `--set` are kept among them.
    let sets = inputs.set.iter().filter(|set| !set.starts_with("--")).cloned();
    parse_pipeline(&inputs.files.first()?.text, &sets.collect::<Vec<_>>(), &inputs.variables)
}

fn compare(before: &Pipeline, now: &Pipeline, snapshot: u64, warnings: &mut Mistakes) {
    for (name, model) in &now.models {
        let Some(was) = before.models.get(name.as_str()) else { continue };
        let same = (&was.name, &was.revision) == (&model.name, &model.revision);
        let (Some(there), Some(here)) = (server(was), server(model)) else { continue };
        if same && there != here {
            let place = model.endpoint.as_ref().map_or(name.place, |url: &Name| url.place);
            warnings.push(
                place,
                format!(
                    "model \"{name}\" is at {here}, and was at {there} in snapshot {snapshot}: what it answered there stays"
                ),
                "if other weights are served now, give the model another `revision`, and all is asked again",
            );
        }
    }
}

/// The server of an entry, without what may be secret: user, password, query.
fn server(model: &Model) -> Option<String> {
    let url = model.endpoint.as_ref().filter(|url| !url.is_empty())?.as_str();
    let url = url.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = host.rsplit('@').next().unwrap_or(host).to_ascii_lowercase();
    let path = path.strip_suffix("v1").unwrap_or(path).trim_end_matches('/');
    let slash = if path.is_empty() { "" } else { "/" };
    Some(format!("{}://{host}{slash}{path}", scheme.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn pipeline(endpoint: &str, rest: &str) -> Pipeline {
        let text = format!(
            "name: p\nmodels:\n  m: {{ endpoint: \"{endpoint}\", name: x{rest} }}\nnodes: {{}}\n"
        );
        let variables = BTreeMap::from([("BASE".to_owned(), "http://b:1".to_owned())]);
        parse_pipeline(&text, &[], &variables).unwrap()
    }

    fn warned(before: &Pipeline, now: &Pipeline) -> Vec<String> {
        let mut warnings = Mistakes::warnings(Vec::new());
        compare(before, now, 3, &mut warnings);
        warnings.iter().map(|one| one.message.clone()).collect()
    }

    #[test]
    fn another_url_is_said_and_another_spelling_of_it_is_not() {
        let before = pipeline("http://user:secret@a:1/v1?key=secret", "");
        let told = warned(&before, &pipeline("${BASE}/v1", ""));
        assert_eq!(
            told,
            [
                "model \"m\" is at http://b:1, and was at http://a:1 in snapshot 3: what it answered there stays"
            ]
        );
        assert_eq!(warned(&before, &pipeline("HTTP://A:1/", "")), [""; 0]);
        let other = pipeline("${BASE}/v1", ", revision: two");
        assert_eq!(warned(&before, &other), [""; 0], "another revision is another model");
    }
}
