//! Served models: endpoints that answer as another model, or by another system, than they did at first.

use std::collections::{BTreeMap, BTreeSet};

use crate::engine::local::models::fingerprint;
use crate::plan::{ModelEdge, Plan, Step};
use crate::spec::{Backend, Mistake, Model};
use crate::store::Memo;

/// Warnings about the endpoints that a plan asks: what the last calls of the memo say that served
/// them, where that is not what the first say. Of a part of the memo that cannot be read nothing is
/// said: whoever needs its calls will be told.
pub(super) fn changed(plan: &Plan, memo: &Memo) -> Vec<Mistake> {
    let asked = plan.nodes.iter().filter_map(|node| match &node.step {
        Step::Ask(ask) => match &ask.model {
            ModelEdge::Entry(name) => Some(name.as_str()),
            ModelEdge::Node(_) => None,
        },
        _ => None,
    });
    let asked: BTreeSet<&str> = asked.collect();
    let mut models: BTreeMap<String, (&str, &Model)> = BTreeMap::new();
    for name in asked {
        let entry = plan.pipeline().models.get(name).expect("it was resolved");
        if let (Backend::Endpoint { .. }, Ok(id)) = (entry.backend(), fingerprint(entry)) {
            models.insert(id.to_string(), (name, entry));
        }
    }
    let served = memo.served(&models.keys().cloned().collect()).unwrap_or_default();
    let mut warnings = Vec::new();
    for (id, [first, last]) in served {
        let (name, entry) = models[&id];
        let mut changed = |what: &str, first: Option<String>, last: Option<String>| {
            let (Some(first), Some(last)) = (first, last) else { return };
            if first == last {
                return;
            }
            warnings.push(Mistake {
                message: format!(
                    "model \"{name}\" was served by the {what} {last:?} last, and by {first:?} at first"
                ),
                help: Some(
                    "what is remembered stays; if it answers otherwise now, give the model another `revision`, and all is asked again"
                        .to_owned(),
                ),
                place: entry.name.as_ref().map_or_else(Default::default, |name| name.place),
            });
        };
        changed("model", first.model, last.model);
        changed("system", first.system_fingerprint, last.system_fingerprint);
    }
    warnings
}
