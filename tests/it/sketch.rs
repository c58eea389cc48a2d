//! Sketches: small pipelines made at random, and the edits that change them.
//!
//! A sketch is plain data that shrinks well; what it stands for are the files that [`Sketch::files`]
//! writes. A sketch may stand for files with a mistake (a judge without a principle): then the
//! files do not load, and the edit that led there is left out.

use std::collections::BTreeMap;
use std::fmt;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::lab::Files;

/// A pipeline, its constitution and its prompts.
#[derive(Clone)]
pub struct Sketch {
    seed: u64,
    red: BTreeMap<u8, (u8, u8)>,
    helpful: BTreeMap<u8, (u8, u8)>,
    principles: Vec<Principle>,
    examples: u8,
    template: u8,
    settings: Vec<u8>,
    /// Ids given out so far: a new prompt or principle is none that was there before.
    given: u8,
}

/// A principle, by numbers that its texts are made of.
#[derive(Clone, Debug)]
struct Principle {
    id: u8,
    was: Option<u8>,
    text: u8,
    weight: u8,
    soft: bool,
    texts: u8,
}

/// One change of a sketch. `which` counts around.
#[derive(Clone, Debug)]
pub enum Edit {
    Text { which: u8, text: u8 },
    Texts { which: u8, texts: u8 },
    Add { text: u8 },
    Remove { which: u8 },
    Rename { which: u8 },
    Reorder { by: u8 },
    Reweight { which: u8, weight: u8 },
    Tag { which: u8 },
    Examples { text: u8 },
    Template { text: u8 },
    Seed { seed: u64 },
    Setting { which: u8, value: u8 },
    PromptText { which: u8, text: u8 },
    PromptCategory { which: u8, category: u8 },
    PromptRemove { which: u8 },
    PromptAdd { text: u8, helpful: bool },
}

/// What can be set of a pipeline, by its place in [`Sketch::settings`]. 0 is the plainest of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    PromptFilter,
    Split,
    DraftsN,
    DraftsTemperature,
    DraftsMaxTokens,
    DraftFilter,
    Loop,
    Times,
    Draws,
    Replacement,
    SkipIf,
    LoopShots,
    LoopTemperature,
    Selector,
    Demos,
    Mix,
    Train,
    Hold,
    PairsModel,
    PairsN,
    PairFilter,
    Order,
    Cot,
    JudgeShots,
    JudgeDraws,
    Labels,
    Pairs,
    Format,
    Evaluate,
    LoopModel,
    Choices,
    Judge,
}

/// How many settings there are.
pub const SETTINGS: usize = Of::Judge as usize + 1;

/// A sketch.
pub fn sketch() -> impl Strategy<Value = Sketch> {
    let prompts = |most| btree_map(0u8..16, (0u8..6, 0u8..3), 0..most);
    let principle =
        (0u8..5, 0u8..3, any::<bool>(), 0u8..5).prop_map(|(text, weight, soft, texts)| Principle {
            id: 0,
            was: None,
            text,
            weight,
            soft,
            texts,
        });
    let settings = vec(prop_oneof![2 => Just(0u8), 3 => 0u8..12], SETTINGS);
    let constitution = (vec(principle, 1..5), 0u8..3, 0u8..3);
    (0u64..3, prompts(8), prompts(4), constitution, settings).prop_map(
        |(seed, red, helpful, (mut principles, examples, template), settings)| {
            for (at, principle) in principles.iter_mut().enumerate() {
                principle.id = at as u8;
            }
            // The first serves for everything: most sketches stand for files without a mistake.
            principles[0] = Principle { weight: 0, soft: true, texts: 0, ..principles[0].clone() };
            Sketch { seed, red, helpful, principles, examples, template, settings, given: 16 }
        },
    )
}

/// An edit.
pub fn edit() -> impl Strategy<Value = Edit> {
    let which = || 0u8..8;
    prop_oneof![
        3 => (which(), 0u8..5).prop_map(|(which, text)| Edit::Text { which, text }),
        1 => (which(), 0u8..5).prop_map(|(which, texts)| Edit::Texts { which, texts }),
        1 => (0u8..5).prop_map(|text| Edit::Add { text }),
        1 => which().prop_map(|which| Edit::Remove { which }),
        1 => which().prop_map(|which| Edit::Rename { which }),
        1 => (1u8..4).prop_map(|by| Edit::Reorder { by }),
        1 => (which(), 0u8..3).prop_map(|(which, weight)| Edit::Reweight { which, weight }),
        1 => which().prop_map(|which| Edit::Tag { which }),
        1 => (0u8..3).prop_map(|text| Edit::Examples { text }),
        1 => (0u8..3).prop_map(|text| Edit::Template { text }),
        1 => (0u64..3).prop_map(|seed| Edit::Seed { seed }),
        6 => (0u8..SETTINGS as u8, 0u8..12)
            .prop_map(|(which, value)| Edit::Setting { which, value }),
        2 => (which(), 0u8..6).prop_map(|(which, text)| Edit::PromptText { which, text }),
        1 => (which(), 0u8..3)
            .prop_map(|(which, category)| Edit::PromptCategory { which, category }),
        1 => which().prop_map(|which| Edit::PromptRemove { which }),
        1 => (0u8..6, any::<bool>())
            .prop_map(|(text, helpful)| Edit::PromptAdd { text, helpful }),
    ]
}

/// As what it stands for: numbers tell a reader little.
impl fmt::Debug for Sketch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Files { pipeline, constitution, prompts } = self.files();
        write!(f, "{pipeline}\n{constitution}\n{prompts:?}")
    }
}

impl Sketch {
    /// The sketch after an edit.
    #[must_use]
    pub fn edited(&self, edit: &Edit) -> Sketch {
        let mut next = self.clone();
        let at = |which: u8| usize::from(which) % self.principles.len();
        match *edit {
            Edit::Text { which, text } => next.principles[at(which)].text = text,
            Edit::Texts { which, texts } => next.principles[at(which)].texts = texts,
            Edit::Add { text } => {
                let (id, weight, texts) = (next.given(), 0, 0);
                next.principles.push(Principle { id, was: None, text, weight, soft: true, texts });
            }
            Edit::Remove { which } if self.principles.len() > 1 => {
                next.principles.remove(at(which));
            }
            Edit::Remove { .. } => {}
            Edit::Rename { which } => {
                let id = next.given();
                let renamed = &mut next.principles[at(which)];
                renamed.was = Some(renamed.was.unwrap_or(renamed.id));
                renamed.id = id;
            }
            Edit::Reorder { by } => next.principles.rotate_left(at(by)),
            Edit::Reweight { which, weight } => next.principles[at(which)].weight = weight,
            Edit::Tag { which } => next.principles[at(which)].soft ^= true,
            Edit::Examples { text } => next.examples = text,
            Edit::Template { text } => next.template = text,
            Edit::Seed { seed } => next.seed = seed,
            Edit::Setting { which, value } => next.settings[usize::from(which)] = value,
            Edit::PromptText { which, text } => next.prompt(which, |prompt| prompt.0 = text),
            Edit::PromptCategory { which, category } => {
                next.prompt(which, |prompt| prompt.1 = category);
            }
            Edit::PromptRemove { which } => {
                let ids: Vec<u8> = self.red.keys().copied().collect();
                if let Some(id) = ids.get(usize::from(which) % ids.len().max(1)) {
                    next.red.remove(id);
                }
            }
            Edit::PromptAdd { text, helpful } => {
                let id = next.given();
                let prompts = if helpful { &mut next.helpful } else { &mut next.red };
                prompts.insert(id, (text, 0));
            }
        }
        next
    }

    fn given(&mut self) -> u8 {
        self.given += 1;
        self.given
    }

    fn prompt(&mut self, which: u8, edit: impl FnOnce(&mut (u8, u8))) {
        let count = self.red.len().max(1);
        if let Some(prompt) = self.red.values_mut().nth(usize::from(which) % count) {
            edit(prompt);
        }
    }

    /// One of `choices`.
    fn of(&self, of: Of, choices: u8) -> u8 {
        self.settings[of as usize] % choices
    }

    /// The files that it stands for.
    pub fn files(&self) -> Files {
        let prompts = |name: &str, prompts: &BTreeMap<u8, (u8, u8)>| {
            let line = |(id, (text, category)): (&u8, &(u8, u8))| {
                format!("{name}{id}|question {text}?|topic {category}")
            };
            (name.to_owned(), prompts.iter().map(line).collect::<Vec<_>>())
        };
        Files {
            pipeline: self.pipeline().to_string(),
            constitution: self.constitution().to_string(),
            prompts: [prompts("red", &self.red), prompts("helpful", &self.helpful)].into(),
        }
    }

    fn constitution(&self) -> Value {
        let principle = |principle: &Principle| {
            let text = principle.text;
            let mut map = Map::new();
            map.insert("id".into(), json!(format!("p{}", principle.id)));
            if let Some(was) = principle.was {
                map.insert("was".into(), json!(format!("p{was}")));
            }
            // All texts, those of critique and revision, the judge's, the revision's.
            if principle.texts < 3 {
                map.insert("critique".into(), json!(format!("what of {text}?")));
            }
            if principle.texts != 3 {
                map.insert("revise".into(), json!(format!("without {text}")));
            }
            if principle.texts != 2 && principle.texts != 4 {
                map.insert("judge".into(), json!(format!("which has less {text}?")));
            }
            map.insert("weight".into(), json!([1.0, 0.5, 2.0][usize::from(principle.weight)]));
            if principle.soft {
                map.insert("tags".into(), json!(["soft"]));
            }
            Value::Object(map)
        };
        let of = self.examples;
        let loops = format!(
            "Human: example {of}\n\nAssistant: so\n\nCritiqueRequest: x\n\nCritique: y\n\nRevisionRequest: z\n\nRevision: w\n\nHuman:"
        );
        let pair = |n: u8| json!({ "prompt": format!("\n\nHuman: example {of} {n}\n\nAssistant:"), "chosen": "good", "rejected": "bad" });
        let thought =
            format!("Human: example {of}. {{}}\n\nAssistant: hm\n\nHuman: So the answer is: (A)");
        let mut constitution = json!({
            "principles": self.principles.iter().map(principle).collect::<Vec<_>>(),
            "few_shot": { "critique_revise": [loops], "judge": [pair(1), pair(2)], "judge_cot": [thought] },
        });
        if self.template > 0 {
            let text =
                format!("{}: {{{{ response }}}} by {{{{ principle.critique }}}}", self.template);
            constitution["templates"] = json!({ "critique": text });
        }
        constitution
    }

    fn pipeline(&self) -> Value {
        let format = ["transcript", "chat"][usize::from(self.of(Of::Format, 2))];
        let model = |name: &str| json!({ "endpoint": "http://127.0.0.1:9", "name": name, "format": format });
        let mut nodes = Map::new();
        let mut add = |name: &str, verb: &str, settings: Value| {
            nodes.insert(name.into(), json!({ verb: settings }));
        };
        add("red", "read", json!({ "path": "red.jsonl" }));
        add("helpful", "read", json!({ "path": "helpful.jsonl" }));
        let prompts = self.prompts(&mut add);
        let drafts = self.drafts(&prompts, &mut add);
        let revisions = self.revisions(drafts, &mut add);
        self.trained(&prompts, revisions, &mut add);
        self.judged(&prompts, &mut add);
        let of = match self.of(Of::Evaluate, 3) {
            0 => None,
            1 => Some(json!(["drafts"])),
            _ => Some(json!(["drafts", revisions])),
        };
        if let Some(of) = of {
            add(
                "labels",
                "evaluate",
                json!({ "from": of, "labels": { "yes": "yes", "words": "words" } }),
            );
        }
        if self.of(Of::Choices, 2) == 1 {
            add(
                "choices",
                "evaluate",
                json!({ "from": "helpful", "model": "assistant", "choices": [" (A)", " (B)"] }),
            );
        }
        json!({
            "name": "sketch", "seed": self.seed, "constitution": "constitution.yaml",
            "models": { "assistant": model("one"), "other": model("other") },
            "nodes": nodes,
        })
    }

    /// What stands between the prompts and the drafts.
    fn prompts(&self, add: &mut dyn FnMut(&str, &str, Value)) -> String {
        let mut from = "red";
        let dedupe = |by: &str, keep: &str, on_drop: &str| json!({ "from": "red", "dedupe": { "by": by, "keep": keep }, "on_drop": on_drop });
        let filter = match self.of(Of::PromptFilter, 4) {
            0 => None,
            1 => Some(dedupe("prompt", "first", "reject")),
            2 => Some(dedupe("prompt", "last", "drop")),
            _ => Some(dedupe("category", "first", "reject")),
        };
        if let Some(filter) = filter {
            add("asked", "filter", filter);
            from = "asked";
        }
        if self.of(Of::Split, 2) == 1 {
            add("parts", "split", json!({ "from": from, "parts": { "train": 0.7, "test": 0.3 } }));
            from = "parts.train";
        }
        from.to_owned()
    }

    fn drafts(&self, prompts: &str, add: &mut dyn FnMut(&str, &str, Value)) -> &'static str {
        let temperature = [1.0, 0.0, 0.5][usize::from(self.of(Of::DraftsTemperature, 3))];
        let max_tokens = [256, 64][usize::from(self.of(Of::DraftsMaxTokens, 2))];
        let n = self.of(Of::DraftsN, 2) + 1;
        let sample = json!({
            "from": prompts, "model": "assistant", "n": n,
            "temperature": temperature, "max_tokens": max_tokens,
        });
        add("drafts", "sample", sample);
        let filter = match self.of(Of::DraftFilter, 4) {
            0 => return "drafts",
            1 => json!({ "from": "drafts", "drop": ["empty", "not_stopped"] }),
            2 => {
                json!({ "from": "drafts", "drop": ["too_long"], "max_tokens": 4, "on_drop": "drop" })
            }
            _ => json!({ "from": "drafts", "dedupe": { "by": "completion" } }),
        };
        add("good", "filter", filter);
        "good"
    }

    fn revisions(&self, drafts: &str, add: &mut dyn FnMut(&str, &str, Value)) -> &'static str {
        let model = ["assistant", "other"][usize::from(self.of(Of::LoopModel, 2))];
        let temperature = [1.0, 0.0][usize::from(self.of(Of::LoopTemperature, 2))];
        let mut ask = json!({ "model": model, "temperature": temperature });
        if self.of(Of::LoopShots, 2) == 1 {
            ask["few_shot"] = json!({ "count": 1 });
        }
        let selector = match self.of(Of::Selector, 4) {
            0 => json!({}),
            1 => json!({ "tags": { "any": ["soft"] } }),
            2 => json!({ "limit": 2 }),
            _ => json!({ "tags": { "none": ["soft"] } }),
        };
        let mut critique = ask.clone();
        critique["draws"] = json!(self.of(Of::Draws, 2) + 1);
        let kind = self.of(Of::Loop, 5);
        if kind < 2 {
            let mut repeat = json!({
                "from": drafts, "times": self.of(Of::Times, 3) + 1, "principles": selector,
                "replacement": self.of(Of::Replacement, 2) == 0, "critique": critique, "revise": ask,
            });
            if kind == 1 {
                repeat["critique"] = json!("none");
            } else if self.of(Of::SkipIf, 2) == 1 {
                repeat["skip_if"] = json!("yes|no");
            }
            add("revisions", "repeat", repeat);
            return "revisions";
        }
        let mut revise = ask;
        if kind == 4 {
            revise["from"] = json!(drafts);
            revise["principles"] = selector;
        } else {
            critique["from"] = json!(drafts);
            critique["principles"] = selector;
            add("critiques", "critique", critique);
            revise["from"] = json!("critiques");
        }
        if kind == 3 {
            add(
                "telling",
                "filter",
                json!({ "from": "critiques", "drop": ["too_long"], "max_tokens": 5 }),
            );
            revise["from"] = json!("telling");
        }
        add("revisions", "revise", revise);
        "revisions"
    }

    fn trained(&self, prompts: &str, revisions: &str, add: &mut dyn FnMut(&str, &str, Value)) {
        let mut source = json!({ "rows": revisions });
        match self.of(Of::Mix, 5) {
            0 => {}
            1 => source["rounds"] = json!("last"),
            2 => source["rounds"] = json!({ "up_to": 1 }),
            3 => source["share"] = json!(0.5),
            _ => source["count"] = json!(3),
        }
        let mut sources = vec![source];
        let demos = self.of(Of::Demos, 3);
        if demos > 0 {
            add("demos", "sample", json!({ "from": "helpful", "model": "assistant", "n": demos }));
            sources.push(json!({ "rows": "demos", "weight": 0.5 }));
        }
        add("sl_data", "mix", json!({ "from": sources }));
        let train = self.of(Of::Train, 4);
        if train == 0 {
            return;
        }
        let architecture =
            json!({ "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2 });
        let on_change = ["retrain", "hold"][usize::from(self.of(Of::Hold, 2))];
        let init = json!({ "scratch": { "architecture": architecture } });
        add("sl", "train-sl", json!({ "from": "sl_data", "init": init, "on_change": on_change }));
        if train > 1 {
            add("pm", "train-pm", json!({ "from": "preferences", "init": "sl" }));
        }
        if train > 2 {
            add(
                "rl",
                "ppo-update",
                json!({ "prompts": prompts, "policy": "sl", "reward": "pm", "total_episodes": 8, "batch_size": 8 }),
            );
            add("after", "sample", json!({ "from": "helpful", "model": "rl" }));
        }
    }

    fn judged(&self, prompts: &str, add: &mut dyn FnMut(&str, &str, Value)) {
        let by_sl = self.of(Of::PairsModel, 2) == 1 && self.of(Of::Train, 4) > 0;
        let n = [2, 4][usize::from(self.of(Of::PairsN, 2))];
        let model = if by_sl { "sl" } else { "assistant" };
        add("pairs", "sample", json!({ "from": prompts, "model": model, "n": n }));
        let filter = match self.of(Of::PairFilter, 3) {
            0 => None,
            1 => Some(
                json!({ "from": "pairs", "dedupe": { "by": ["prompt", "completion"] }, "on_drop": "drop" }),
            ),
            _ => Some(json!({ "from": "pairs", "drop": ["too_long"], "max_tokens": 6 })),
        };
        let from = if filter.is_some() { "fit" } else { "pairs" };
        if let Some(filter) = filter {
            add("fit", "filter", filter);
        }
        let order = ["both", "fixed", "random"][usize::from(self.of(Of::Order, 3))];
        let labels = ["soft", "hard"][usize::from(self.of(Of::Labels, 2))];
        let pairs = ["adjacent", "all"][usize::from(self.of(Of::Pairs, 2))];
        let min_label_mass = [0.0, 0.3][usize::from(self.of(Of::Judge, 2))];
        let mut judge = json!({
            "from": from, "model": "assistant", "order": order, "labels": labels, "pairs": pairs,
            "draws": self.of(Of::JudgeDraws, 2) + 1, "min_label_mass": min_label_mass,
        });
        match self.of(Of::Cot, 3) {
            0 => {}
            1 => judge["cot"] = json!({ "samples": 1 }),
            _ => judge["cot"] = json!({ "samples": 2, "temperature": 0.0 }),
        }
        match self.of(Of::JudgeShots, 4) {
            0 => {}
            shots => {
                let principles = ["per_bucket", "fixed", "per_row"][usize::from(shots) - 1];
                judge["few_shot"] = json!({ "count": 1, "principles": principles });
            }
        }
        add("preferences", "pairwise-judge", judge);
    }
}
