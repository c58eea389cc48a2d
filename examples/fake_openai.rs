//! The fake server of the tests, to be run by hand or by a benchmark: `cargo run --example
//! fake_openai`. It prints where it listens, and ends when its standard input does.

#[path = "../tests/support/fake_dialects.rs"]
#[expect(dead_code, reason = "the tests alone list the dialects")]
mod fake_dialects;
#[path = "../tests/support/fake_messages.rs"]
mod fake_messages;
#[path = "../tests/support/fake_model.rs"]
mod fake_model;
#[path = "../tests/support/fake_openai.rs"]
mod fake_openai;
#[path = "../tests/support/fake_openai_replies.rs"]
mod fake_openai_replies;

fn main() {
    fake_openai::serve();
}
