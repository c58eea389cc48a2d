//! HTTP: one runtime for all endpoints of the process, and one request sent and read.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, Response, Url};
use tokio::runtime::{Builder, Runtime};

use super::failure::Failure;
use super::messages;
use super::options::{Dialect, OpenAiError, OpenAiOptions};
use super::pause;
use super::reply::Reply;

/// The largest reply that is read: an echo of a long prompt with its log-probabilities is a tenth.
const REPLY_BYTES_MAX: usize = 32 << 20;
/// The most that is read of a refusal.
const REFUSAL_BYTES_MAX: usize = 64 << 10;

/// The runtime of all endpoints: one thread, which only moves bytes.
pub(super) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("endpoints")
            .enable_all()
            .build()
            .expect("a process that runs can start one more thread")
    })
}

/// When something was: for the table `calls`, and to measure from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp {
    /// Microseconds since 1970.
    pub(super) us: i64,
    pub(super) instant: Instant,
}

impl Stamp {
    pub(super) fn now() -> Stamp {
        #[expect(
            clippy::disallowed_methods,
            reason = "when a call was sent is a column of `calls` and decides nothing"
        )]
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Stamp { us: since_1970.as_micros() as i64, instant: Instant::now() }
    }

    pub(super) fn elapsed_ms(&self) -> f64 {
        self.instant.elapsed().as_secs_f64() * 1e3
    }
}

/// Which route of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Chat,
    Completions,
    Messages,
}

/// The connections to one server.
pub(super) struct Http {
    client: Client,
    chat: Url,
    completions: Url,
    messages: Url,
    headers: HeaderMap,
}

impl Http {
    pub(super) fn new(options: &OpenAiOptions) -> Result<Http, OpenAiError> {
        let chat = options.route("chat/completions")?;
        let completions = options.route("completions")?;
        let to_messages = options.route("messages")?;
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.extend(options.authorization()?);
        if options.dialect == Dialect::Messages {
            headers.insert("anthropic-version", HeaderValue::from_static(messages::VERSION));
        }
        // A provider installed before, by another part of the process, serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut client = Client::builder()
            .pool_max_idle_per_host(options.max_in_flight)
            .connect_timeout(options.timeout.min(std::time::Duration::from_secs(10)))
            .timeout(options.timeout)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false);
        if chat.scheme() == "http" {
            // Loading the system's certificates takes longer than the first answer.
            client = client.tls_certs_only([]);
        }
        if is_loopback(&chat) {
            client = client.no_proxy();
        }
        let client = client.build().map_err(OpenAiError::Http)?;
        Ok(Http { client, chat, completions, messages: to_messages, headers })
    }

    /// Sends a body and reads the reply.
    pub(super) async fn post(&self, route: Route, body: Vec<u8>) -> Result<Reply, Failure> {
        let url = match route {
            Route::Chat => &self.chat,
            Route::Completions => &self.completions,
            Route::Messages => &self.messages,
        };
        let request = self.client.post(url.clone()).headers(self.headers.clone()).body(body).send();
        let response = request.await.map_err(Failure::from_reqwest)?;
        let status = response.status().as_u16();
        if !(200..300).contains(&status) {
            let wait = pause::of_headers(response.headers(), Stamp::now().us / 1_000_000);
            // A refusal whose body does not come is one without words.
            let body = read(response, REFUSAL_BYTES_MAX).await.unwrap_or_default();
            return Err(Failure::from_status(status, &body.bytes, wait));
        }
        let body = read(response, REPLY_BYTES_MAX).await.map_err(Failure::from_reqwest)?;
        if body.is_cut {
            let most = REPLY_BYTES_MAX >> 20;
            let message =
                format!("the server's reply has more than {most} MiB, the most that is read");
            return Err(Failure::Unusable(message, None));
        }
        match route {
            Route::Messages => messages::read(&body.bytes),
            Route::Chat | Route::Completions => {
                Failure::parse(&body.bytes).and_then(Failure::check)
            }
        }
    }
}

/// The bytes of a response, up to a limit.
#[derive(Default)]
struct Read {
    bytes: Vec<u8>,
    /// Whether there were more.
    is_cut: bool,
}

async fn read(mut response: Response, most: usize) -> Result<Read, reqwest::Error> {
    let mut read = Read::default();
    while let Some(chunk) = response.chunk().await? {
        let room = most - read.bytes.len();
        read.bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if chunk.len() > room {
            read.is_cut = true;
            break;
        }
    }
    Ok(read)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}
