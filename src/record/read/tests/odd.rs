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
    insta::assert_snapshot!(shown_prompts(file.as_bytes()), @"");
}

#[test]
fn a_text_that_is_a_turn_stays_one_and_messages_that_are_a_text_are_none() {
    let texts = [
        r#"[1, 2, 3]"#,
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
    let file: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let read = read_bytes(file.as_bytes(), &options(Relation::Comparisons)).unwrap();
    insta::assert_snapshot!(show(&read, &["prompt", "chosen", "rejected"]), @"");

    let lines = [
        serde_json::json!({ "messages": list("a") }),
        serde_json::json!({ "messages": python.replace("'}", "'") }),
        serde_json::json!({ "prompt": "hi", "completion": list("a") }),
    ];
    let file: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let read = read_bytes(file.as_bytes(), &options(Relation::Demonstrations)).unwrap();
    insta::assert_snapshot!(show(&read, &["prompt", "completion"]), @"");
}

#[test]
fn tags_in_a_text_are_json_or_separated_by_commas() {
    let file: String = [r#"["a", "b, c"]"#, "['a', 'b']", "[urgent] x, y", "[1]"]
        .iter()
        .map(|tags| format!("{}\n", serde_json::json!({ "prompt": "hi", "tags": tags })))
        .collect();
    let read = read_bytes(file.as_bytes(), &options(Relation::Prompts)).unwrap();
    insta::assert_snapshot!(show(&read, &["tags"]), @"");
}

#[test]
fn a_json_line_ends_at_a_line_feed_alone_and_marks_of_order_are_no_part_of_it() {
    let file = "\u{feff}{\"prompt\": \"a\u{2028}b\u{2029}c\u{85}d\"}\r\n\r\n\
        \u{feff}{\"prompt\": \"\\u0000 \\u2028\"}\r\n\u{2028}\n{\"prompt\": \"e\"}";
    insta::assert_snapshot!(shown_prompts(file.as_bytes()), @"");
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
    insta::assert_snapshot!(shown_prompts(lines.join("\n").as_bytes()), @"");
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
    insta::assert_snapshot!(rejects, @"");
}

#[test]
fn what_is_odd_in_csv_is_a_row_that_is_right_or_a_reject() {
    insta::assert_snapshot!(csv(b"\xef\xbb\xbfprompt,category\r\na,b\r\n\r\n\"c\r\nd\",\"e \"\"f\"\"\"\r\n"), @"");
    insta::assert_snapshot!(csv("prompt,category\na\u{0}\u{2028}\u{85},b\nprompt,category\n\"a\"\nc,\n\"\u{0}\",d\nprompt,other\n".as_bytes()), @"");
    // What the last quote opens goes to the end of the file.
    insta::assert_snapshot!(csv(b"prompt,category\na,b\nc,\"d\ne,f\ng,h\n"), @"");
    insta::assert_snapshot!(csv(b"prompt,category\na,\"b\""), @"");
    insta::assert_snapshot!(csv(b"prompt,\"category\na,b\n"), @"");
    insta::assert_snapshot!(csv(b"prompt,category,prompt\na,b,c\n"), @"");
    insta::assert_snapshot!(csv(b",prompt,,\n0,a,,\n1,b,,c\n"), @"");
    insta::assert_snapshot!(csv(b"prompt,category\na,b\xff\nc\xff,d\ne,f\n"), @"");
    insta::assert_snapshot!(csv(b"prompt;category\na;b\n"), @"");
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
    insta::assert_snapshot!(shown(&error), @"");
    assert_eq!(named("rows.jsonl.gz", b"{\"prompt\": \"a\"}\n").unwrap().len(), 1);
}
