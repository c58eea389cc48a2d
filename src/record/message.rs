//! A message of a conversation, as Hugging Face and TRL write it.

use serde::{Deserialize, Serialize};

/// The role of a text that is nobody's turn: a model reads and writes it as it stands.
pub const TEXT: &str = "text";

/// One turn: who speaks, and what is said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, or [`TEXT`].
    pub role: String,
    /// The text of the turn.
    pub content: String,
}

impl Message {
    /// A turn of the human.
    pub fn user(content: impl Into<String>) -> Message {
        Message { role: "user".to_owned(), content: content.into() }
    }

    /// A turn of the assistant.
    pub fn assistant(content: impl Into<String>) -> Message {
        Message { role: "assistant".to_owned(), content: content.into() }
    }

    /// A text that is read and written as it stands.
    pub fn text(content: impl Into<String>) -> Message {
        Message { role: TEXT.to_owned(), content: content.into() }
    }

    /// A system message.
    pub fn system(content: impl Into<String>) -> Message {
        Message { role: "system".to_owned(), content: content.into() }
    }
}
