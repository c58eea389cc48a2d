//! `amend serve`: a local model behind the interface of OpenAI, for other tools.
//!
//! It listens on this machine alone unless told otherwise, and then asks for a token.

mod answer;
mod api;
mod wire;

use std::net::{SocketAddr, TcpListener};

use super::args::{Common, ServeArgs};
use super::failure::{Status, Usage};
use super::local::LocalModel;
use super::screen::Screen;

/// Serves until Ctrl-C.
pub(super) fn run(args: &ServeArgs, common: &Common, screen: Screen) -> anyhow::Result<Status> {
    if !args.host.is_loopback() && args.api_key.is_none() {
        let message =
            format!("--host {} lets whoever reaches this machine ask the model", args.host);
        let help = "give a token with --api-key or AMEND_API_KEY, or serve on 127.0.0.1";
        return Err(Usage::new(message).help(help).into());
    }
    let model = LocalModel::open(&args.model, common)?;
    let name = args.name.clone().unwrap_or_else(|| model.name.clone());
    let listener = TcpListener::bind(SocketAddr::new(args.host, args.port))?;
    listener.set_nonblocking(true)?;
    let url = format!("http://{}/v1", listener.local_addr()?);
    if screen.json {
        screen.json(&serde_json::json!({ "url": url, "model": name }))?;
    } else {
        screen.text(&format!("serving {name} at {url}"))?;
    }
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let mut stop = Some(stop);
    ctrlc::set_handler(move || drop(stop.take()))?;
    let state = api::Served::new(model, name, args.api_key.as_deref(), super::options::now_ms());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let stopped = async move { drop(stopped.await) };
        axum::serve(listener, api::router(state)).with_graceful_shutdown(stopped).await
    })?;
    Ok(Status::Done)
}
