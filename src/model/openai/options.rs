//! Options: where an endpoint is, how it is asked, and how long.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};
use serde_json::{Map, Value};

use super::profile::Profiles;

/// What is shorter than this is taken for no secret, where its place alone says that it may be one.
const SECRET_CHARS_MIN: usize = 6;

/// Which protocol an endpoint speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// OpenAI's: `/chat/completions` and `/completions`, and a bearer token.
    #[default]
    OpenAi,
    /// Anthropic's: `/messages`, and the header `x-api-key`.
    Messages,
}

/// Whether and how much a model thinks before it answers, as the Messages API is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thinking {
    /// Not at all.
    Disabled,
    /// At most so many tokens, of those that an answer may take.
    Budget(u32),
    /// As much as the model finds right for an effort, such as "low".
    Effort(&'static str),
}

/// Where an endpoint is, how it is asked, and how long.
#[derive(Clone)]
pub struct OpenAiOptions {
    /// The address, with or without `/v1`.
    pub base_url: String,
    /// The model's name, as the server knows it.
    pub model: String,
    /// Which protocol it speaks.
    pub dialect: Dialect,
    /// The key, sent as a bearer token, or as `x-api-key`.
    pub api_key: Option<Secret>,
    /// The most HTTP requests in flight. Fewer are sent while the server refuses with 429.
    pub max_in_flight: usize,
    /// How often a failed request is sent again. A refusal with 429 is no failure: see
    /// [`OpenAiOptions::refusals`].
    pub retries: u32,
    /// How long the answer to one HTTP request may take.
    pub timeout: Duration,
    /// The wait before the first retry; it doubles with each, up to 60 times this, and is cut by
    /// up to half by a hash of the request.
    pub backoff: Duration,
    /// The longest `Retry-After` that is waited for; a longer one is an outage.
    pub wait_max: Duration,
    /// Alternatives to ask for each token when scoring by `top_logprobs`. 20 is the most that vLLM
    /// and OpenAI's chat list; OpenAI's completions list 5.
    pub alternatives: u32,
    /// Samples to draw when scoring by votes. It decides answers: keep it in the model's
    /// fingerprint when it is not the default.
    pub votes: u32,
    /// Send `top_k` and `min_p` also when they are neutral.
    ///
    /// Servers with sampling defaults of their own (vLLM under a model's `generation_config.json`;
    /// llama.cpp: the 40 likeliest tokens of at least 5 % of the first's probability) apply them to
    /// whatever a request leaves open; hosted ones refuse the unknown parameters.
    pub explicit_sampling: bool,
    /// Arguments of the server's chat template, sent as `chat_template_kwargs`. They decide
    /// answers: keep them in the model's fingerprint.
    pub template_args: Map<String, Value>,
    /// A chat template in place of the server's own; vLLM takes one where it is started with
    /// `--trust-request-chat-template`. It decides answers too.
    pub chat_template: Option<String>,
    /// How much the model thinks before it writes; only for the Messages API. It decides answers too.
    pub thinking: Option<Thinking>,
    /// Where the profile of the endpoint is kept between runs.
    pub profiles: Option<Arc<dyn Profiles>>,
}

impl OpenAiOptions {
    /// Options for a server and a model, with defaults for the rest.
    pub fn new(base_url: impl Into<String>, model: impl Into<String>) -> OpenAiOptions {
        OpenAiOptions {
            base_url: base_url.into(),
            model: model.into(),
            dialect: Dialect::OpenAi,
            api_key: None,
            max_in_flight: 64,
            retries: 5,
            timeout: Duration::from_mins(10),
            backoff: Duration::from_millis(500),
            wait_max: Duration::from_mins(10),
            alternatives: 20,
            votes: 16,
            explicit_sampling: false,
            template_args: Map::new(),
            chat_template: None,
            thinking: None,
            profiles: None,
        }
    }

    /// The most refusals (429, or 503 with `Retry-After`) of one request that are waited out.
    pub fn refusals(&self) -> u32 {
        10 * (self.retries + 1)
    }

    /// The address of a route such as `chat/completions`.
    pub(super) fn route(&self, route: &str) -> Result<Url, OpenAiError> {
        let address = |reason: String| OpenAiError::Address { reason };
        let mut url = Url::parse(self.base_url.trim()).map_err(|error| {
            address(format!("{error}; an address looks like \"http://127.0.0.1:8000\""))
        })?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(address(format!("{:?} is neither http nor https", url.scheme())));
        }
        let path = url.path().trim_end_matches('/');
        let path = path
            .strip_suffix("/chat/completions")
            .or_else(|| path.strip_suffix("/completions"))
            .or_else(|| path.strip_suffix("/messages"))
            .unwrap_or(path);
        let is_version = |segment: &str| {
            segment
                .strip_prefix('v')
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        let version = if path.split('/').any(is_version) { "" } else { "/v1" };
        let path = format!("{path}{version}/{route}");
        url.set_path(&path);
        Ok(url)
    }

    /// The server without user, password, path and query, to be shown.
    pub(super) fn address(&self) -> String {
        let Ok(url) = Url::parse(self.base_url.trim()) else { return "…".to_owned() };
        let host = url.host_str().unwrap_or_default();
        match url.port() {
            Some(port) => format!("{}://{host}:{port}", url.scheme()),
            None => format!("{}://{host}", url.scheme()),
        }
    }

    /// The server with its path, without user, password and query: what a profile is of.
    pub(super) fn server(&self) -> String {
        let path = Url::parse(self.base_url.trim()).map(|url| url.path().to_owned());
        format!("{}{}", self.address(), path.unwrap_or_default().trim_end_matches('/'))
    }

    /// All that is sent and must not be shown: the key, and by their place in the address a user, a
    /// password and the values of the query.
    pub(super) fn secrets(&self) -> Vec<String> {
        let mut secrets: Vec<String> = Vec::new();
        secrets.extend(self.api_key.as_ref().map(|key| key.text().to_owned()));
        if let Ok(url) = Url::parse(self.base_url.trim()) {
            secrets.extend([url.username().to_owned()]);
            secrets.extend(url.password().map(str::to_owned));
            secrets.extend(url.query_pairs().map(|(_, value)| value.into_owned()));
            let raw = url.query().unwrap_or_default().split('&');
            secrets.extend(raw.filter_map(|pair| Some(pair.split_once('=')?.1.to_owned())));
        }
        // A short value, such as the version of an interface, is in many a message by chance.
        secrets.retain(|secret| secret.len() >= SECRET_CHARS_MIN);
        secrets.extend(self.api_key.as_ref().map(|key| key.text().to_owned()));
        secrets.retain(|secret| !secret.is_empty());
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets
    }

    /// The header that carries the key, where there is one.
    pub(super) fn authorization(&self) -> Result<Option<(HeaderName, HeaderValue)>, OpenAiError> {
        let Some(key) = self.api_key.as_ref().filter(|key| !key.text().is_empty()) else {
            return Ok(None);
        };
        let (name, value) = match self.dialect {
            Dialect::OpenAi => (AUTHORIZATION, format!("Bearer {}", key.text())),
            Dialect::Messages => (HeaderName::from_static("x-api-key"), key.text().to_owned()),
        };
        let mut value = HeaderValue::try_from(value).map_err(|_| OpenAiError::Key)?;
        value.set_sensitive(true);
        Ok(Some((name, value)))
    }
}

impl fmt::Debug for OpenAiOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenAiOptions")
            .field("address", &self.address())
            .field("model", &self.model)
            .field("max_in_flight", &self.max_in_flight)
            .field("retries", &self.retries)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// A text that is shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// A secret; white space around it, such as the end of a line of a file, is no part of it.
    pub fn new(text: &str) -> Secret {
        Secret(text.trim().to_owned())
    }

    pub(super) fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"…\"")
    }
}

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum OpenAiError {
    /// The address cannot be read.
    #[error("the endpoint's address cannot be read: {reason}")]
    Address {
        /// Why, without the address: it may hold a password.
        reason: String,
    },
    /// The key cannot be sent.
    #[error("the API key holds characters that no HTTP header can carry, such as a line end")]
    Key,
    /// The HTTP client cannot be built: no certificates, for one.
    #[error("the HTTP client could not be set up")]
    Http(#[source] reqwest::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(base_url: &str, route: &str) {
        let options = OpenAiOptions::new(base_url, "m");
        assert_eq!(options.route("chat/completions").unwrap().as_str(), route);
    }

    #[test]
    fn an_address_works_with_and_without_its_version() {
        check("http://h:8000", "http://h:8000/v1/chat/completions");
        check("http://h:8000/", "http://h:8000/v1/chat/completions");
        check(" http://h:8000/v1/ ", "http://h:8000/v1/chat/completions");
        check("http://h/v1/chat/completions", "http://h/v1/chat/completions");
        check("https://h/v1/messages", "https://h/v1/chat/completions");
        check("https://h/api", "https://h/api/v1/chat/completions");
        check("https://h/v1beta/openai/", "https://h/v1beta/openai/chat/completions");
        check("https://h/v1?api-version=1", "https://h/v1/chat/completions?api-version=1");
    }

    #[test]
    fn a_key_is_not_in_debug_and_a_password_not_in_errors() {
        let mut options = OpenAiOptions::new("ftp://me:sesame@host", "m");
        options.api_key = Some(Secret::new("sk-sesame\n"));
        assert!(!format!("{:?}", options.api_key).contains("sesame"));
        assert!(!format!("{:?}", options.route("x").unwrap_err()).contains("sesame"));
        assert!(options.authorization().unwrap().is_some_and(|(_, value)| value.is_sensitive()));
        options.dialect = Dialect::Messages;
        let (name, value) = options.authorization().unwrap().unwrap();
        assert_eq!((name.as_str(), value.as_bytes()), ("x-api-key", &b"sk-sesame"[..]));
        assert!(value.is_sensitive() && !format!("{value:?}").contains("sesame"));
        options.api_key = Some(Secret::new("sesa\nme"));
        assert!(!format!("{:?}", options.authorization().unwrap_err()).contains("sesa"));
    }

    #[test]
    fn what_is_secret_is_known_by_its_place() {
        let url = "https://me:pass%20word@host/v1?key=AIza%2Bsesame&api-version=1";
        let mut options = OpenAiOptions::new(url, "m");
        options.api_key = Some(Secret::new("k"));
        let secrets = options.secrets();
        for secret in ["pass%20word", "AIza+sesame", "AIza%2Bsesame", "k"] {
            assert!(secrets.iter().any(|one| one == secret), "{secret}: {secrets:?}");
        }
        assert!(!secrets.iter().any(|one| one == "1" || one == "me"), "{secrets:?}");
        assert_eq!(options.server(), "https://host/v1");
    }
}
