//! The profile of an endpoint: what a model at a server takes and offers, learnt from its own
//! replies and kept beside the memo.
//!
//! It decides what is sent, and is part of no call's key.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::wire::{Body, Parameter};
use crate::model::request::Estimator;

/// Refusals that are kept.
const REFUSALS_MAX: usize = 16;

/// Where profiles are kept between runs.
pub trait Profiles: Send + Sync {
    /// What was saved under a name.
    fn load(&self, name: &str) -> Option<String>;

    /// Keeps a text under a name, in place of what was there. A failure costs no more than that the
    /// next run learns the same again.
    fn save(&self, name: &str, text: &str);
}

/// What is known of a model at a server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Known {
    /// The server, without user, password and query.
    pub(super) server: String,
    /// The model's name there.
    pub(super) model: String,
    /// Parameters that were sent and answered.
    pub(super) accepted: BTreeSet<String>,
    /// Parameters that are refused, and so left out.
    pub(super) refused: BTreeSet<String>,
    /// The most alternatives that are listed for a token.
    pub(super) logprobs_max: Option<u32>,
    /// The most stop texts of a request.
    pub(super) stop_max: Option<u32>,
    /// The best estimator of label probabilities, by route: `chat`, `completions`.
    pub(super) estimators: BTreeMap<String, Estimator>,
    /// What the server said when it refused, with the status.
    pub(super) refusals: Vec<(u16, String)>,
}

/// The profile of one endpoint, shared by its requests.
pub(super) struct Profile {
    name: String,
    kept: Option<Arc<dyn Profiles>>,
    known: Mutex<Known>,
}

impl Profile {
    /// The profile of a model at a server, as far as it was kept.
    pub(super) fn open(
        name: String,
        server: &str,
        model: &str,
        kept: Option<Arc<dyn Profiles>>,
    ) -> Profile {
        let text = kept.as_ref().and_then(|kept| kept.load(&name));
        let known = text.and_then(|text| match serde_json::from_str::<Known>(&text) {
            Ok(known) => Some(known),
            Err(error) => {
                tracing::warn!(
                    "the profile of {server} cannot be read, and is learnt again: {error}"
                );
                None
            }
        });
        let known = known.filter(|known| known.server == server && known.model == model);
        let known = known.unwrap_or_else(|| Known {
            server: server.to_owned(),
            model: model.to_owned(),
            ..Known::default()
        });
        Profile { name, kept, known: Mutex::new(known) }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known, and keeps it where it changed. Whether it did.
    fn learn(&self, change: impl FnOnce(&mut Known)) -> bool {
        let mut known = self.lock();
        let before = known.clone();
        change(&mut known);
        let is_new = *known != before;
        if let (true, Some(kept)) = (is_new, &self.kept) {
            let text = serde_json::to_string_pretty(&*known).expect("a profile has no odd keys");
            kept.save(&self.name, &text);
        }
        is_new
    }

    /// Makes a body one that the server takes. Gives the parameters left out that decide answers.
    pub(super) fn shape(&self, body: &mut Body<'_>) -> Vec<Parameter> {
        let known = self.lock();
        if let Some(most) = known.logprobs_max {
            body.limit_logprobs(most);
        }
        if let Some(most) = known.stop_max {
            body.stop = &body.stop[..body.stop.len().min(most as usize)];
        }
        if known.refused.is_empty() {
            return Vec::new();
        }
        let mut missed = Vec::new();
        for parameter in Parameter::ALL {
            if body.has(parameter)
                && known.refused.contains(parameter.names()[0])
                && can_omit(parameter, body)
            {
                if is_missed(parameter, body) {
                    missed.push(parameter);
                }
                body.omit(parameter);
            }
        }
        missed
    }

    /// A body was answered.
    pub(super) fn accepted(&self, body: &Body<'_>) {
        let is_new = {
            let known = self.lock();
            let mut sent = Parameter::ALL.into_iter().filter(|one| body.has(*one));
            sent.any(|one| !known.accepted.contains(one.names()[0]))
        };
        if is_new {
            self.learn(|known| {
                let sent = Parameter::ALL.into_iter().filter(|one| body.has(*one));
                known.accepted.extend(sent.map(|one| one.names()[0].to_owned()));
            });
        }
    }

    /// Whether a request was ever answered.
    pub(super) fn has_answered(&self) -> bool {
        !self.lock().accepted.is_empty()
    }

    /// A parameter is refused. Whether that is news.
    pub(super) fn refused(&self, parameter: Parameter) -> bool {
        let name = parameter.names()[0];
        let is_known = self.lock().refused.contains(name);
        !is_known
            && self.learn(|known| {
                known.refused.insert(name.to_owned());
            })
    }

    /// Fewer alternatives or stop texts are taken.
    pub(super) fn limited(&self, parameter: Parameter, most: u32) {
        self.learn(|known| {
            let limit = match parameter {
                Parameter::Stop => &mut known.stop_max,
                _ => &mut known.logprobs_max,
            };
            *limit = Some(limit.map_or(most, |before| before.min(most)));
        });
    }

    /// The server said no for good.
    pub(super) fn said(&self, status: u16, message: &str) {
        let is_known = |known: &Known| {
            known.refusals.len() >= REFUSALS_MAX
                || known.refusals.iter().any(|(code, text)| *code == status && text == message)
        };
        if !is_known(&self.lock()) {
            self.learn(|known| known.refusals.push((status, message.to_owned())));
        }
    }

    /// The estimator that was found for a route.
    pub(super) fn estimator(&self, route: &str) -> Option<Estimator> {
        self.lock().estimators.get(route).copied()
    }

    /// The best estimator of a route was found out.
    pub(super) fn offers(&self, route: &str, estimator: Estimator) {
        self.learn(|known| {
            known.estimators.insert(route.to_owned(), estimator);
        });
    }
}

/// Whether a request without the parameter is still the request that was meant, or nearly: one that
/// states a default; a stop text, at which the answer is cut here; a seed or a temperature, with a
/// warning. All others are settings, and a server that does not take them is no server for them.
pub(super) fn can_omit(parameter: Parameter, body: &Body<'_>) -> bool {
    body.is_default(parameter)
        || matches!(
            parameter,
            Parameter::Seed | Parameter::Temperature | Parameter::Stop | Parameter::MaxTokens
        )
}

/// Whether leaving the parameter out changes the answer.
pub(super) fn is_missed(parameter: Parameter, body: &Body<'_>) -> bool {
    matches!(parameter, Parameter::Seed | Parameter::Temperature) && !body.is_default(parameter)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap as Map;

    use super::*;

    /// Profiles in memory.
    #[derive(Default)]
    struct Shelf(Mutex<Map<String, String>>);

    impl Profiles for Shelf {
        fn load(&self, name: &str) -> Option<String> {
            self.0.lock().unwrap().get(name).cloned()
        }

        fn save(&self, name: &str, text: &str) {
            self.0.lock().unwrap().insert(name.to_owned(), text.to_owned());
        }
    }

    fn open(shelf: &Arc<Shelf>, model: &str) -> Profile {
        let shelf: Arc<dyn Profiles> = Arc::<Shelf>::clone(shelf);
        Profile::open("p".to_owned(), "http://h", model, Some(shelf))
    }

    #[test]
    fn what_was_learnt_is_known_to_the_next_process_and_to_no_other_model() {
        let shelf = Arc::default();
        let profile = open(&shelf, "m");
        assert!(profile.refused(Parameter::Seed), "news");
        assert!(!profile.refused(Parameter::Seed), "known");
        profile.limited(Parameter::TopLogprobs, 5);
        profile.offers("chat", Estimator::Votes);
        let stop = ["a".to_owned()];
        let meant = Body {
            seed: Some(7),
            temperature: Some(0.5),
            top_logprobs: Some(20),
            stop: &stop,
            ..Body::default()
        };
        let mut body = meant.clone();
        assert_eq!(open(&shelf, "m").shape(&mut body), [Parameter::Seed]);
        assert_eq!((body.seed, body.top_logprobs, body.stop.len()), (None, Some(5), 1));
        assert_eq!(open(&shelf, "m").estimator("chat"), Some(Estimator::Votes));
        let mut body = meant.clone();
        assert_eq!(open(&shelf, "other").shape(&mut body), []);
        assert_eq!(body.seed, Some(7));
        shelf.save("p", "{");
        assert_eq!(open(&shelf, "m").shape(&mut meant.clone()), [], "a damaged profile is none");
    }

    #[test]
    fn a_default_is_left_out_silently_and_a_setting_never() {
        let profile = Profile::open("p".to_owned(), "s", "m", None);
        for parameter in [Parameter::TopP, Parameter::Temperature, Parameter::TopK] {
            profile.refused(parameter);
        }
        let mut body =
            Body { top_p: Some(1.0), temperature: Some(1.0), top_k: Some(40), ..Body::default() };
        assert_eq!(profile.shape(&mut body), []);
        assert_eq!((body.top_p, body.temperature, body.top_k), (None, None, Some(40)));
        let mut body = Body { top_p: Some(0.9), temperature: Some(0.0), ..Body::default() };
        assert_eq!(profile.shape(&mut body), [Parameter::Temperature]);
        assert_eq!((body.top_p, body.temperature), (Some(0.9), None));
    }
}
