//! `explain`: where a row comes from: its principle, its model, its calls, and its parents up to
//! the file that was read.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Value, json};

use super::diff::rows_of;
use super::json::Object;
use super::{QueryError, Reader, Result};
use crate::record::{CallKey, Id};
use crate::store::manifest::Mark;
use crate::store::{Entry, Memo, RowIds, Snapshot};

/// The table of rows that failed.
pub const REJECTS: &str = "rejects";

/// The reasons of rejects whose last call had no answer.
const UNANSWERED: [&str; 3] = ["http_permanent", "http_transient", "too_long"];

/// Generations above which a tree is not followed: no pipeline is as deep.
const DEPTH_MAX: usize = 256;

/// Ids that are named when a prefix is ambiguous.
const FOUND_MAX: usize = 5;

/// A row and where it comes from.
#[derive(Clone, Debug, Serialize)]
pub struct Explained {
    /// The node that made it, or `rejects`; null for a row that is not in this snapshot.
    pub node: Option<String>,
    /// The row.
    pub row_id: String,
    /// The relation of the node.
    pub relation: Option<String>,
    /// The verb of the node.
    pub op: Option<String>,
    /// In what the node is not a function of the pipeline alone, in the words of the manifest.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub marks: Vec<String>,
    /// Whether the node passed the row on as it came.
    pub passed_on: bool,
    /// The principle drawn: id, hash, stage, few-shot ids.
    pub principle: Option<Value>,
    /// The model that made it: name and fingerprint.
    pub model: Option<Value>,
    /// All columns.
    pub row: Object,
    /// The calls that made it.
    pub calls: Vec<Call>,
    /// The rows it was made of.
    pub parents: Vec<Explained>,
}

/// A call as the memo has it.
#[derive(Clone, Debug, Serialize)]
pub struct Call {
    /// The first 32 hex digits of its key.
    pub call_key: String,
    /// `generate`, `score` or `train`; null for a call that the memo has not.
    pub kind: Option<String>,
    /// The model asked.
    pub model: Option<String>,
    /// What it was asked.
    pub request: Value,
    /// What it said.
    pub answer: Option<String>,
    /// Log-probabilities of the choices.
    pub choice_logprobs: Option<Vec<f64>>,
    /// Why there is no answer.
    pub error: Option<String>,
    /// Of a call that a row was lost by: what it said when it was made again, after this snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub later_answer: Option<String>,
}

/// Explains the row that words name: `NODE/ROW` or `ROW`, ROW being the first digits of its id.
pub fn explain(reader: &Reader, snapshot: &Snapshot, words: &str) -> Result<Explained> {
    let mut explainer = Explainer { snapshot, ids: BTreeMap::new() };
    let (node, row_id) = explainer.resolve(words)?;
    let mut explained = explainer.row(&node, row_id, 0)?;
    let mut wanted = BTreeSet::new();
    visit(&mut explained, &mut |one| wanted.extend(call_ids(&one.row)));
    let calls = calls(&reader.store.memo_read_only()?, &wanted)?;
    visit(&mut explained, &mut |one| {
        let known = |id| calls.get(&id).cloned().unwrap_or_else(|| Call::missing(id));
        one.calls = call_ids(&one.row).into_iter().map(known).collect();
        if let Some((id, detail)) = lost_by(one) {
            let lost = one.calls.iter_mut().find(|call| call.call_key == id);
            lost.into_iter().for_each(|call| call.as_it_failed(&detail, one.row.get("request")));
        }
    });
    Ok(explained)
}

/// Parents, each with its node, if this snapshot has it.
type Parents = Vec<(Option<String>, Id)>;

struct Explainer<'a> {
    snapshot: &'a Snapshot,
    /// The sorted ids of the nodes that were looked into.
    ids: BTreeMap<String, Vec<RowIds>>,
}

impl Explainer<'_> {
    fn nodes(&self) -> Vec<String> {
        self.snapshot.manifest().nodes.keys().cloned().collect()
    }

    fn ids(&mut self, node: &str) -> Result<&[RowIds]> {
        if !self.ids.contains_key(node) {
            self.ids.insert(node.to_owned(), self.snapshot.read_ids(node)?);
        }
        Ok(&self.ids[node])
    }

    fn has(&mut self, node: &str, row_id: Id) -> Result<bool> {
        Ok(self.ids(node)?.binary_search_by_key(&row_id, |ids| ids.row_id).is_ok())
    }

    /// The node and row that words name.
    fn resolve(&mut self, words: &str) -> Result<(String, Id)> {
        let (node, prefix) = match words.rsplit_once('/') {
            Some((node, prefix)) => (Some(node), prefix),
            None => (None, words),
        };
        let is_hex = prefix.bytes().all(|byte| byte.is_ascii_hexdigit());
        if prefix.is_empty() || prefix.len() > 32 || !is_hex {
            return Err(QueryError::NotAnId(words.to_owned()));
        }
        let prefix = prefix.to_ascii_lowercase();
        let nodes = node.map_or_else(|| self.nodes(), |node| vec![node.to_owned()]);
        let mut found: BTreeMap<Id, Vec<&String>> = BTreeMap::new();
        for node in &nodes {
            for row_id in with_prefix(self.ids(node)?, &prefix) {
                found.entry(row_id).or_default().push(node);
            }
        }
        if found.len() > 1 {
            let name = |(row_id, nodes): (&Id, &Vec<&String>)| format!("{}/{row_id}", nodes[0]);
            let mut found: Vec<String> = found.iter().take(FOUND_MAX + 1).map(name).collect();
            if found.len() > FOUND_MAX {
                found.truncate(FOUND_MAX);
                found.push("…".to_owned());
            }
            return Err(QueryError::ManyRows { prefix, found });
        }
        let Some((row_id, nodes)) = found.into_iter().next() else {
            let place =
                node.map_or_else(|| "this snapshot".to_owned(), |node| format!("\"{node}\""));
            return Err(QueryError::NoRow { place, prefix });
        };
        // Of the nodes that pass a row on, the last one says most. A reject may be a row elsewhere.
        let last = nodes.iter().rev().find(|node| **node != REJECTS).unwrap_or(&nodes[0]);
        Ok(((*last).clone(), row_id))
    }

    fn row(&mut self, node: &str, row_id: Id, depth: usize) -> Result<Explained> {
        let entry = self.snapshot.manifest().nodes.get(node);
        let mut rows = rows_of(self.snapshot, node, &BTreeSet::from([row_id]))?;
        let row = rows.remove(&row_id).unwrap_or_default();
        let mut explained = Explained {
            node: Some(node.to_owned()),
            row_id: row_id.to_string(),
            relation: entry.map(|entry| entry.table.relation.name().to_owned()),
            op: entry.map(|entry| entry.node.op.clone()),
            marks: entry.map_or_else(Vec::new, |entry| marks(&entry.node.marks)),
            passed_on: false,
            principle: principle(&row),
            model: model(&row),
            calls: Vec::new(),
            parents: Vec::new(),
            row,
        };
        if depth < DEPTH_MAX {
            let (passed_on, parents) = self.parents(node, row_id, &explained.row)?;
            explained.passed_on = passed_on;
            for (node, parent) in parents {
                explained.parents.push(match node {
                    Some(node) => self.row(&node, parent, depth + 1)?,
                    None => Explained::missing(parent),
                });
            }
        }
        Ok(explained)
    }

    /// The rows that a row was made of, each with its node, if this snapshot has it; and whether it
    /// is itself the one, passed on.
    fn parents(&mut self, node: &str, row_id: Id, row: &Object) -> Result<(bool, Parents)> {
        // A reject was lost at the node it names.
        let at = if node == REJECTS {
            row.get("node").and_then(Value::as_str).unwrap_or(node)
        } else {
            node
        };
        let inputs = self.above(at);
        for input in self.inputs(at) {
            if input != node && self.has(&input, row_id)? {
                return Ok((true, vec![(Some(input), row_id)]));
            }
        }
        let mut parents = Vec::new();
        for parent in texts(row, "parents").filter_map(|text| text.parse::<Id>().ok()) {
            if parent == row_id {
                continue;
            }
            let mut found = None;
            // Rounds share a table, so a parent may be in the row's own.
            let places = std::iter::once(node.to_owned()).chain(inputs.clone()).chain(self.nodes());
            for place in places.filter(|place| place != REJECTS) {
                if self.has(&place, parent)? {
                    found = Some(place);
                    break;
                }
            }
            parents.push((found, parent));
        }
        Ok((false, parents))
    }

    /// The tables that a node reads.
    fn inputs(&self, node: &str) -> Vec<String> {
        let nodes = &self.snapshot.manifest().nodes;
        let inputs = nodes.get(node).map_or(&[][..], |entry| &entry.node.inputs);
        inputs.iter().filter(|input| nodes.contains_key(*input)).cloned().collect()
    }

    /// The tables above a node, the nearest first.
    fn above(&self, node: &str) -> Vec<String> {
        let mut above = self.inputs(node);
        let mut at = 0;
        while at < above.len() {
            for input in self.inputs(&above[at]) {
                if !above.contains(&input) {
                    above.push(input);
                }
            }
            at += 1;
        }
        above
    }
}

impl Explained {
    /// A row that this snapshot has not.
    fn missing(row_id: Id) -> Explained {
        Explained {
            node: None,
            row_id: row_id.to_string(),
            relation: None,
            op: None,
            marks: Vec::new(),
            passed_on: false,
            principle: None,
            model: None,
            row: Object::new(),
            calls: Vec::new(),
            parents: Vec::new(),
        }
    }
}

impl Call {
    fn missing(id: Id) -> Call {
        Call {
            call_key: id.to_string(),
            kind: None,
            model: None,
            request: Value::Null,
            answer: None,
            choice_logprobs: None,
            error: Some("the memo has no such call".to_owned()),
            later_answer: None,
        }
    }

    /// The call as a reject says it failed: the memo may have it otherwise since, or not at all.
    fn as_it_failed(&mut self, detail: &str, request: Option<&Value>) {
        self.later_answer = self.answer.take();
        self.choice_logprobs = None;
        self.error = Some(detail.to_owned());
        if let (Value::Null, Some(Value::String(request))) = (&self.request, request) {
            self.request = serde_json::from_str(request).unwrap_or_default();
        }
    }

    fn of(entry: &Entry) -> Call {
        let request = serde_json::from_str(&entry.request_json);
        Call {
            call_key: entry.key.id().to_string(),
            kind: Some(entry.kind.name().to_owned()),
            model: Some(entry.model.clone()),
            request: request.unwrap_or_else(|_| Value::String(entry.request_json.clone())),
            answer: entry.outcome.as_ref().ok().map(|answer| answer.text.clone()),
            choice_logprobs: entry
                .outcome
                .as_ref()
                .ok()
                .and_then(|answer| answer.choice_logprobs.clone()),
            error: entry.outcome.as_ref().err().map(|failure| failure.message.clone()),
            later_answer: None,
        }
    }
}

fn marks(marks: &BTreeSet<Mark>) -> Vec<String> {
    marks.iter().map(|mark| mark.name().to_owned()).collect()
}

/// The ids that begin with hex digits; the ids are sorted.
fn with_prefix(ids: &[RowIds], prefix: &str) -> Vec<Id> {
    let bits = u128::from_str_radix(prefix, 16).expect("the digits were checked");
    let low = bits << (4 * (32 - prefix.len()));
    let from = ids.partition_point(|ids| ids.row_id.bits() < low);
    let begins = |ids: &&RowIds| ids.row_id.to_string().starts_with(prefix);
    ids[from..].iter().take_while(begins).map(|ids| ids.row_id).collect()
}

fn visit(one: &mut Explained, see: &mut dyn FnMut(&mut Explained)) {
    see(one);
    one.parents.iter_mut().for_each(|parent| visit(parent, see));
}

fn texts<'a>(row: &'a Object, column: &str) -> impl Iterator<Item = &'a str> {
    row.get(column).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// The calls of a row: its own, or the one a reject failed with.
fn call_ids(row: &Object) -> Vec<Id> {
    let own = texts(row, "call_keys");
    let of_reject = row.get("call_key").and_then(Value::as_str);
    let mut ids: Vec<Id> = Vec::new();
    for id in own.chain(of_reject).filter_map(|text| text.parse().ok()) {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}

/// Of a reject that has no answer: the call that failed, and why.
fn lost_by(reject: &Explained) -> Option<(String, String)> {
    let text = |column: &str| reject.row.get(column).and_then(Value::as_str);
    let is_unanswered = text("reason").is_some_and(|reason| UNANSWERED.contains(&reason));
    if reject.node.as_deref() != Some(REJECTS) || !is_unanswered {
        return None;
    }
    Some((text("call_key")?.to_owned(), text("detail").unwrap_or_default().to_owned()))
}

fn principle(row: &Object) -> Option<Value> {
    let id = row.get("principle_id").filter(|id| !id.is_null())?;
    let column = |name: &str| row.get(name).cloned().unwrap_or(Value::Null);
    Some(json!({
        "id": id,
        "hash": column("principle_hash"),
        "stage": column("stage"),
        "few_shot_ids": column("few_shot_ids"),
    }))
}

fn model(row: &Object) -> Option<Value> {
    let columns = [("model", "model_fingerprint"), ("judge", "judge_fingerprint")];
    columns.into_iter().find_map(|(name, fingerprint)| {
        let name = row.get(name).filter(|name| !name.is_null())?;
        Some(json!({ "name": name, "fingerprint": row.get(fingerprint) }))
    })
}

/// The calls of those ids that the memo has.
fn calls(memo: &Memo, wanted: &BTreeSet<Id>) -> Result<BTreeMap<Id, Call>> {
    let mut found = BTreeMap::new();
    if wanted.is_empty() {
        return Ok(found);
    }
    for key in memo_keys(memo, wanted)? {
        if let Some(entry) = memo.get(&key)? {
            found.insert(key.id(), Call::of(&entry));
        }
    }
    Ok(found)
}

/// Rows carry half a key; the memo is asked by the whole.
fn memo_keys(memo: &Memo, wanted: &BTreeSet<Id>) -> Result<Vec<CallKey>> {
    use arrow::array::AsArray;

    let mut keys = Vec::new();
    for batch in memo.scan(Some(&["key"])) {
        let batch = batch?;
        let column = batch.column(0).as_fixed_size_binary();
        let whole = column.iter().flatten().filter_map(|bytes| bytes.try_into().ok().map(CallKey));
        keys.extend(whole.filter(|key| wanted.contains(&key.id())));
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::testing::{Lab, id, row};

    /// Two nodes; row 3 of `revised` was made of row 1 of `drafts` by call 7.
    fn lab() -> Lab {
        let lab = Lab::new();
        let revised = [row(3, "better").made_of(1, 7), row(2, "b")];
        lab.commit(&[("drafts", &[row(1, "a"), row(2, "b")]), ("revised", &revised)]);
        lab.remember(7, r#"{"prompt":"say it better"}"#, "better");
        lab
    }

    fn explain_in(lab: &Lab, words: &str) -> Result<Explained> {
        let reader = lab.reader();
        explain(&reader, &reader.snapshot("latest").unwrap(), words)
    }

    #[test]
    fn a_row_leads_to_its_call_and_its_parent() {
        let explained = explain_in(&lab(), &format!("revised/{}", id(3))).unwrap();
        assert_eq!(explained.calls[0].request, json!({ "prompt": "say it better" }));
        assert_eq!(explained.calls[0].answer.as_deref(), Some("better"));
        let parent = &explained.parents[0];
        assert_eq!((parent.node.as_deref(), &parent.row_id), (Some("drafts"), &id(1).to_string()));
        assert!(parent.parents.is_empty());
    }

    #[test]
    fn the_beginning_of_an_id_is_enough_while_it_is_the_only_one() {
        let lab = lab();
        let whole = id(3).to_string();
        assert_eq!(explain_in(&lab, &whole[..6]).unwrap().row_id, whole);
        let none = explain_in(&lab, "drafts/ffff").unwrap_err();
        assert_eq!(none.to_string(), "no row of \"drafts\" has an id that begins with \"ffff\"");
        assert!(explain_in(&lab, "drafts/zz").unwrap_err().is_usage());
    }

    #[test]
    fn an_ambiguous_beginning_names_what_it_could_be() {
        let many: Vec<_> = (0..40).map(|n| row(n, "x")).collect();
        let lab = Lab::new();
        lab.commit(&[("drafts", &many)]);
        let first = &id(0).to_string()[..1];
        let QueryError::ManyRows { found, .. } = explain_in(&lab, first).unwrap_err() else {
            panic!("forty ids share first digits");
        };
        assert!(found.len() > 1 && found[0].starts_with("drafts/"));
    }

    #[test]
    fn a_row_that_is_passed_on_is_followed_to_where_it_was_made() {
        let explained = explain_in(&lab(), &format!("revised/{}", id(2))).unwrap();
        assert!(explained.passed_on);
        assert_eq!(explained.parents[0].node.as_deref(), Some("drafts"));
    }
}
