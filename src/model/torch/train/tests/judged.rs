//! A judge's verdicts as the reward, without a preference model.

use super::settings::difference;
use super::*;
use crate::model::train::{Asks, Progress};
use crate::record::Message;

/// A judge's question in a few words, which the fake cuts from the answers.
struct FakeAsks([String; 2]);

impl Asks for FakeAsks {
    fn question(
        &self,
        _row: Id,
        update: u64,
        _prompt: &[Message],
        shown: [&str; 2],
    ) -> Result<String, String> {
        assert_ne!(shown[0], shown[1], "equal answers are even, and nobody is asked");
        let words = |text: &str| text.chars().take(12).collect::<String>();
        Ok(format!("{update} {} or {} :", words(shown[0]), words(shown[1])))
    }

    fn labels(&self) -> &[String; 2] {
        &self.0
    }
}

fn judged(
    base: &tempfile::TempDir,
    labels: [&str; 2],
    change: impl FnOnce(&mut PpoSettings),
) -> (tempfile::TempDir, Result<Trained, TrainError>) {
    let mut settings = PpoSettings {
        algorithm: Algorithm::Rloo,
        num_generations: 2,
        total_episodes: 32,
        batch_size: 16,
        missing_eos_penalty: 0.0,
        kl_coef: 0.0,
        ..ppo_settings(base.path())
    };
    change(&mut settings);
    let dir = tempfile::tempdir().unwrap();
    let (out, state) = (dir.path().to_owned(), dir.path().join("state-of-training"));
    std::fs::create_dir(&state).unwrap();
    let job = TrainJob {
        settings: TrainSettings::PpoUpdate(settings),
        init: at(base),
        examples: (0..8).map(asked).collect(),
        out,
        state,
        asks: Some(Box::new(FakeAsks(labels.map(str::to_owned)))),
        progress: Box::new(|_: &Progress<'_>| {}),
    };
    (dir, TorchTrainer::default().train(job))
}

#[test]
fn a_rollout_is_rewarded_with_the_share_of_comparisons_it_wins() {
    let (base, _) = base();
    let (dir, trained) = judged(&base, [" sure", " no"], |_| {});
    let trained = trained.unwrap();
    assert_eq!(trained.rollouts.len(), 32);
    let mut decided = 0;
    for pair in trained.rollouts.chunks(2) {
        assert_eq!(pair[0].prompt_row, pair[1].prompt_row);
        assert!(
            (pair[0].score + pair[1].score - 1.0).abs() < 1e-9,
            "one wins what the other loses"
        );
        assert!(pair.iter().all(|rollout| (0.0..=1.0).contains(&rollout.score)));
        if pair[0].completion == pair[1].completion {
            assert!((pair[0].score - 0.5).abs() < 1e-12);
        } else {
            decided += usize::from((pair[0].score - 0.5).abs() > 1e-6);
        }
        assert!((pair[0].score - pair[0].score_normalized).abs() < 1e-12);
    }
    assert!(decided > 0, "the judge prefers something");
    assert!(difference(&dir, &base) > 1e-5, "it has learnt");
    let (_again, twice) = judged(&base, [" sure", " no"], |_| {});
    assert_eq!(trained.weights, twice.unwrap().weights);
}

#[test]
fn a_critic_on_the_policys_states_needs_no_preference_model() {
    let (base, _) = base();
    let (dir, trained) = judged(&base, [" sure", " no"], |settings| {
        settings.algorithm = Algorithm::Ppo;
        settings.critic = CriticTrunk::Shared;
    });
    let trained = trained.unwrap();
    assert!(difference(&dir, &base) > 1e-5, "it has learnt");
    assert!(last(&trained, "train")["critic/grad_norm"] > 0.0);
}

/// Both orders are asked, so a judge that likes what is shown first prefers nothing.
#[test]
fn the_place_at_which_an_answer_is_shown_counts_nothing() {
    let (base, _) = base();
    // Exchanged labels exchange the verdict of each order, and so all verdicts.
    let score = |labels: [&str; 2]| {
        let (_dir, trained) = judged(&base, labels, |settings| {
            settings.total_episodes = 16;
            settings.optim.learning_rate = 0.0;
        });
        trained.unwrap().rollouts.iter().map(|rollout| rollout.score).collect::<Vec<_>>()
    };
    let (straight, exchanged) = (score([" sure", " no"]), score([" no", " sure"]));
    for (a, b) in straight.iter().zip(&exchanged) {
        assert!((a + b - 1.0).abs() < 1e-6, "{a} and {b}");
    }
    let same = score([" sure", " sure"]);
    assert!(same.iter().all(|score| (score - 0.5).abs() < 1e-9), "{same:?}");
}

#[test]
fn a_question_longer_than_the_judge_reads_is_said() {
    let (base, _) = base();
    let long = " sure".repeat(80);
    let (_dir, trained) = judged(&base, [&long, " no"], |_| {});
    let said = trained.unwrap_err().to_string();
    assert!(said.contains("a question to the judge has"), "{said}");
}
