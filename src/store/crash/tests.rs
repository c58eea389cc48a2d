//! After a crash at any change, what was acknowledged is there and nothing is half there.

use super::*;
use crate::model::Answer;
use crate::record::{Batch, BatchBuilder, Cell, Id, Origin, Relation};
use crate::store::{
    CallKind, Entry, Inputs, Memo, MemoOptions, NodeAbout, Snapshot, Store, Table, TableRow,
};
use std::collections::BTreeSet;
use std::sync::mpsc;
use tempfile::TempDir;

fn entry(n: u64) -> Entry {
    Entry {
        key: KeyHasher::new("amend/test/1").u64(n).call_key(),
        kind: CallKind::Generate,
        model: "m".to_owned(),
        model_fingerprint: Id::ZERO,
        request_json: format!("request {n}"),
        outcome: Ok(Answer { text: format!("answer {n}"), ..Answer::default() }),
        seed: None,
        cost_usd: None,
    }
}

fn open(calls: &Path, disk: &CrashDisk) -> Memo {
    let disk = Arc::new(disk.clone());
    let options = MemoOptions { disk, compact_logs: 2, ..MemoOptions::default() };
    Memo::open_with(calls, options).unwrap()
}

/// Appends entries and acknowledges each as the memo does.
fn append(memo: &Memo, disk: &CrashDisk, numbers: std::ops::Range<u64>) {
    let (told, results) = mpsc::channel();
    for n in numbers {
        let (told, disk) = (told.clone(), disk.clone());
        let durable = move |result: crate::store::Result<()>| {
            result.unwrap();
            disk.acknowledge(n);
            told.send(()).unwrap();
        };
        memo.append(entry(n), Box::new(durable));
    }
    drop(told);
    results.iter().for_each(drop);
}

/// Every entry that was acknowledged is there, and what is there is what was appended.
fn check(memo: &Memo, acknowledged: &[u64], appended: u64) {
    for n in 0..appended {
        match memo.get(&entry(n).key).unwrap() {
            Some(found) => assert_eq!(*found, entry(n)),
            None => assert!(!acknowledged.contains(&n), "{n} was acknowledged"),
        }
    }
}

#[test]
fn an_acknowledged_call_survives_a_crash_after_any_change() {
    let dir = TempDir::new().unwrap();
    let (root, crashes) = (dir.path().join("store"), dir.path().join("crashed"));
    fs::create_dir(&root).unwrap();
    fs::create_dir(&crashes).unwrap();
    let disk = CrashDisk::new(&root);
    let calls = root.join("calls");
    for session in 0..5 {
        let memo = open(&calls, &disk);
        append(&memo, &disk, session * 8..session * 8 + 3);
        append(&memo, &disk, session * 8 + 3..session * 8 + 8);
        memo.close().unwrap();
    }
    for after in 0..=disk.len() {
        for seed in 0..3 {
            let crashed = crashes.join(format!("{after}-{seed}"));
            let acknowledged = disk.crash(after, seed, &crashed);
            let calls = crashed.join("calls");
            check(&Memo::open_read_only(&calls).unwrap(), &acknowledged, 40);
            let disk = CrashDisk::new(&crashed);
            let memo = open(&calls, &disk);
            check(&memo, &acknowledged, 40);
            append(&memo, &disk, 100..101);
            memo.close().unwrap();
            check(&open(&calls, &disk), &acknowledged, 40);
            fs::remove_dir_all(&crashed).unwrap();
        }
    }
}

#[test]
fn an_acknowledged_call_survives_crashes_one_after_another() {
    for seed in 0..60 {
        let dir = TempDir::new().unwrap();
        let mut chance = Chance { seed, drawn: 0 };
        let (mut root, mut acknowledged, mut appended) = (dir.path().join("0"), vec![], 0);
        fs::create_dir(&root).unwrap();
        for crash in 1..=4 {
            let disk = CrashDisk::new(&root);
            let begun = disk.len();
            for _ in 0..3 {
                let memo = open(&root.join("calls"), &disk);
                check(&memo, &acknowledged, appended);
                append(&memo, &disk, appended..appended + 3);
                appended += 3;
                memo.close().unwrap();
            }
            let after = begun + chance.up_to(disk.len() - begun);
            root = dir.path().join(crash.to_string());
            acknowledged.extend(disk.crash(after, seed, &root));
        }
        check(&open(&root.join("calls"), &CrashDisk::new(&root)), &acknowledged, appended);
    }
}

/// The table that snapshot `number` has: `number` rows that say it.
fn table(number: u64) -> Table {
    let mut batch = BatchBuilder::new(Relation::Metrics);
    for row in 0..number {
        let id = KeyHasher::new("amend/test/1").u64(row).id();
        let origin = Origin { row_id: id, root_id: id, parents: vec![], call_keys: vec![] };
        let cells = [
            ("node", Cell::text("n")),
            ("run", Cell::id(Id::ZERO)),
            ("step", Cell::Int(number as i64)),
            ("epoch", Cell::Float(0.0)),
            ("split", Cell::text("train")),
            ("name", Cell::text("loss")),
            ("value", Cell::Float(0.0)),
        ];
        batch.push(&origin, &cells);
    }
    let batch = Arc::new(batch.finish().0);
    let rows = (0..batch.len()).map(|index| TableRow::of(&batch, index)).collect();
    Table::new(Relation::Metrics, rows)
}

fn about() -> NodeAbout {
    NodeAbout {
        op: "read".to_owned(),
        fingerprint: Id::ZERO,
        inputs: Vec::new(),
        rejects: 0,
        dropped: 0,
        checkpoint: None,
        marks: BTreeSet::new(),
    }
}

fn commit(store: &Store, number: u64) -> Snapshot {
    let mut draft = store.snapshots("cai").begin().unwrap();
    draft.add("changes", about(), &table(number)).unwrap();
    draft.add("stays", about(), &table(3)).unwrap();
    draft.commit(0, Inputs::default()).unwrap().snapshot
}

/// A store whose disk loses its power, and where it is laid down after each crash.
struct Lab {
    disk: CrashDisk,
    store: Store,
    crashes: PathBuf,
    _dir: TempDir,
}

impl Lab {
    fn new() -> Lab {
        let dir = TempDir::new().unwrap();
        let (root, crashes) = (dir.path().join("store"), dir.path().join("crashed"));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&crashes).unwrap();
        let disk = CrashDisk::new(&root);
        let store = Store::on(&root, Arc::new(disk.clone()));
        Lab { disk, store, crashes, _dir: dir }
    }
}

fn check_snapshot(snapshot: &Snapshot, number: u64) {
    for (node, rows) in [("changes", number), ("stays", 3)] {
        let batches = snapshot.read_batches(node).unwrap();
        assert_eq!(batches.iter().map(Batch::len).sum::<usize>() as u64, rows);
        let says = |row: crate::record::Row<'_>| row.int("step") == Some(rows as i64);
        assert!(batches.iter().flat_map(Batch::iter).all(says));
    }
}

#[test]
fn a_crash_after_any_change_leaves_the_old_snapshot_or_the_new() {
    let Lab { disk, store, crashes, _dir } = Lab::new();
    for number in 1..=3 {
        commit(&store, number);
        disk.acknowledge(number);
    }
    for after in 0..=disk.len() {
        for seed in 0..3 {
            let crashed = crashes.join(format!("{after}-{seed}"));
            let committed = disk.crash(after, seed, &crashed).len() as u64;
            let store = Store::on(&crashed, Arc::new(CrashDisk::new(&crashed)));
            let found = store.snapshots("cai").latest().unwrap();
            let number = found.as_ref().map_or(0, |found| found.manifest().number);
            assert!(number == committed || number == committed + 1, "{number} of {committed}");
            if let Some(found) = &found {
                check_snapshot(found, number);
            }
            let link = crashed.join("cai/tables");
            let dangling = fs::read_link(&link).is_ok() && !link.join("stays").exists();
            assert!(!dangling, "the link leads to a whole snapshot, old or new");
            if seed > 0 {
                fs::remove_dir_all(&crashed).unwrap();
                continue;
            }
            check_snapshot(&commit(&store, number + 1), number + 1);
            let tables = link.canonicalize().unwrap();
            let tables = tables.strip_prefix(crashed.canonicalize().unwrap()).unwrap();
            assert_eq!(tables, Path::new(&format!("cai/snapshots/{:06}/tables", number + 1)));
            assert_eq!(
                fs::read_dir(crashed.join("cai/snapshots")).unwrap().count() as u64,
                number + 1
            );
            fs::remove_dir_all(&crashed).unwrap();
        }
    }
}

#[test]
fn a_crash_while_other_inputs_are_remembered_leaves_them_or_what_was_before() {
    let Lab { disk, store, crashes, _dir } = Lab::new();
    commit(&store, 1);
    for edit in 1..=2 {
        disk.acknowledge(edit);
        let mut draft = store.snapshots("cai").begin().unwrap();
        draft.keep("changes", about()).unwrap();
        draft.keep("stays", about()).unwrap();
        let inputs = Inputs { set: vec![format!("edit {edit}")], ..Inputs::default() };
        assert!(!draft.commit(edit as i64, inputs).unwrap().is_new);
    }
    disk.acknowledge(3);
    for after in 0..=disk.len() {
        for seed in 0..3 {
            let crashed = crashes.join(format!("{after}-{seed}"));
            let done = disk.crash(after, seed, &crashed).len().saturating_sub(1);
            let store = Store::on(&crashed, Arc::new(CrashDisk::new(&crashed)));
            let snapshots = store.snapshots("cai");
            if let Some(last) = snapshots.latest().unwrap() {
                check_snapshot(&last, 1);
                let given = snapshots.given(&last).map(|given| given.set[0].clone());
                let edits = [None, Some("edit 1".to_owned()), Some("edit 2".to_owned())];
                let at = edits.iter().position(|edit| *edit == given);
                assert!(at.is_some_and(|at| at >= done), "{given:?} after {done}");
                check_snapshot(&commit(&store, 2), 2);
                let last = snapshots.latest().unwrap().unwrap();
                assert!(snapshots.given(&last).is_none(), "that was about the one before");
            }
            fs::remove_dir_all(&crashed).unwrap();
        }
    }
}

#[test]
fn a_checkpoint_is_there_as_a_whole_or_not_at_all() {
    let Lab { disk, store, crashes, _dir } = Lab::new();
    let (recipe, checkpoints) = (entry(1).key, store.checkpoints());
    let staged = checkpoints.stage(&recipe).unwrap();
    for file in ["config.json", "model.safetensors"] {
        // A trainer writes past the disk.
        LocalDisk.create(&staged.join(file)).unwrap().append(b"weights").unwrap();
    }
    checkpoints.publish(&staged, Id::ZERO).unwrap();
    checkpoints.put_training(&recipe, &"what was trained").unwrap();
    disk.acknowledge(1);
    for after in 0..=disk.len() {
        for seed in 0..8 {
            let crashed = crashes.join(format!("{after}-{seed}"));
            let acknowledged = disk.crash(after, seed, &crashed);
            let checkpoints = Store::new(&crashed).checkpoints();
            let trained = checkpoints.get_training::<String>(&recipe).unwrap();
            assert!(acknowledged.is_empty() || trained.is_some());
            assert!(trained.is_none() || checkpoints.exists(Id::ZERO));
            if checkpoints.exists(Id::ZERO) {
                for file in ["config.json", "model.safetensors"] {
                    let bytes = fs::read(checkpoints.dir(Id::ZERO).join(file)).unwrap();
                    assert_eq!(bytes, b"weights");
                }
            }
            fs::remove_dir_all(&crashed).unwrap();
        }
    }
}
