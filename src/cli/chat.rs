//! `amend chat`: a first look at a local model, one line a turn.

use std::io::{self, BufRead, Write};
use std::sync::mpsc;

use super::args::{ChatArgs, Common};
use super::failure::Status;
use super::local::LocalModel;
use super::screen::Screen;
use crate::model::torch::{Event, Input};
use crate::record::Message;

/// Talks until the input ends.
pub(super) fn run(args: &ChatArgs, common: &Common, screen: Screen) -> anyhow::Result<Status> {
    let model = LocalModel::open(&args.model, common)?;
    let mut messages: Vec<Message> = args.system.iter().map(Message::system).collect();
    if screen.live {
        screen.note(&format!("{} listens; an empty line or Ctrl-D ends", model.name));
    }
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
        let answer =
            answer(
                &model,
                args,
                &messages,
                turn,
                |piece| {
                    if screen.json { Ok(()) } else { print(piece) }
                },
            )?;
        if !screen.json {
            print("\n")?;
        }
        messages.push(Message::assistant(answer));
    }
    if screen.json {
        screen.json(&serde_json::json!({ "model": model.name, "messages": messages }))?;
    }
    Ok(Status::Done)
}

/// What the model answers, shown as it is written.
fn answer(
    model: &LocalModel,
    args: &ChatArgs,
    messages: &[Message],
    turn: u64,
    mut show: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<String> {
    let mut sampling = model.sampling(args.max_tokens);
    sampling.temperature = args.temperature.unwrap_or(sampling.temperature);
    sampling.seed = (!sampling.is_greedy()).then(|| args.seed.wrapping_add(turn));
    let prompt = model.prompt(messages.to_vec(), &mut sampling);
    let (sender, events) = mpsc::channel();
    let listener = move |event| sender.send(event).is_ok();
    model.backend.listen(Input::Prompt(prompt), sampling, 0, Box::new(listener));
    let mut begun = false;
    for event in events {
        match event {
            Event::Piece(piece) => {
                // A transcript's answer begins after a space.
                let text = if begun { piece.text.as_str() } else { piece.text.trim_start() };
                begun |= !text.is_empty();
                show(text)?;
            }
            Event::End(answer) => return Ok(answer?.text.trim().to_owned()),
        }
    }
    anyhow::bail!("the model's thread is gone")
}

/// Writes a piece on stdout at once.
fn print(piece: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(piece.as_bytes())?;
    Ok(stdout.flush()?)
}
