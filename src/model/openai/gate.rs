//! The gate before a server: lets requests through as its [`window`](super::window) says, oldest
//! first, and those that were refused before all others.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::http;
use super::window::{Ticket, Window};

/// The gate before a server.
pub(super) struct Gate {
    state: Mutex<State>,
}

struct State {
    window: Window,
    waiting: VecDeque<oneshot::Sender<Ticket>>,
    /// Whether a task waits for the end of the pause.
    timed: bool,
}

/// A request that is through the gate; dropping it is a failure that says nothing of the window.
pub(super) struct Pass {
    gate: Arc<Gate>,
    ticket: Option<Ticket>,
}

impl Gate {
    pub(super) fn new(max: usize) -> Arc<Gate> {
        let state = State { window: Window::new(max), waiting: VecDeque::new(), timed: false };
        Arc::new(Gate { state: Mutex::new(state) })
    }

    /// Waits until a request may be sent; `again` says that it was refused before.
    pub(super) async fn enter(self: &Arc<Gate>, again: bool) -> Pass {
        let turn = {
            let mut state = self.state();
            let direct =
                if state.waiting.is_empty() { state.window.send(Instant::now()) } else { None };
            if let Some(ticket) = direct {
                return self.pass(ticket);
            }
            let (sender, turn) = oneshot::channel();
            if again {
                state.waiting.push_front(sender);
            } else {
                state.waiting.push_back(sender);
            }
            self.admit(&mut state);
            turn
        };
        let ticket =
            turn.await.expect("a waiting request is let through or dropped, not forgotten");
        self.pass(ticket)
    }

    fn pass(self: &Arc<Gate>, ticket: Ticket) -> Pass {
        Pass { gate: Arc::clone(self), ticket: Some(ticket) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets through who may go now, and sees to it that the others are looked at again.
    fn admit(self: &Arc<Gate>, state: &mut State) {
        let now = Instant::now();
        while !state.waiting.is_empty() {
            let Some(ticket) = state.window.send(now) else { break };
            let next = state.waiting.pop_front().expect("it is not empty");
            if let Err(ticket) = next.send(ticket) {
                state.window.failed(ticket);
            }
        }
        let Some(until) = state.window.paused_until().filter(|until| *until > now) else { return };
        if !state.waiting.is_empty() && !state.timed {
            state.timed = true;
            let gate = Arc::clone(self);
            http::runtime().spawn(async move {
                tokio::time::sleep_until(until.into()).await;
                let mut state = gate.state();
                state.timed = false;
                gate.admit(&mut state);
            });
        }
    }

    fn settle(self: &Arc<Gate>, settle: impl FnOnce(&mut Window)) {
        let mut state = self.state();
        settle(&mut state.window);
        self.admit(&mut state);
    }
}

impl Pass {
    /// The request was answered.
    pub(super) fn served(mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.gate.settle(|window| window.served(ticket, Instant::now()));
        }
    }

    /// The request was refused: nobody goes through for a while.
    pub(super) fn refused(mut self, pause: Duration) {
        if let Some(ticket) = self.ticket.take() {
            self.gate.settle(|window| window.refused(ticket, Instant::now(), pause));
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.gate.settle(|window| window.failed(ticket));
        }
    }
}
