//! `amend serve`: a local model behind the interface of OpenAI, for other tools.
//!
//! It listens on this machine alone unless told otherwise, and then asks for a token.
//! At Ctrl-C it takes no more requests, and gives those under way a few seconds.

mod answer;
mod api;
mod listen;
mod wire;

use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;

use super::args::{Common, ServeArgs};
use super::end;
use super::failure::{Status, Usage};
use super::local::LocalModel;
use super::screen::Screen;

/// How long requests under way may take after the first Ctrl-C.
const GRACE: Duration = Duration::from_secs(5);

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
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    heed_ctrl_c(stop, screen)?;
    let url = format!("http://{}/v1", listener.local_addr()?);
    if screen.json {
        screen.json(&serde_json::json!({ "url": url, "model": name }))?;
    } else {
        screen.text(&format!("serving {name} at {url}"))?;
    }
    let state = api::Served::new(model, name, args.api_key.as_deref(), super::options::now_ms());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let stopped = async move { drop(stopped.await) };
        let limits = listen::Limits::default();
        listen::serve(listener, api::router(state, limits), limits, stopped).await;
        std::io::Result::Ok(())
    })?;
    Ok(Status::Done)
}

/// From now on the first Ctrl-C drops `stop`, and lets requests under way come to their end for a
/// while; the second ends the process.
fn heed_ctrl_c(stop: tokio::sync::oneshot::Sender<()>, screen: Screen) -> anyhow::Result<()> {
    let mut stop = Some(stop);
    let heed = move || {
        let Some(stop) = stop.take() else { end::at_once(Status::Interrupted) };
        drop(stop);
        if !screen.quiet {
            let seconds = GRACE.as_secs();
            screen.note(&format!(
                "stopping; requests under way have {seconds} s (again to end at once)"
            ));
        }
        // The process ends before, if nothing is under way any more.
        drop(thread::spawn(|| {
            thread::sleep(GRACE);
            end::at_once(Status::Interrupted);
        }));
    };
    Ok(ctrlc::set_handler(heed)?)
}
