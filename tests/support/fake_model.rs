//! A fake model for tests: what it says is a function of what it reads, by a hash.
//!
//! Its tokens are words and signs. After an opening bracket it means one of the letters `A` to `D`
//! with probabilities that a hash of the text before decides, so that `echo`, `prompt_logprobs`
//! and `top_logprobs` agree to the last digit. Markers in a prompt steer it: `[[empty]]`,
//! `[[refuse]]`, `[[echo:TEXT]]`; the last one counts.

/// Probability that the fake means one of the letters after an opening bracket.
pub(crate) const LABEL_MASS: f64 = 0.95;

const WORDS: &[&str] = &[
    "the",
    "a",
    "kind",
    "harmless",
    "honest",
    "helpful",
    "answer",
    "question",
    "person",
    "reply",
    "should",
    "could",
    "explain",
    "avoid",
    "consider",
    "safety",
    "advice",
    "clearly",
    "instead",
    "because",
    "respect",
    "privacy",
    "law",
    "risk",
    "care",
    "doctor",
    "friend",
    "reason",
    "and",
    "or",
    "with",
    "without",
    "about",
    "revise",
    "critique",
    "principle",
    "better",
    "never",
];

/// A number that is a function of the parts: the same everywhere and always.
pub(crate) fn hash(parts: &[&str]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let bytes = *hasher.finalize().as_bytes();
    u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"))
}

/// The same as a number in [0, 1).
fn share(parts: &[&str]) -> f64 {
    (hash(parts) >> 11) as f64 / (1u64 << 53) as f64
}

/// What the fake writes after `prompt` in answer to the request `body`: a label where there is
/// room for no more.
pub(crate) fn write(prompt: &str, body: &str, max_tokens: usize) -> String {
    if let Some(said) = steered(prompt) {
        return said;
    }
    if max_tokens <= 8 {
        return vote(prompt, body).to_owned();
    }
    let mut state = hash(&["text", body]);
    let n_words = 12 + state % 40;
    let mut words = Vec::new();
    for _ in 0..n_words {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        words.push(WORDS[(state >> 33) as usize % WORDS.len()]);
    }
    format!("{}.", words.join(" "))
}

fn steered(prompt: &str) -> Option<String> {
    let (_, from_last) = prompt.rsplit_once("[[")?;
    let (marker, _) = from_last.split_once("]]")?;
    match marker.split_once(':') {
        Some(("echo", text)) => Some(text.to_owned()),
        None if marker == "empty" => Some(String::new()),
        None if marker == "refuse" => Some("I am sorry, but I cannot help with that.".to_owned()),
        _ => None,
    }
}

/// The label that the fake votes for, drawn by the request: `(A)`, `(B)`, or something else in
/// the share that its label mass leaves.
fn vote(prompt: &str, body: &str) -> &'static str {
    let drawn = share(&["vote", body]);
    let before = format!("{prompt} (");
    let a = logprob(&before, "A").exp();
    let b = logprob(&before, "B").exp();
    match drawn {
        _ if drawn < a => "(A)",
        _ if drawn < a + b => "(B)",
        _ => "Neither of them.",
    }
}

/// The tokens of a text, which spell it: words with the space before them, runs of signs with the
/// space before them, and other white space.
pub(crate) fn tokens(text: &str) -> Vec<&str> {
    let kind = |c: char| match c {
        _ if c.is_alphanumeric() => 0,
        _ if c.is_whitespace() => 1,
        '(' => 2,
        _ => 3,
    };
    let mut tokens = Vec::new();
    let mut begin = 0;
    let mut last: Option<char> = None;
    for (at, c) in text.char_indices() {
        // A space belongs to what follows it; every opening bracket stands alone.
        let joins = last.is_some_and(|last| {
            (last == ' ' && kind(c) != 1) || (kind(last) == kind(c) && kind(c) != 2 && c != ' ')
        });
        if !joins && at > begin {
            tokens.push(&text[begin..at]);
            begin = at;
        }
        last = Some(c);
    }
    if begin < text.len() {
        tokens.push(&text[begin..]);
    }
    tokens
}

/// The log-probability of a token after a text.
pub(crate) fn logprob(before: &str, token: &str) -> f64 {
    if !before.ends_with('(') {
        return if token == ")" { -0.01 } else { -4.0 * share(&["token", token]) - 0.1 };
    }
    // White space before the bracket is no matter: chat templates trim it.
    let context = before.trim_end_matches('(').trim_end();
    match token {
        "A" | "B" => {
            let a = 0.02 + 0.96 * share(&["label", context]);
            (LABEL_MASS * 0.999 * if token == "A" { a } else { 1.0 - a }).ln()
        }
        "C" | "D" => (LABEL_MASS * 0.0005).ln(),
        _ => -12.0,
    }
}

/// What could stand after a text, the likeliest first.
pub(crate) fn alternatives(before: &str, n: usize) -> Vec<(&'static str, f64)> {
    let words = ["A", "B", "C", "D"].iter().chain(WORDS);
    let mut listed: Vec<_> = words.map(|word| (*word, logprob(before, word))).collect();
    if !before.ends_with('(') {
        // It wants to write a label: the bracket, or at times the letter at once.
        let bracket = format!("{before} (");
        listed = vec![("(", 0.7f64.ln())];
        listed.extend(["A", "B"].map(|word| (word, logprob(&bracket, word) + 0.25f64.ln())));
        listed.extend(WORDS.iter().map(|word| (*word, -9.0)));
    }
    listed.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    listed.truncate(n);
    listed
}
