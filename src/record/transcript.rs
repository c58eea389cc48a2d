//! A transcript: the paper's text form of a conversation, `\n\nHuman: …\n\nAssistant: …`.
//!
//! ```
//! use amend::record::{Message, transcript};
//! let turns = transcript::parse("\n\nHuman: hi\n\nAssistant: hello").unwrap();
//! assert_eq!(turns, [Message::user("hi"), Message::assistant("hello")]);
//! ```

use super::message::Message;

/// What comes before a turn of the human.
pub const HUMAN: &str = "\n\nHuman:";

/// What comes before a turn of the assistant.
pub const ASSISTANT: &str = "\n\nAssistant:";

/// Why a text is not a transcript.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TranscriptError {
    /// It begins with something else.
    #[error("the text does not begin with \"\\n\\nHuman:\" or \"\\n\\nAssistant:\"")]
    Beginning,
}

/// Whether a text looks like a transcript: its first words are `Human:`.
pub fn is_transcript(text: &str) -> bool {
    text.trim_start().starts_with("Human:")
}

/// The turns of a transcript. One space after the colon belongs to the form; the rest is content.
///
/// Newlines before the first marker may be fewer than two or more.
pub fn parse(text: &str) -> Result<Vec<Message>, TranscriptError> {
    let text = text.trim_start_matches('\n');
    let Some((mut role, mut rest)) = marker(text) else { return Err(TranscriptError::Beginning) };
    let mut turns = Vec::new();
    loop {
        let at = [HUMAN, ASSISTANT].into_iter().filter_map(|name| rest.find(name)).min();
        let next = at.and_then(|at| marker(&rest[at + 2..]).map(|(role, after)| (at, role, after)));
        let content = next.map_or(rest, |(at, _, _)| &rest[..at]);
        let content = content.strip_prefix(' ').unwrap_or(content);
        turns.push(Message { role: role.to_owned(), content: content.to_owned() });
        match next {
            Some((_, next_role, after)) => (role, rest) = (next_role, after),
            None => return Ok(turns),
        }
    }
}

fn marker(text: &str) -> Option<(&'static str, &str)> {
    let human = text.strip_prefix("Human:").map(|rest| ("user", rest));
    human.or_else(|| text.strip_prefix("Assistant:").map(|rest| ("assistant", rest)))
}

/// Writes one turn. A system message is a paragraph of its own, without a name.
pub fn push_turn(text: &mut String, role: &str, content: &str) {
    match role {
        "user" => text.push_str(HUMAN),
        "assistant" => text.push_str(ASSISTANT),
        "system" => {
            text.push_str("\n\n");
            text.push_str(content);
            return;
        }
        other => {
            text.push_str("\n\n");
            text.push_str(other);
            text.push(':');
        }
    }
    text.push(' ');
    text.push_str(content);
}

/// The transcript of some turns.
pub fn render<'a>(turns: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = String::new();
    turns.into_iter().for_each(|(role, content)| push_turn(&mut text, role, content));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn again(text: &str) -> String {
        let turns = parse(text).unwrap();
        render(turns.iter().map(|turn| (turn.role.as_str(), turn.content.as_str())))
    }

    #[test]
    fn a_transcript_is_written_as_it_was_read() {
        for text in [
            "\n\nHuman: hi\n\nAssistant: hello",
            "\n\nHuman: a\n\nb Human: c\n\nAssistant:  two spaces \n\n\nHuman: ",
            "\n\nHuman: é\n\nAssistant: \n\nAssistant: twice",
        ] {
            assert_eq!(again(text), text);
        }
    }

    #[test]
    fn newlines_at_the_beginning_are_forgiven_and_other_words_are_not() {
        assert_eq!(again("Human: hi"), "\n\nHuman: hi");
        assert_eq!(again("\n\n\nHuman:hi"), "\n\nHuman: hi");
        assert_eq!(parse("hi"), Err(TranscriptError::Beginning));
    }
}
