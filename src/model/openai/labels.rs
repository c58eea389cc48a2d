//! Labels: which of the tokens that a server lists belong to which choice.
//!
//! Servers show tokens as text, and not all show it exactly: some drop a space at the front of a
//! token. A choice is therefore looked for exactly first, and then without white space.

/// One place of an answer: the token written there, and those listed for it.
#[derive(Clone, Debug, Default)]
pub(super) struct Position<'a> {
    pub(super) written: (&'a str, f64),
    pub(super) listed: Vec<(&'a str, f64)>,
}

/// The sum of the log-probabilities of the last tokens, those that make up `choice`.
///
/// A token that holds the end of the prompt and the beginning of the choice counts to the choice.
/// None when the tokens do not end in the choice.
pub(super) fn sum_of_last(tokens: &[(&str, Option<f64>)], choice: &str) -> Option<f64> {
    let bare_choice = bare(choice);
    let (mut tail, mut sum, mut found) = (String::new(), 0.0, None);
    for (text, logprob) in tokens.iter().rev() {
        tail.insert_str(0, text);
        sum += (*logprob)?;
        if tail.ends_with(choice) {
            return Some(sum);
        }
        let bare_tail = bare(&tail);
        if found.is_none() && bare_tail.ends_with(&bare_choice) {
            found = Some(sum);
        } else if bare_tail.len() > bare_choice.len() {
            break;
        }
    }
    found
}

fn bare(text: &str) -> String {
    text.split_whitespace().collect()
}

/// What all choices begin with, without white space at its end: that would be part of the next
/// token.
pub(super) fn shared_prefix(choices: &[String]) -> &str {
    let (first, rest) = choices.split_first().expect("there is something to score");
    let mut end = first.len();
    for other in rest {
        let same = first.char_indices().zip(other.chars()).find(|((_, a), b)| a != b);
        end = end.min(same.map_or(other.len().min(first.len()), |((at, _), _)| at));
    }
    if rest.is_empty() { "" } else { first[..end].trim_end() }
}

/// The log-probability of each choice, from what is listed for the tokens of a greedy answer.
///
/// At each place a listed token counts to the choice that it begins, or that it is the letter of
/// (`A` and `(A` for ` (A)`), when that is one choice only. When the token *written* there begins
/// several choices (`(`), or is white space, the next place counts too, times its probability.
/// A choice that is listed nowhere gets the log-probability of the least likely token listed at
/// the first place, or of what all those listed leave over if that is less: no choice that is not
/// listed can have more. The probabilities of all choices then sum to the label mass; where it is
/// far below 1 the model wanted to say something else.
///
/// None when nothing is listed.
pub(super) fn listed(choices: &[&str], positions: &[Position<'_>]) -> Option<Vec<f64>> {
    let first = &positions.first().filter(|first| !first.listed.is_empty())?.listed;
    let mut mass = vec![0.0; choices.len()];
    let mut said = String::new();
    let mut path = 1.0;
    for position in positions {
        for (token, logprob) in &position.listed {
            if let Said::One(choice) = match_of(choices, &format!("{said}{token}")) {
                mass[choice] += path * logprob.exp();
            }
        }
        said.push_str(position.written.0);
        path *= position.written.1.exp();
        if match_of(choices, &said) != Said::Several {
            break;
        }
    }
    let least = first.iter().map(|(_, logprob)| *logprob).fold(f64::INFINITY, f64::min);
    let left = 1.0 - first.iter().map(|(_, logprob)| logprob.exp()).sum::<f64>();
    let floor = least.min(left.max(1e-9).ln());
    Some(mass.iter().map(|mass| if *mass > 0.0 { mass.ln().min(0.0) } else { floor }).collect())
}

/// Which choice an answer names, if it names one.
pub(super) fn voted(choices: &[String], answer: &str) -> Option<usize> {
    let answer = answer.trim();
    let whole = choices.iter().position(|choice| {
        let choice = choice.trim();
        answer.strip_prefix(choice).is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
    });
    whole.or_else(|| {
        // The first word, without the signs before it: `(A`, `A`, `**A`.
        let mut words = answer.split(|c: char| !c.is_alphanumeric());
        let word = words.find(|word| !word.is_empty())?;
        let mut named = (0..choices.len()).filter(|choice| letter(&choices[*choice]) == word);
        named.next().filter(|_| named.next().is_none())
    })
}

/// What a beginning of an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    One(usize),
    Several,
    Nothing,
}

fn match_of(choices: &[&str], said: &str) -> Said {
    let said = said.trim();
    if said.is_empty() {
        return Said::Several;
    }
    let mut matched = None;
    for (index, choice) in choices.iter().enumerate() {
        let choice = choice.trim();
        let is_begun = choice.starts_with(said);
        let is_past = said
            .strip_prefix(choice)
            .is_some_and(|rest| choice.is_empty() || !rest.starts_with(char::is_alphanumeric));
        let is_letter = !letter(choice).is_empty() && letter(said) == letter(choice);
        if is_begun || is_past || is_letter {
            if matched.is_some() {
                return Said::Several;
            }
            matched = Some(index);
        }
    }
    matched.map_or(Said::Nothing, Said::One)
}

/// A text without the signs around it: `A` of ` (A)`.
fn letter(text: &str) -> &str {
    text.trim_matches(|c: char| !c.is_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(tokens: &[&str], choice: &str) -> Option<f64> {
        let tokens: Vec<(&str, Option<f64>)> =
            tokens.iter().enumerate().map(|(n, text)| (*text, Some(-f64::from(1 << n)))).collect();
        sum_of_last(&tokens, choice)
    }

    #[test]
    fn the_tokens_of_a_choice_are_the_last_that_spell_it() {
        assert_eq!(sum(&["is", ":", " (", "A", ")"], " (A)"), Some(-28.0));
        assert_eq!(sum(&["is", ":", " ", "(A)"], " (A)"), Some(-12.0));
        assert_eq!(
            sum(&["is", ": (", "A)"], " (A)"),
            Some(-6.0),
            "a token across the border counts"
        );
        assert_eq!(sum(&["is", ":", "(", "A", ")"], " (A)"), Some(-28.0), "a space not shown");
        assert_eq!(sum(&["is", ":", " (", "A", ")", "."], " (A)"), None);
        assert_eq!(sum_of_last(&[("A", None)], "A"), None);
    }

    fn check_listed(choices: &[&str], positions: &[(&str, &[(&str, f64)])], expected: &[f64]) {
        let positions: Vec<Position<'_>> = positions
            .iter()
            .map(|(written, listed)| {
                let listed: Vec<(&str, f64)> =
                    listed.iter().map(|(text, p)| (*text, f64::ln(*p))).collect();
                let of = listed.iter().find(|(text, _)| text == written).expect("it is listed").1;
                Position { written: (written, of), listed }
            })
            .collect();
        let got = listed(choices, &positions).expect("something is listed");
        let close = got.iter().zip(expected).all(|(a, b)| (a.exp() - b).abs() < 1e-9);
        assert!(close && got.len() == expected.len(), "{got:?} is not ln of {expected:?}");
    }

    #[test]
    fn a_listed_token_counts_to_the_choice_that_it_begins() {
        check_listed(
            &["A)", "B)"],
            &[("A", &[("A", 0.5), ("B", 0.25), (" A", 0.125)])],
            &[0.625, 0.25],
        );
        check_listed(
            &[" (A)", " (B)"],
            &[("B", &[("B", 0.6), ("A", 0.3), ("(A)", 0.05)])],
            &[0.35, 0.6],
        );
        check_listed(&["yes", "no"], &[("no", &[("no", 0.75), ("y", 0.25)])], &[0.25, 0.75]);
    }

    #[test]
    fn a_token_that_begins_all_choices_leads_to_the_next_place() {
        let places: &[(&str, &[(&str, f64)])] = &[
            ("(", &[("(", 0.5), ("A", 0.25), ("B", 0.125)]),
            ("B", &[("A", 0.25), ("B", 0.75)]),
            (")", &[(")", 1.0)]),
        ];
        check_listed(&[" (A)", " (B)"], places, &[0.375, 0.5]);
    }

    #[test]
    fn a_choice_that_is_not_listed_gets_no_more_than_what_is_left() {
        check_listed(&["A", "B"], &[("A", &[("A", 0.5), ("x", 0.125)])], &[0.5, 0.125]);
        check_listed(&["A", "B"], &[("A", &[("A", 0.8), ("x", 0.15)])], &[0.8, 0.05]);
        // A model that begins to think: neither is listed, and the label mass says so.
        check_listed(&["A", "B"], &[("<think>", &[("<think>", 0.99)])], &[0.01, 0.01]);
        assert_eq!(listed(&["A", "B"], &[]), None);
    }

    #[test]
    fn what_all_choices_begin_with_ends_before_white_space() {
        let check = |choices: &[&str], prefix: &str| {
            let choices: Vec<String> = choices.iter().map(|choice| (*choice).to_owned()).collect();
            assert_eq!(shared_prefix(&choices), prefix);
        };
        check(&[" (A)", " (B)"], " (");
        check(&[" A", " B"], "");
        check(&["Option A", "Option B"], "Option");
        check(&["yes"], "");
        check(&["é1", "é2"], "é");
    }

    #[test]
    fn a_vote_is_the_first_word_or_the_whole_choice() {
        let choices = [" (A)".to_owned(), " (B)".to_owned()];
        for (answer, vote) in [
            ("(A)", Some(0)),
            (" (B) is better", Some(1)),
            ("B", Some(1)),
            ("A.", Some(0)),
            ("**B**", Some(1)),
            ("Actually", None),
            ("", None),
            ("Option", None),
        ] {
            assert_eq!(voted(&choices, answer), vote, "{answer:?}");
        }
    }
}
