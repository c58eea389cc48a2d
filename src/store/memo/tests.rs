//! What the memo promises, tried on real files.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::{fs, io};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::model::{Answer, Finish};
use crate::record::{Id, KeyHasher};
use crate::store::disk::Output;

fn key(n: u64) -> CallKey {
    KeyHasher::new("amend/test/1").u64(n).call_key()
}

fn entry(n: u64) -> Entry {
    Entry {
        key: key(n),
        kind: CallKind::Generate,
        model: "assistant".to_owned(),
        model_fingerprint: Id::from_bits(7),
        request_json: format!("{{\"prompt\":\"question {n}\"}}"),
        outcome: Ok(Answer {
            text: format!("answer {n}"),
            reasoning: (n % 2 == 1).then(|| format!("thought {n}")),
            estimated_usage: n.is_multiple_of(3),
            omitted: (0..n % 3).map(|at| format!("parameter {at}")).collect(),
            finish: Finish::Length,
            token_logprobs: (n.is_multiple_of(2)).then(|| vec![-0.5, -1.5]),
            choice_logprobs: (n.is_multiple_of(3)).then(|| vec![-0.25, f64::NEG_INFINITY]),
            votes: (n % 3 == 1).then_some(5),
            prompt_tokens: 10,
            cached_tokens: 4,
            completion_tokens: 2,
            attempts: 1,
            started_at_us: 1_700_000_000_000_000 + n as i64,
            latency_ms: 12.5,
            served_model: Some("m".to_owned()),
            device: Some("cpu".to_owned()),
            ..Answer::default()
        }),
        seed: Some(n as i64),
        cost_usd: Some(0.001),
    }
}

fn failure(n: u64) -> Entry {
    let failure = Failure {
        status: Some(400),
        message: format!("refused {n}"),
        too_long: n.is_multiple_of(2),
    };
    Entry { outcome: Err(failure), ..entry(n) }
}

/// Appends entries and waits until all are safe.
fn append(memo: &Memo, entries: impl IntoIterator<Item = Entry>) {
    let (told, results) = mpsc::channel();
    for entry in entries {
        let told = told.clone();
        memo.append(entry, Box::new(move |result| told.send(result).unwrap()));
    }
    drop(told);
    for result in results {
        result.unwrap();
    }
}

fn files(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|file| file.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn an_entry_reads_back_as_it_was_before_and_after_a_restart_and_compaction() {
    let dir = TempDir::new().unwrap();
    let entries: Vec<Entry> = (0..100).map(entry).chain((100..110).map(failure)).collect();
    let check = |memo: &Memo| {
        assert_eq!(memo.len(), 110);
        for entry in &entries {
            assert_eq!(*memo.get(&entry.key).unwrap().unwrap(), *entry);
            assert_eq!(memo.get_outcome(&entry.key).unwrap().unwrap(), entry.outcome);
            assert_eq!(memo.failed(&entry.key), entry.outcome.is_err());
        }
        assert_eq!(memo.get(&key(999)).unwrap(), None);
    };
    let memo = Memo::open(dir.path()).unwrap();
    append(&memo, entries.clone());
    check(&memo);
    check(&Memo::open_read_only(dir.path()).unwrap());
    memo.close().unwrap();
    check(&memo);
    drop(memo);
    let options = MemoOptions { compact_logs: 1, ..MemoOptions::default() };
    let memo = Memo::open_with(dir.path(), options).unwrap();
    check(&memo);
    memo.close().unwrap();
    assert_eq!(files(dir.path()), ["000001-000001.parquet"]);
    check(&memo);
    check(&Memo::open(dir.path()).unwrap());
}

#[test]
fn what_served_the_first_and_the_last_calls_of_a_model_is_found_in_logs_and_archives() {
    let of = |n: u64, model: u128, served: Option<&str>, system: Option<&str>| {
        let mut entry = Entry { model_fingerprint: Id::from_bits(model), ..entry(n) };
        let answer = entry.outcome.as_mut().unwrap();
        answer.served_model = served.map(str::to_owned);
        answer.system_fingerprint = system.map(str::to_owned);
        entry
    };
    let dir = TempDir::new().unwrap();
    let first = [of(0, 7, None, None), of(1, 7, Some("a"), None), of(2, 7, Some("b"), Some("x"))];
    let last = [of(3, 8, Some("c"), None), of(4, 7, Some("b"), Some("y")), failure(5)];
    let check = |memo: &Memo| {
        let id = |bits: u128| Id::from_bits(bits).to_string();
        let served = memo.served(&[7, 8, 9].map(id).into()).unwrap();
        let told = |served: &Served| {
            [&served.model, &served.system_fingerprint]
                .map(|said| said.as_deref().unwrap_or("-"))
                .join(" ")
        };
        let told = |bits: u128| served.get(&id(bits)).map(|ends| [told(&ends[0]), told(&ends[1])]);
        assert_eq!(told(7), Some(["a x".to_owned(), "b y".to_owned()]));
        assert_eq!(told(8), Some(["c -".to_owned(), "c -".to_owned()]));
        assert_eq!(told(9), None);
        assert_eq!(memo.served(&[id(8)].into()).unwrap().len(), 1);
    };
    for entries in [first, last] {
        let memo = Memo::open(dir.path()).unwrap();
        append(&memo, entries);
        memo.close().unwrap();
    }
    check(&Memo::open_read_only(dir.path()).unwrap());
    let options = MemoOptions { compact_logs: 1, ..MemoOptions::default() };
    Memo::open_with(dir.path(), options).unwrap().close().unwrap();
    assert_eq!(files(dir.path()), ["000001-000002.parquet"]);
    check(&Memo::open(dir.path()).unwrap());
}

#[test]
fn a_run_that_appends_nothing_leaves_no_segment() {
    let dir = TempDir::new().unwrap();
    Memo::open(dir.path()).unwrap().close().unwrap();
    assert!(files(dir.path()).is_empty());
}

#[test]
fn the_later_entry_of_a_key_wins_in_look_ups_scans_and_archives() {
    let dir = TempDir::new().unwrap();
    let options = MemoOptions { compact_logs: 3, ..MemoOptions::default() };
    for round in 0..5 {
        let memo = Memo::open_with(dir.path(), options.clone()).unwrap();
        append(&memo, (0..10).map(|n| Entry { cost_usd: Some(f64::from(round)), ..entry(n) }));
        let costs: Vec<RecordBatch> = memo.scan(Some(&["cost_usd"])).map(Result::unwrap).collect();
        assert_eq!(costs.iter().map(RecordBatch::num_rows).sum::<usize>(), 10);
        memo.close().unwrap();
    }
    assert_eq!(files(dir.path()), ["000001-000003.parquet", "000004.log", "000005.log"]);
    let memo = Memo::open(dir.path()).unwrap();
    assert_eq!((memo.len(), memo.get(&key(3)).unwrap().unwrap().cost_usd), (10, Some(4.0)));
}

#[test]
fn a_forgotten_failure_is_asked_again_and_its_answer_stays() {
    let dir = TempDir::new().unwrap();
    let memo = Memo::open(dir.path()).unwrap();
    append(&memo, [failure(1), failure(2), entry(3)]);
    assert_eq!(memo.forget_failures(Some(&[key(1), key(3)])), 1);
    assert!(!memo.contains(&key(1)) && memo.contains(&key(2)) && memo.contains(&key(3)));
    append(&memo, [entry(1)]);
    assert_eq!(memo.forget_failures(None), 1);
    drop(memo);
    let memo = Memo::open(dir.path()).unwrap();
    assert!(!memo.failed(&key(1)) && memo.failed(&key(2)));
}

#[test]
fn a_torn_tail_is_cut_wherever_it_is_torn() {
    let whole = TempDir::new().unwrap();
    let memo = Memo::open(whole.path()).unwrap();
    append(&memo, (0..3).map(entry));
    append(&memo, (3..6).map(entry));
    let bytes = fs::read(whole.path().join("000001.log")).unwrap();
    drop(memo);
    let mut held = Vec::new();
    for len in (0..bytes.len()).step_by(101) {
        let dir = TempDir::new().unwrap();
        fs::File::create(dir.path().join("000001.log")).unwrap();
        let torn = fs::OpenOptions::new().append(true).open(dir.path().join("000001.log"));
        io::Write::write_all(&mut torn.unwrap(), &bytes[..len]).unwrap();
        let read_only = Memo::open_read_only(dir.path()).unwrap().len();
        let memo = Memo::open(dir.path()).unwrap();
        assert_eq!(memo.len(), read_only);
        append(&memo, [entry(9)]);
        drop(memo);
        let memo = Memo::open(dir.path()).unwrap();
        assert_eq!(memo.len(), read_only + 1, "torn at {len}");
        (0..read_only as u64)
            .for_each(|n| assert_eq!(*memo.get(&key(n)).unwrap().unwrap(), entry(n)));
        held.push(read_only);
    }
    assert!(held.is_sorted() && held[0] == 0, "more bytes hold no fewer entries");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_changed_byte_is_never_read_as_data(at in 0.0..1.0f64, flip in 1..=255u8, archive: bool) {
        let file = whole(archive);
        damaged(&file, (at * file.bytes.len() as f64) as usize, flip, Memo::open);
    }
}

#[test]
fn no_third_byte_can_be_changed_and_read_as_data() {
    for archive in [false, true] {
        let file = whole(archive);
        (0..file.bytes.len()).step_by(3).for_each(|at| damaged(&file, at, 1, Memo::open_read_only));
    }
}

/// A memo with one file of 40 calls, a log or an archive.
struct Whole {
    dir: TempDir,
    path: PathBuf,
    bytes: Vec<u8>,
}

fn whole(archive: bool) -> Whole {
    let dir = TempDir::new().unwrap();
    let compact_logs = if archive { 1 } else { 99 };
    let options = MemoOptions { compact_logs, ..MemoOptions::default() };
    let memo = Memo::open_with(dir.path(), options).unwrap();
    append(&memo, (0..20).map(entry));
    append(&memo, (20..40).map(entry));
    memo.close().unwrap();
    let path = dir.path().join(&files(dir.path())[0]);
    let bytes = fs::read(&path).unwrap();
    Whole { dir, path, bytes }
}

/// Changes a byte: a call is there as it was, or not at all, or the error names the file.
fn damaged(file: &Whole, at: usize, flip: u8, open: impl Fn(&Path) -> Result<Memo>) {
    let mut bytes = file.bytes.clone();
    bytes[at] ^= flip;
    let names = |error: StoreError| error.to_string().contains(file.path.to_str().unwrap());
    fs::write(&file.path, &bytes).unwrap();
    match open(file.dir.path()) {
        Err(error) => assert!(names(error), "byte {at}"),
        Ok(memo) => {
            for n in 0..40 {
                match memo.get(&key(n)) {
                    Ok(found) => {
                        assert!(found.is_none_or(|found| *found == entry(n)), "byte {at}");
                    }
                    Err(error) => assert!(names(error), "byte {at}"),
                }
            }
        }
    }
}

#[test]
fn a_small_cache_gives_the_same_answers_to_all_threads() {
    let dir = TempDir::new().unwrap();
    let options = MemoOptions { cache_bytes: 1, compact_logs: 1, ..MemoOptions::default() };
    let memo = Memo::open_with(dir.path(), options.clone()).unwrap();
    append(&memo, (0..50).map(entry));
    memo.close().unwrap();
    let memo = Memo::open_with(dir.path(), options).unwrap();
    append(&memo, (50..100).map(entry));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let memo = &memo;
            scope.spawn(move || {
                for n in (0..100).map(|n| (n * 7 + thread) % 100) {
                    assert_eq!(*memo.get(&key(n)).unwrap().unwrap(), entry(n));
                }
            });
        }
    });
}

/// A disk that is full while it is told to be.
#[derive(Debug, Default)]
struct FullDisk {
    full: Arc<AtomicBool>,
}

struct FullOutput {
    full: Arc<AtomicBool>,
    output: Box<dyn Output>,
}

impl Output for FullOutput {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) {
            self.output.append(&bytes[..bytes.len() / 2])?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.output.append(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.output.sync()
    }
}

#[rustfmt::skip]
impl Disk for FullDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Output>> {
        Ok(Box::new(FullOutput { full: Arc::clone(&self.full), output: LocalDisk.create(path)? }))
    }
    fn reopen(&self, path: &Path, len: u64) -> io::Result<Box<dyn Output>> { LocalDisk.reopen(path, len) }
    fn create_dir(&self, path: &Path) -> io::Result<()> { LocalDisk.create_dir(path) }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> { LocalDisk.rename(from, to) }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> { LocalDisk.link(from, to) }
    fn symlink(&self, target: &Path, link: &Path) -> io::Result<()> { LocalDisk.symlink(target, link) }
    fn remove(&self, path: &Path) -> io::Result<()> { LocalDisk.remove(path) }
    fn protect(&self, path: &Path) -> io::Result<()> { LocalDisk.protect(path) }
    fn sync_file(&self, path: &Path) -> io::Result<()> { LocalDisk.sync_file(path) }
    fn sync_dir(&self, path: &Path) -> io::Result<()> { LocalDisk.sync_dir(path) }
}

#[test]
fn a_full_disk_is_told_to_the_caller_and_loses_nothing() {
    let dir = TempDir::new().unwrap();
    let disk = FullDisk::default();
    let full = Arc::clone(&disk.full);
    let options = MemoOptions { disk: Arc::new(disk), ..MemoOptions::default() };
    let memo = Memo::open_with(dir.path(), options).unwrap();
    append(&memo, (0..10).map(entry));
    for n in [10, 11] {
        full.store(true, Ordering::SeqCst);
        let (told, results) = mpsc::channel();
        memo.append(entry(n), Box::new(move |result| told.send(result).unwrap()));
        let error = results.recv().unwrap().unwrap_err().to_string();
        assert!(error.contains("free some space") && !memo.contains(&key(n)), "{error}");
        assert_eq!(Memo::open_read_only(dir.path()).unwrap().len(), 10);
    }
    full.store(false, Ordering::SeqCst);
    append(&memo, (20..30).map(entry));
    memo.close().unwrap();
    let memo = Memo::open(dir.path()).unwrap();
    assert_eq!(memo.len(), 20);
    (0..10).chain(20..30).for_each(|n| assert_eq!(*memo.get(&key(n)).unwrap().unwrap(), entry(n)));
}

#[test]
fn a_memo_for_reading_refuses_calls_and_says_so() {
    let dir = TempDir::new().unwrap();
    let memo = Memo::open_read_only(&dir.path().join("calls")).unwrap();
    let (told, results) = mpsc::channel();
    memo.append(entry(1), Box::new(move |result| told.send(result).unwrap()));
    assert!(matches!(results.recv().unwrap(), Err(StoreError::ReadOnly { .. })));
}

/// How many calls a memo that was only read holds, of those that were written.
fn held(dir: &Path, written: u64) -> usize {
    let memo = Memo::open_read_only(dir).unwrap();
    let found = (0..written).filter_map(|n| Some((n, memo.get(&key(n)).unwrap()?)));
    let found = found.inspect(|(n, found)| assert_eq!(**found, entry(*n))).count();
    assert_eq!(found, memo.len());
    let scanned: usize = memo.scan(None).map(|rows| rows.unwrap().num_rows()).sum();
    assert_eq!(scanned, found, "a scan gives what is found");
    found
}

#[test]
fn one_damaged_byte_costs_a_frame_at_most_and_keeps_no_memo_from_opening() {
    for archive in [false, true] {
        let file = whole(archive);
        // But for the digit of a log's format: with another it is one of a newer amend.
        for at in (0..file.bytes.len()).step_by(29).filter(|at| archive || *at != 7) {
            let mut bytes = file.bytes.clone();
            bytes[at] ^= 4;
            fs::write(&file.path, &bytes).unwrap();
            let lost = Memo::look(file.dir.path()).unwrap().remove(0).1;
            let is_torn = !archive && at + 24 >= file.bytes.len();
            assert!(lost.is_some() || is_torn, "byte {at} of {} is damaged", file.bytes.len());
            // The archive has one row group, each of the log's frames 20 calls.
            let least = match archive {
                true => 0,
                false => 20,
            };
            assert!(held(file.dir.path(), 40) >= least, "byte {at}");
        }
    }
}

#[test]
fn a_damaged_row_group_or_footer_is_set_aside_and_the_other_calls_stay() {
    const CALLS: u64 = 5000;
    let dir = TempDir::new().unwrap();
    let options = MemoOptions { compact_logs: 1, ..MemoOptions::default() };
    let memo = Memo::open_with(dir.path(), options).unwrap();
    append(&memo, (0..CALLS).map(entry));
    memo.close().unwrap();
    let path = dir.path().join("000001-000001.parquet");
    let bytes = fs::read(&path).unwrap();
    let len = bytes.len();
    for (at, lost) in
        [(len / 2, Some(2048)), (len - 60, Some(0)), (len - 3, Some(0)), (100, Some(2048))]
    {
        drop(fs::remove_dir_all(dir.path().join("damaged")));
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        fs::remove_file(&path).unwrap();
        fs::write(&path, &damaged).unwrap();
        let found = Memo::look(dir.path()).unwrap().remove(0).1.unwrap();
        assert_eq!(found.calls, lost, "byte {at} of {len}: {found:?}");
        let stay = CALLS as usize - lost.unwrap() as usize;
        assert_eq!(held(dir.path(), CALLS), stay);
        assert_eq!(fs::read(&path).unwrap(), damaged, "who reads changes nothing");

        let memo = Memo::open(dir.path()).unwrap();
        assert_eq!(memo.len(), stay, "byte {at}");
        let gone = (0..CALLS).filter(|n| !memo.contains(&key(*n)));
        append(&memo, gone.map(entry).collect::<Vec<_>>());
        memo.close().unwrap();
        assert_eq!(held(dir.path(), CALLS), CALLS as usize);
        assert_eq!(fs::read(dir.path().join("damaged/000001-000001.parquet")).unwrap(), damaged);
        let all = Memo::look(dir.path()).unwrap();
        assert!(all.iter().all(|(_, lost)| lost.is_none()), "{all:?}");
        for name in files(dir.path()).iter().filter(|name| name.contains(".log")) {
            fs::remove_file(dir.path().join(name)).unwrap();
        }
    }
}

#[test]
fn a_damaged_frame_of_a_log_is_set_aside_and_the_other_calls_stay() {
    let file = whole(false);
    // In the payload of the first frame of rows, whose head says how many calls it has.
    let mut bytes = file.bytes.clone();
    let middle = bytes.len() / 3;
    bytes[middle] ^= 1;
    fs::write(&file.path, &bytes).unwrap();
    let memo = Memo::open(file.dir.path()).unwrap();
    assert_eq!(memo.len(), 20);
    assert_eq!(files(file.dir.path()), ["000001-000001.parquet", "damaged"]);
    append(&memo, (0..20).map(entry));
    memo.close().unwrap();
    assert_eq!(held(file.dir.path(), 40), 40);
}

#[test]
fn a_closed_log_that_lost_its_end_is_not_taken_for_what_a_crash_left() {
    let dir = TempDir::new().unwrap();
    for n in 0..2 {
        let memo = Memo::open(dir.path()).unwrap();
        append(&memo, [entry(2 * n)]);
        append(&memo, [entry(2 * n + 1)]);
        memo.close().unwrap();
    }
    let cut = |name: &str| {
        let path = dir.path().join(name);
        let bytes = fs::read(&path).unwrap();
        fs::write(path, &bytes[..bytes.len() - 30]).unwrap();
    };
    cut("000002.log");
    let lost = |at: usize| Memo::look(dir.path()).unwrap().remove(at).1;
    assert!(lost(0).is_none() && lost(1).is_none(), "a crash tears the last");
    cut("000001.log");
    assert!(lost(0).unwrap().what.contains("its end is gone"));
    let memo = Memo::open(dir.path()).unwrap();
    assert_eq!(memo.len(), 2);
    assert_eq!(files(dir.path()), ["000001-000001.parquet", "000002.log", "damaged"]);
}

#[test]
fn a_memo_of_a_newer_format_is_said_to_be_newer_and_left_as_it_is() {
    let file = whole(false);
    let mut bytes = file.bytes.clone();
    bytes[7] = b'2';
    fs::write(&file.path, &bytes).unwrap();
    for open in [Memo::open, Memo::open_read_only] {
        let error = open(file.dir.path()).unwrap_err().to_string();
        assert!(error.contains("was written by a newer amend"), "{error}");
    }
    assert_eq!(fs::read(&file.path).unwrap(), bytes);
}

#[test]
fn a_log_that_is_a_link_is_not_cut() {
    let file = whole(false);
    let precious = file.dir.path().join("precious");
    let torn = &file.bytes[..file.bytes.len() - 10];
    fs::write(&precious, torn).unwrap();
    fs::remove_file(&file.path).unwrap();
    std::os::unix::fs::symlink(&precious, &file.path).unwrap();
    assert!(Memo::open(file.dir.path()).is_err());
    assert_eq!(fs::read(&precious).unwrap(), torn);
}
