//! Tests of oddities: what files of other programs hold is a row that is right, or a reject that says
//! where and why.

use super::*;

/// A line of JSON with a text in a column.
fn line(column: &str, text: &str) -> String {
    format!("{}\n", serde_json::json!({ column: text }))
}

fn shown_prompts(file: &[u8]) -> String {
    show(&read_bytes(file, &options(Relation::Prompts)).unwrap(), &["prompt"])
}

fn csv(file: &[u8]) -> String {
    match read_as(Format::Csv, file, &options(Relation::Prompts)) {
        Ok(read) => show(&read, &["prompt", "category", "extra", "source_line"]),
        Err(error) => shown(&error),
    }
}

#[test]
fn messages_in_a_text_are_read_as_json_and_what_a_program_printed_is_a_reject() {
    let texts = [
        r#"[{"role": "system", "content": "s"}, {"role": "user", "content": "hi \"you\""}]"#,
        r#" [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}] "#,
        "\n\nHuman: hi\n\nAssistant:",
        r#"[{'role': 'user', 'content': "it's"}]"#,
        "[{'content': 'hi', 'role': 'user'}\n {'content': 'ho', 'role': 'assistant'}]",
        "array([{'content': 'hi', 'role': 'user'}], dtype=object)",
        r#"[{"role": "user", "content": "cut sho"#,
        r#"[{\"role\": \"user\", \"content\": \"hi\"}]"#,
        "[ChatMessage(role='user', content='hi')]",
        r#"{"role": "user", "content": "hi"}"#,
        r#"{"messages": [{"role": "user", "content": "hi"}]}"#,
        r#""[{\"role\": \"user\", \"content\": \"hi\"}]""#,
        r#"[{"role": "user", "content": "hi", "role": "user"}]"#,
        r#"[{"role": "user", "content": 3}]"#,
    ];
    let file: String =
        texts.iter().flat_map(|text| ["messages", "prompt"].map(|of| line(of, text))).collect();
    insta::assert_snapshot!(shown_prompts(file.as_bytes()), @r#"
    prompt = system: "s", user: "hi \"you\""
    prompt = system: "s", user: "hi \"you\""
    prompt = user: "hi"
    prompt = user: "hi"
    prompt = user: "hi"
    prompt = user: "hi"
    line 7: bad_input: `messages`: it seems to be a list of messages, and is not JSON but what a program printed, or cut short (column 3: key must be a string): write it as JSON
    line 8: bad_input: `prompt`: it seems to be a list of messages, and is not JSON but what a program printed, or cut short (column 3: key must be a string): write it as JSON
    line 9: bad_input: `messages`: it seems to be a list of messages, and is not JSON but what a program printed, or cut short (column 3: key must be a string): write it as JSON
    line 10: bad_input: `prompt`: it seems to be a list of messages, and is not JSON but what a program printed, or cut short (column 3: key must be a string): write it as JSON
    line 11: bad_input: `messages`: it seems to be a list of messages as a program printed it: write it as JSON
    line 12: bad_input: `prompt`: it seems to be a list of messages as a program printed it: write it as JSON
    line 13: bad_input: `messages`: it seems to be a list of messages, and is not JSON but what a program printed, or cut short (column 37: EOF while parsing a string): write it as JSON
    line 14: bad_input: `prompt`: it seems to be a list of messages, and is not JSON but what a program printed, or cut short (column 37: EOF while parsing a string): write it as JSON
    line 15: bad_input: `messages`: it seems to be a list of messages, and is not JSON but what a program printed, or cut short (column 3: key must be a string): write it as JSON
    line 16: bad_input: `prompt`: it seems to be a list of messages, and is not JSON but what a program printed, or cut short (column 3: key must be a string): write it as JSON
    line 17: bad_input: `messages`: it seems to be a list of messages, and is not JSON but what a program printed, or cut short (column 2: expected value): write it as JSON
    line 18: bad_input: `prompt`: it seems to be a list of messages, and is not JSON but what a program printed, or cut short (column 2: expected value): write it as JSON
    line 19: bad_input: `messages`: it is a text that holds an object of JSON and no list of messages
    line 20: bad_input: `prompt`: it is a text that holds an object of JSON and no list of messages
    line 21: bad_input: `messages`: it is a text that holds an object of JSON and no list of messages
    line 22: bad_input: `prompt`: it is a text that holds an object of JSON and no list of messages
    line 23: bad_input: `messages`: it is a text that holds messages as JSON within JSON: write the list itself
    line 24: bad_input: `prompt`: it is a text that holds messages as JSON within JSON: write the list itself
    line 25: bad_input: `messages`: it seems to be a list of messages, and is not JSON but what a program printed, or cut short (column 41: it has the key "role" twice): write it as JSON
    line 26: bad_input: `prompt`: it seems to be a list of messages, and is not JSON but what a program printed, or cut short (column 41: it has the key "role" twice): write it as JSON
    line 27: bad_input: `messages`: message 1 has no `role` and `content` of text
    line 28: bad_input: `prompt`: message 1 has no `role` and `content` of text
    "#);
}

#[test]
fn a_text_that_is_a_turn_stays_one_and_messages_that_are_a_text_are_none() {
    let texts = [
        r"[1, 2, 3]",
        r#"{"name": "x", "role": "admin"}"#,
        r#"{"from": "Alice", "to": "Bob", "value": 3} says what?"#,
        r#"[INST] call it with messages=[{"role": "user", "content": "hi"}]"#,
        "What is `[{'role': 'user', 'content': 'hi'}]` in Python?",
        "[a note] what does it say?",
        "\"quoted\"",
    ];
    let prompts: String = texts.iter().map(|text| line("prompt", text)).collect();
    let read = read_bytes(prompts.as_bytes(), &options(Relation::Prompts)).unwrap();
    let turns: Vec<String> =
        read.rows[0].0.iter().map(|row| row.turns("prompt").next().unwrap().1.to_owned()).collect();
    assert_eq!(turns, texts);

    let messages: String = texts.iter().map(|text| line("messages", text)).collect();
    let read = read_bytes(messages.as_bytes(), &options(Relation::Prompts)).unwrap();
    assert_eq!((read.len(), read.rejects.0.len()), (0, texts.len()));
}

#[test]
fn answers_and_pairs_hold_messages_in_texts_as_prompts_do() {
    let list = |answer: &str| {
        serde_json::json!([{ "role": "user", "content": "hi" }, { "role": "assistant", "content": answer }])
            .to_string()
    };
    let python = "[{'role': 'assistant', 'content': 'a'}]";
    let pair = |chosen: &str, rejected: &str| serde_json::json!({ "chosen": chosen, "rejected": rejected });
    let mut with_prompt = pair(&list("a"), &list("b"));
    with_prompt["prompt"] = "hi".into();
    let lines = [
        pair(&list("a"), &list("b")),
        with_prompt,
        pair(&list("a"), python),
        pair(&list("a"), "\n\nHuman: hi\n\nAssistant: b"),
        serde_json::json!({ "prompt": "hi", "chosen": "{\"a\": 1}", "rejected": python }),
        serde_json::json!({ "prompt": "hi", "chosen": "{\"a\": 1}", "rejected": "[1]" }),
    ];
    let file = lined(&lines);
    let read = read_bytes(file.as_bytes(), &options(Relation::Comparisons)).unwrap();
    insta::assert_snapshot!(show(&read, &["prompt", "chosen", "rejected"]), @r#"
    prompt = user: "hi"  chosen = assistant: "a"  rejected = assistant: "b"
    prompt = user: "hi"  chosen = assistant: "a"  rejected = assistant: "b"
    prompt = user: "hi"  chosen = assistant: "a"  rejected = assistant: "b"
    prompt = user: "hi"  chosen = assistant: "{\"a\": 1}"  rejected = assistant: "[1]"
    line 3: bad_input: `rejected`: it seems to be a list of messages, and is not JSON but what a program printed, or cut short (column 3: key must be a string): write it as JSON
    line 5: bad_input: `rejected`: it seems to be a list of messages, and is not JSON but what a program printed, or cut short (column 3: key must be a string): write it as JSON
    "#);

    let lines = [
        serde_json::json!({ "messages": list("a") }),
        serde_json::json!({ "messages": python.replace("'}", "'") }),
        serde_json::json!({ "prompt": "hi", "completion": list("a") }),
    ];
    let file = lined(&lines);
    let read = read_bytes(file.as_bytes(), &options(Relation::Demonstrations)).unwrap();
    insta::assert_snapshot!(show(&read, &["prompt", "completion"]), @r#"
    prompt = user: "hi"  completion = assistant: "a"
    prompt = user: "hi"  completion = assistant: "a"
    line 2: bad_input: `messages`: it seems to be a list of messages, and is not JSON but what a program printed, or cut short (column 3: key must be a string): write it as JSON
    "#);
}

#[test]
fn tags_in_a_text_are_json_or_separated_by_commas() {
    let lines = [r#"["a", "b, c"]"#, "['a', 'b']", "[urgent] x, y", "[1]"]
        .map(|tags| serde_json::json!({ "prompt": "hi", "tags": tags }).to_string());
    let file = lined(&lines);
    let read = read_bytes(file.as_bytes(), &options(Relation::Prompts)).unwrap();
    insta::assert_snapshot!(show(&read, &["tags"]), @r#"
    tags = ["a", "b, c"]
    tags = ["[urgent] x", "y"]
    line 2: bad_input: `tags` seems to be a list, and is not JSON but what a program printed (column 2: expected value): write it as JSON
    line 4: bad_input: `tags` is not a list of texts
    "#);
}

#[test]
fn a_json_line_ends_at_a_line_feed_alone_and_marks_of_order_are_no_part_of_it() {
    let file = "\u{feff}{\"prompt\": \"a\u{2028}b\u{2029}c\u{85}d\"}\r\n\r\n\
        \u{feff}{\"prompt\": \"\\u0000 \\u2028\"}\r\n\u{2028}\n{\"prompt\": \"e\"}";
    insta::assert_snapshot!(shown_prompts(file.as_bytes()), @r#"
    prompt = user: "a\u{2028}b\u{2029}c\u{85}d"
    prompt = user: "\0 \u{2028}"
    prompt = user: "e"
    "#);
}

#[test]
fn what_is_odd_in_json_is_a_reject_with_its_column() {
    let deep = format!("{{\"prompt\": \"a\", \"deep\": {}{}}}", "[".repeat(200), "]".repeat(200));
    let lines = [
        r#"{"prompt": "fine"}"#,
        r#"{"prompt": "a", "prompt": "b"}"#,
        r#"{"prompt": [{"role": "user", "content": "a", "content": "b"}]}"#,
        r#"{"prompt": "\ud800"}"#,
        r#"{"prompt": "a", "score": NaN}"#,
        "{\"prompt\": \"a\u{0}\"}",
        "\u{0}\u{0}\u{0}",
        r#"{"prompt": 3}"#,
        r#"{"prompt": true}"#,
        r#"[{"prompt": "a"}, {"prompt": "b"}]"#,
        r#"{"prompt": "a"} {"prompt": "b"}"#,
        deep.as_str(),
    ];
    insta::assert_snapshot!(shown_prompts(lines.join("\n").as_bytes()), @r#"
    prompt = user: "fine"
    line 2: bad_input: column 24: it has the key "prompt" twice
    line 3: bad_input: column 54: it has the key "content" twice
    line 4: bad_input: column 19: it is not JSON: half of a surrogate pair (`\ud800` to `\udfff`) is no character
    line 5: bad_input: column 26: it is not JSON: NaN is no number of JSON (write null)
    line 6: bad_input: column 14: it is not JSON: control character (\u0000-\u001F) found while parsing a string
    line 7: bad_input: column 1: it is not JSON: expected value
    line 8: bad_input: `prompt`: it is neither a text nor a list of messages
    line 9: bad_input: `prompt`: it is neither a text nor a list of messages
    line 10: bad_input: it is a list of JSON; JSON lines have one object a line (`jq -c '.[]'` makes them of a list)
    line 11: bad_input: column 17: it is not JSON: trailing characters
    line 12: bad_input: column 151: it is nested more than 127 deep
    "#);
}

#[test]
fn a_line_that_is_too_long_is_a_reject_and_those_after_it_are_rows() {
    let long = format!("{{\"prompt\": \"{}\"}}", "a".repeat(lines::RECORD_MAX));
    let longest = format!("{{\"prompt\": \"{}\"}}", "a".repeat(lines::RECORD_MAX - 14));
    let file = format!("{{\"prompt\": \"a\"}}\n{long}\n{longest}\n{{\"prompt\": \"b\"}}\n{long}");
    let read = read_bytes(file.as_bytes(), &options(Relation::Prompts)).unwrap();
    let lines: Vec<i64> =
        read.rows[0].0.iter().map(|row| row.int("source_line").unwrap()).collect();
    assert_eq!(lines, [1, 3, 4]);
    let rejects = show(&ReadRows { rows: Vec::new(), ..read }, &[]);
    insta::assert_snapshot!(rejects, @r"
    line 2: bad_input: the line has 33554447 bytes, above 33554432
    line 5: bad_input: the line has 33554446 bytes, above 33554432
    ");
}

#[test]
fn what_is_odd_in_csv_is_a_row_that_is_right_or_a_reject() {
    insta::assert_snapshot!(csv(b"\xef\xbb\xbfprompt,category\r\na,b\r\n\r\n\"c\r\nd\",\"e \"\"f\"\"\"\r\n"), @r#"
    prompt = user: "a"  category = Some("b")  extra = None  source_line = Some(2)
    prompt = user: "c\r\nd"  category = Some("e \"f\"")  extra = None  source_line = Some(4)
    "#);
    insta::assert_snapshot!(csv("prompt,category\na\u{0}\u{2028}\u{85},b\nprompt,category\n\"a\"\nc,\n\"\u{0}\",d\nprompt,other\n".as_bytes()), @r#"
    prompt = user: "a\0\u{2028}\u{85}"  category = Some("b")  extra = None  source_line = Some(2)
    prompt = user: "c"  category = None  extra = None  source_line = Some(5)
    prompt = user: "\0"  category = Some("d")  extra = None  source_line = Some(6)
    prompt = user: "prompt"  category = Some("other")  extra = None  source_line = Some(7)
    line 3: bad_input: it is the header again
    line 4: bad_input: it has 1 fields, the header 2
    "#);
    // What the last quote opens goes to the end of the file.
    insta::assert_snapshot!(csv(b"prompt,category\na,b\nc,\"d\ne,f\ng,h\n"), @r#"
    prompt = user: "a"  category = Some("b")  extra = None  source_line = Some(2)
    line 3: bad_input: a quote that opens in column "category" is never closed: the 3 lines after it, to the end of the file, are in it
    "#);
    insta::assert_snapshot!(csv(b"prompt,category\na,\"b\""), @r#"prompt = user: "a"  category = Some("b")  extra = None  source_line = Some(2)"#);
    insta::assert_snapshot!(csv(b"prompt,\"category\na,b\n"), @"rows:1: a quote that opens in the header is never closed");
    insta::assert_snapshot!(csv(b"prompt,category,prompt\na,b,c\n"), @r#"rows:1: columns 1 and 3 are both called "prompt": give one of them another name"#);
    insta::assert_snapshot!(csv(b",prompt,,\n0,a,,\n1,b,,c\n"), @r#"
    prompt = user: "a"  category = None  extra = Some("{\"\":\"0\"}")  source_line = Some(2)
    line 3: bad_input: column 4 has a value and no name
    "#);
    insta::assert_snapshot!(csv(b"prompt,category\na,b\xff\nc\xff,d\ne,f\n"), @r#"
    prompt = user: "e"  category = Some("f")  extra = None  source_line = Some(4)
    line 2: bad_input: column "category" is not UTF-8
    line 3: bad_input: column "prompt" is not UTF-8
    "#);
    insta::assert_snapshot!(csv(b"prompt;category\na;b\n"), @r#"rows:2: it has no column "prompt" (say what the file calls it: `columns: { prompt: … }`); it has prompt;category"#);
    assert_eq!(csv(b""), "");
    assert_eq!(csv(b"prompt,category\n"), "");
    let many = vec!["a"; lines::COLUMNS_MAX + 1].join(",");
    assert_eq!(csv(many.as_bytes()), "rows:1: the header has 10001 columns, above 10000");
}

#[test]
fn a_record_of_csv_that_never_ends_is_an_error() {
    let mut file = b"prompt\na\n\"".to_vec();
    file.resize(lines::RECORD_MAX + (1 << 20), b'x');
    let said = csv(&file);
    assert!(said.starts_with("rows:2: ") && said.contains("a quote that opens in it"), "{said}");
}

#[test]
fn a_file_that_its_name_misnames_is_said_to_be_so() {
    let named = |name: &str, bytes: &[u8]| {
        read_files(&[(name, Format::Jsonl, bytes)], &options(Relation::Prompts))
    };
    let error = named("rows.jsonl.gz", b"no JSON\n").unwrap_err();
    insta::assert_snapshot!(shown(&error), @r#"rows.jsonl.gz:1: column 2: it is not JSON: expected ident; its name ends in ".gz", and it is not compressed"#);
    assert_eq!(named("rows.jsonl.gz", b"{\"prompt\": \"a\"}\n").unwrap().len(), 1);
}

/// A line each.
fn lined(lines: &[impl ToString]) -> String {
    let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
    lines.join("\n") + "\n"
}
