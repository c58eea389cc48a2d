//! `amend chat`: a first look at a local model, one line a turn.
//!
//! Ctrl-C cuts an answer short; a second one, or one while nothing is written, ends.

use std::io::{self, BufRead, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::args::{ChatArgs, Common};
use super::end;
use super::failure::Status;
use super::local::LocalModel;
use super::screen::Screen;
use crate::model::torch::{Event, Input};
use crate::query::shown::shown;
use crate::record::Message;

/// How often a model that writes nothing yet is looked away from, to see whether it is to stop.
const LOOK: Duration = Duration::from_millis(50);

/// The answer that is being written, if one is: set when it is to be cut short.
type Writing = Arc<Mutex<Option<Arc<AtomicBool>>>>;

/// Talks until the input ends.
pub(super) fn run(args: &ChatArgs, common: &Common, screen: Screen) -> anyhow::Result<Status> {
    let model = LocalModel::open(&args.model, common)?;
    let mut messages: Vec<Message> = args.system.iter().map(Message::system).collect();
    if screen.live {
        screen.note(&format!("{} listens; an empty line or Ctrl-D ends", model.name));
    }
    let writing = Writing::default();
    heed_ctrl_c(&writing)?;
    let mut status = Status::Done;
    let mut lines = io::stdin().lock().lines();
    for turn in 0u64.. {
        if screen.live {
            write!(io::stderr(), "> ")?;
            io::stderr().flush()?;
        }
        let Some(line) = lines.next().transpose()?.filter(|line| !line.trim().is_empty()) else {
            break;
        };
        messages.push(Message::user(line));
        let cut = Arc::<AtomicBool>::default();
        *writing.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&cut));
        let show = |piece: &str| if screen.json { Ok(()) } else { print(piece) };
        let answer = answer(&model, args, &messages, turn, &cut, show)?;
        *writing.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if !screen.json {
            print("\n")?;
        }
        messages.push(Message::assistant(answer));
        // Nobody is there to go on.
        if cut.load(Ordering::Acquire) && !screen.live {
            status = Status::Interrupted;
            break;
        }
    }
    if screen.json {
        screen.json(&serde_json::json!({ "model": model.name, "messages": messages }))?;
    }
    Ok(status)
}

/// From now on Ctrl-C cuts the answer that is being written short, once, and else ends the process.
fn heed_ctrl_c(writing: &Writing) -> anyhow::Result<()> {
    let writing = Arc::clone(writing);
    let heed = move || {
        let writing = writing.lock().unwrap_or_else(PoisonError::into_inner);
        if writing.as_ref().is_none_or(|cut| cut.swap(true, Ordering::AcqRel)) {
            end::at_once(Status::Interrupted);
        }
    };
    Ok(ctrlc::set_handler(heed)?)
}

/// What the model answers, shown as it is written; what it wrote so far when it is cut short.
fn answer(
    model: &LocalModel,
    args: &ChatArgs,
    messages: &[Message],
    turn: u64,
    cut: &Arc<AtomicBool>,
    mut show: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<String> {
    let mut sampling = model.sampling(args.max_tokens);
    sampling.temperature = args.temperature.unwrap_or(sampling.temperature);
    sampling.seed = (!sampling.is_greedy()).then(|| args.seed.wrapping_add(turn));
    let prompt = model.prompt(messages.to_vec(), &mut sampling);
    let (sender, events) = mpsc::channel();
    let is_cut = Arc::clone(cut);
    let listener = move |event| !is_cut.load(Ordering::Acquire) && sender.send(event).is_ok();
    model.backend.listen(Input::Prompt(prompt), sampling, 0, Box::new(listener));
    let mut written = String::new();
    loop {
        if cut.load(Ordering::Acquire) {
            return Ok(written.trim_end().to_owned());
        }
        match events.recv_timeout(LOOK) {
            Ok(Event::Piece(piece)) => {
                // A transcript's answer begins after a space.
                let begun = !written.is_empty();
                let text = if begun { piece.text.as_str() } else { piece.text.trim_start() };
                written.push_str(text);
                show(text)?;
            }
            Ok(Event::End(answer)) => return Ok(answer?.text.trim().to_owned()),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) if cut.load(Ordering::Acquire) => {}
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the model's thread is gone"),
        }
    }
}

/// Writes a piece on stdout at once.
fn print(piece: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(shown(piece).as_bytes())?;
    Ok(stdout.flush()?)
}
