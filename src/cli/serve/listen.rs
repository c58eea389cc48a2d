//! Connections: whoever says nothing, or too much, is let go, so that nobody keeps a connection for ever.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse as _, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::wire::Fault;

/// What a client may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// How long it may take to send the head of a request, and to begin the next one.
    pub(super) head: Duration,
    /// How long it may take to send the body.
    pub(super) body: Duration,
    /// The most bytes of a head.
    pub(super) head_bytes: usize,
    /// The most bytes of a body.
    pub(super) body_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            head: Duration::from_secs(30),
            body: Duration::from_mins(1),
            head_bytes: 64 << 10,
            body_bytes: 32 << 20,
        }
    }
}

/// The most headers of a request.
const HEADERS_MAX: usize = 100;

/// How long nobody is let in when a connection cannot be accepted, as without free file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Lets requests through when their body has come whole, and within the limits.
pub(super) fn whole_bodies<S: Clone + Send + Sync + 'static>(
    router: Router<S>,
    limits: Limits,
) -> Router<S> {
    router.layer(from_fn(move |request: Request, next: Next| whole(request, next, limits)))
}

async fn whole(request: Request, next: Next, limits: Limits) -> Response {
    let (head, body) = request.into_parts();
    let refused = |status: u16, message: String| {
        Fault { status, message, param: None, code: None }.into_response()
    };
    match timeout(limits.body, to_bytes(body, limits.body_bytes)).await {
        Ok(Ok(bytes)) => next.run(Request::from_parts(head, Body::from(bytes))).await,
        Ok(Err(error)) => {
            let most = limits.body_bytes >> 20;
            let message = format!("the body was not read: {error} (at most {most} MiB in length)");
            refused(413, message)
        }
        Err(_) => {
            let seconds = limits.body.as_secs();
            refused(408, format!("the body did not come within {seconds} s"))
        }
    }
}

/// Serves until `stopped`, and then until the requests under way are answered.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    stopped: impl Future<Output = ()>,
) {
    let (ending, _) = watch::channel(false);
    let mut stopped = pin!(stopped);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stopped => break,
        };
        match accepted {
            Ok((stream, _)) => {
                tokio::spawn(connection(stream, router.clone(), limits, ending.subscribe()));
            }
            Err(error) => refuse(&error).await,
        }
    }
    drop(listener);
    ending.send_replace(true);
    ending.closed().await;
}

async fn refuse(error: &io::Error) {
    tracing::warn!("a connection was not accepted: {error}");
    sleep(PAUSE).await;
}

async fn connection(
    stream: TcpStream,
    router: Router,
    limits: Limits,
    mut ending: watch::Receiver<bool>,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_headers(HEADERS_MAX)
        .max_buf_size(limits.head_bytes);
    let service = TowerToHyperService::new(router);
    // As long as this is held, the server waits for the connection.
    let held = ending.clone();
    let ends = async move { drop(ending.wait_for(|ending| *ending).await) };
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = ends => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    // What a client did to its connection is no fault of the server.
    if let Err(error) = ended {
        tracing::debug!("a connection ended: {error}");
    }
    drop(held);
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net;
    use std::thread;

    use axum::routing::post;
    use tokio::sync::oneshot;

    use super::*;

    const LIMITS: Limits = Limits {
        head: Duration::from_millis(300),
        body: Duration::from_millis(300),
        head_bytes: 8 << 10,
        body_bytes: 1 << 20,
    };

    /// What a server says that is sent so much and nothing more, until it lets the client go.
    fn said_to(sent: &[u8]) -> String {
        let listener = net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                let echo = post(|body: String| async move { body });
                let router = whole_bodies(Router::new().route("/", echo), LIMITS);
                serve(listener, router, LIMITS, async move { drop(stopped.await) }).await;
            });
        });
        let mut client = net::TcpStream::connect(address).unwrap();
        client.write_all(sent).unwrap();
        let mut said = Vec::new();
        // A server that closes before all was read resets the connection.
        drop(client.read_to_end(&mut said));
        drop(stop);
        server.join().unwrap();
        String::from_utf8_lossy(&said).into_owned()
    }

    #[test]
    fn whoever_does_not_finish_a_head_or_sends_nothing_is_let_go() {
        for head in ["", "POST / HTTP/1.1\r\n", "POST / HTTP/1.1\r\nHost: x\r\nX-More: "] {
            let said = said_to(head.as_bytes());
            assert!(!said.contains("200 OK"), "{said}");
        }
        let idle = said_to(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi");
        assert!(idle.contains("200 OK") && idle.ends_with("hi"), "{idle}");
    }

    #[test]
    fn a_body_that_does_not_come_or_is_too_long_is_refused() {
        let slow = said_to(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nhi");
        assert!(slow.contains("408") && slow.contains("did not come"), "{slow}");
        let long = said_to(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\nhi");
        assert!(long.contains("413") || long.contains("408"), "{long}");
    }

    #[test]
    fn a_head_that_is_too_long_is_refused() {
        let long = format!("POST / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(64 << 10));
        let said = said_to(long.as_bytes());
        assert!(!said.contains("200 OK"), "{said}");
        let many = format!("POST / HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: y\r\n".repeat(200));
        assert!(!said_to(many.as_bytes()).contains("200 OK"));
    }
}
