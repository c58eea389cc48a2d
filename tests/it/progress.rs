//! Progress: rows done of rows to do while a run is at work, and a server that does not answer.

use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use amend::engine::progress::Far;
use serde_json::json;

use crate::cli_run::{Lab as Folder, ROWS};
use crate::incremental::files;
use crate::lab::Lab;

#[test]
fn when_all_is_done_what_was_to_do_is_what_was_done() {
    let mut lab = Lab::new(2);
    let desired = lab.desired(&files(40));
    lab.session.apply(&desired).unwrap();
    let far = |name: &str, rows: u64| Far {
        name: name.to_owned(),
        done: rows,
        total: rows,
        exact: true,
        begun: true,
    };
    // Two rounds are one table; two answers a prompt are one pair.
    let expected = [
        far("drafts", 40),
        far("revisions.critiques", 80),
        far("revisions", 80),
        far("demos", 20),
        far("pairs", 80),
        far("preferences", 40),
    ];
    assert_eq!(lab.session.far().tables(), expected);

    lab.session.apply(&lab.desired(&files(20))).unwrap();
    let tables = lab.session.far().tables();
    let done = |name: &str| tables.iter().find(|far| far.name == name).unwrap();
    assert_eq!((done("drafts"), done("pairs")), (&far("drafts", 20), &far("pairs", 40)));
}

#[test]
fn without_a_terminal_lines_say_how_many_rows_of_each_node_are_done() {
    let folder = Folder::new(json!({ "latency_ms": 100 }));
    let one = ["run", "small.yaml", "--set", "models.fake.max_in_flight=1"];
    let (code, _, said) = folder.amend(&one);
    assert_eq!(code, 0, "{said}");
    let of = |name: &str, rest: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        let line = line.unwrap_or_else(|| panic!("a line of {name} in {said}"));
        let (done, rest_of) = line.split_once(' ').unwrap();
        assert!(done.parse::<usize>().unwrap() < ROWS && rest_of.starts_with(rest), "{line}");
    };
    of("revisions", &format!("of up to {ROWS} rows"));
    assert!(said.contains("calls made · memo"), "{said}");
    assert!(folder.amend(&["run", "small.yaml", "-q"]).2.is_empty());
}

#[test]
fn a_server_that_is_down_is_named_while_it_is_asked_again_and_no_secret_with_it() {
    // A port that nobody listens at any more.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let folder = Folder::new(json!({}));
    let url = format!("http://me:sesame@127.0.0.1:{port}/v1?token=sesame");
    let more = "max_in_flight: 8, retries: 2, api_key: \"${KEY}\"";
    let pipeline = crate::cli_run::PIPELINE.replace("max_in_flight: 8", more);
    folder.write("small.yaml", &pipeline);
    let began = Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_amend"))
        .args(["run", "small.yaml"])
        .env_remove("AMEND_STORE")
        .envs([("FAKE_URL", url.as_str()), ("KEY", "sk-sesame")])
        .current_dir(folder.dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    // It waited 20 s more for the calls that had just failed.
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}: {said}", began.elapsed());
    let line = said.lines().find(|line| line.starts_with("waiting for ")).unwrap_or_default();
    let start =
        format!("waiting for http://127.0.0.1:{port}: Connection refused (os error 111), try ");
    assert!(line.starts_with(&start), "{said}");
    assert!(said.contains("is the server running"), "{said}");
    assert!(!said.contains("sesame"), "{said}");
}
