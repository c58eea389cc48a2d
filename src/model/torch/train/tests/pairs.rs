//! Every pair of settings together: a few steps each of trainings that cover all pairs of their values.
//! None panics, hangs or gives what is no number, and blocks that are computed again change nothing.

use std::collections::BTreeSet;
use std::sync::mpsc::channel;
use std::time::Duration;

use super::settings::difference;
use super::*;
use crate::model::train::{AdaptiveKl, Dtype, LoraSettings};

/// How long a training of a few steps may take.
const PATIENCE: Duration = Duration::from_mins(5);

/// Rows of levels in which each two levels of two factors stand together somewhere.
fn covering(levels: &[usize]) -> Vec<Vec<usize>> {
    let mut left: BTreeSet<(usize, usize, usize, usize)> = BTreeSet::new();
    for (i, first) in levels.iter().enumerate() {
        for (j, second) in levels.iter().enumerate().skip(i + 1) {
            left.extend((0..*first).flat_map(|a| (0..*second).map(move |b| (i, a, j, b))));
        }
    }
    let mut rows = Vec::new();
    while let Some(&(i, a, j, b)) = left.first() {
        let mut row: Vec<Option<usize>> = vec![None; levels.len()];
        (row[i], row[j]) = (Some(a), Some(b));
        for factor in 0..levels.len() {
            if row[factor].is_some() {
                continue;
            }
            let gain = |level: usize| {
                let known = row.iter().enumerate().filter_map(|(at, of)| Some((at, (*of)?)));
                let pair = |(at, of): (usize, usize)| match at < factor {
                    true => (at, of, factor, level),
                    false => (factor, level, at, of),
                };
                known.filter(|&known| left.contains(&pair(known))).count()
            };
            // Of levels that gain as much, one that changes from row to row.
            let shift = rows.len() % levels[factor];
            let best = (0..levels[factor])
                .map(|level| (level + shift) % levels[factor])
                .max_by_key(|&level| gain(level));
            row[factor] = best;
        }
        let row: Vec<usize> = row.into_iter().map(|level| level.expect("each was set")).collect();
        for (i, first) in row.iter().enumerate() {
            for (j, second) in row.iter().enumerate().skip(i + 1) {
                left.remove(&(i, *first, j, *second));
            }
        }
        rows.push(row);
    }
    rows
}

#[test]
fn rows_of_a_covering_array_hold_every_pair() {
    let levels = [2, 3, 2, 4, 2];
    let rows = covering(&levels);
    for (i, first) in levels.iter().enumerate() {
        for (j, second) in levels.iter().enumerate().skip(i + 1) {
            for (a, b) in (0..*first).flat_map(|a| (0..*second).map(move |b| (a, b))) {
                assert!(rows.iter().any(|row| row[i] == a && row[j] == b), "{i}={a}, {j}={b}");
            }
        }
    }
    assert!(rows.len() < 2 * 4 * 3, "{} rows are few", rows.len());
}

/// Takes the levels of one row, in order.
struct Levels<'a>(std::slice::Iter<'a, usize>);

impl Levels<'_> {
    fn of<T: Clone>(&mut self, values: &[T]) -> T {
        values[*self.0.next().expect("a factor has its level")].clone()
    }
}

/// What all trainings share, as factors: the number of levels of each, and the settings of a row.
const SHARED: [usize; 9] = [3, 2, 2, 3, 3, 2, 2, 2, 2];

fn shared(levels: &mut Levels<'_>, optim: &Optim) -> (Optim, Compute) {
    let lora = |r, modules: &[&str]| {
        let target_modules = modules.iter().map(|&module| module.to_owned()).collect();
        Some(LoraSettings { r, alpha: 4.0, target_modules })
    };
    let optim = Optim {
        lora: levels.of(&[None, lora(1, &["q_proj"]), lora(4, &["v_proj", "down_proj"])]),
        weight_decay: levels.of(&[0.0, 0.1]),
        max_grad_norm: levels.of(&[0.0, 1.0]),
        lr_scheduler_type: levels.of(&["constant", "linear", "cosine"]).to_owned(),
        warmup_steps: levels.of(&[None, Some(0), Some(50)]),
        logging_steps: levels.of(&[1, 5]),
        ..optim.clone()
    };
    let compute = Compute {
        dtype: levels.of(&[Dtype::F32, Dtype::Bf16]),
        gradient_accumulation_steps: levels.of(&[1, 2]),
        threads: levels.of(&[None, Some(2)]),
        ..Compute::default()
    };
    (optim, compute)
}

/// Runs a training of each row twice, with blocks kept and computed again.
fn check(
    own: &[usize],
    init: &Path,
    examples: impl Fn() -> Vec<Example>,
    settings: impl Fn(&mut Levels<'_>, bool) -> TrainSettings,
) {
    let levels: Vec<usize> = SHARED.iter().chain(own).copied().collect();
    for row in covering(&levels) {
        let run = |again: bool| {
            let settings = settings(&mut Levels(row.iter()), again);
            let case = format!("{row:?}: {settings:?}");
            let (init, examples) = (Init::Checkpoint(init.to_owned()), examples());
            let (sender, ended) = channel();
            let thread = std::thread::spawn(move || {
                drop(sender.send(attempt(settings, init, examples)));
            });
            let (dir, trained) = ended.recv_timeout(PATIENCE).unwrap_or_else(|error| {
                panic!("it hangs or panics ({error}): {case}");
            });
            thread.join().unwrap();
            let trained = trained.unwrap_or_else(|error| panic!("{error}: {case}"));
            // At another temperature the sampler's log-probabilities are not the trainer's.
            let is_unknown =
                |name: &str| name == "rollout/max_difference" && case.contains("temperature: 0.7");
            for metric in trained.metrics.iter().filter(|metric| !is_unknown(&metric.name)) {
                assert!(metric.value.is_finite(), "{metric:?}: {case}");
            }
            assert!(!trained.metrics.is_empty(), "{case}");
            (dir, case)
        };
        let ((kept, case), (again, _)) = (run(false), run(true));
        if case.contains("dtype: F32") {
            let difference = difference(&kept, &again);
            assert!(difference < 1e-3, "off by {difference}: {case}");
        }
    }
}

fn few<T>(rows: usize, row: impl Fn(usize) -> T) -> Vec<T> {
    (0..rows).map(row).collect()
}

#[test]
fn each_two_settings_of_train_sl_go_together() {
    let (base, _) = base();
    check(
        &[2, 2, 2, 3, 2, 2],
        base.path(),
        || few(12, demonstration),
        |levels, again| {
            let (optim, compute) = shared(levels, &optim(0.002));
            let mut sl = SlSettings {
                optim,
                packing: levels.of(&[false, true]),
                batch_size: levels.of(&[2, 4]),
                epochs: levels.of(&[0.5, 1.0]),
                held_out: levels.of(&[0.0, 0.2, 0.4]),
                eval_steps: levels.of(&[None, Some(1)]),
                patience: levels.of(&[None, Some(1)]),
                compute: Compute { gradient_checkpointing: again, ..compute },
                ..sl_settings()
            };
            // Patience without losses on the way is a mistake of the pipeline.
            if sl.eval_steps.is_none() || sl.held_out <= 0.0 {
                sl.patience = None;
            }
            TrainSettings::TrainSl(sl)
        },
    );
}

#[test]
fn each_two_settings_of_train_pm_go_together() {
    let (base, _) = base();
    check(
        &[2, 2, 2, 2, 2],
        base.path(),
        || few(12, comparison),
        |levels, again| {
            let (optim, compute) = shared(levels, &optim(0.002));
            let mut pm = PmSettings {
                optim,
                batch_size: levels.of(&[2, 4]),
                epochs: levels.of(&[0.5, 1.0]),
                held_out: levels.of(&[0.0, 0.3]),
                center_rewards_coefficient: levels.of(&[0.0, 0.01]),
                scale_on: levels.of(&[Vec::new(), vec!["ai".to_owned()]]),
                compute: Compute { gradient_checkpointing: again, ..compute },
                ..pm_settings()
            };
            pm.compute.save_steps = 1;
            TrainSettings::TrainPm(pm)
        },
    );
}

#[test]
fn each_two_settings_of_train_dpo_go_together() {
    let (base, _) = base();
    let start = base.path().to_owned();
    check(
        &[2, 2, 2, 2, 2],
        base.path(),
        || few(12, comparison),
        |levels, again| {
            let (optim, compute) = shared(levels, &optim(0.002));
            TrainSettings::TrainDpo(DpoSettings {
                optim,
                batch_size: levels.of(&[2, 4]),
                epochs: levels.of(&[0.5, 1.0]),
                held_out: levels.of(&[0.0, 0.3]),
                beta: levels.of(&[0.1, 1.0]),
                reference: levels.of(&[None, Some(start.clone())]),
                compute: Compute { gradient_checkpointing: again, ..compute },
                ..dpo_settings()
            })
        },
    );
}

#[test]
fn each_two_settings_of_ppo_update_go_together() {
    let (base, _) = base();
    let start = Init::Checkpoint(base.path().to_owned());
    let (pm, _) = train(
        TrainSettings::TrainPm(PmSettings { epochs: 1.0, ..pm_settings() }),
        start,
        few(32, comparison),
    );
    let (start, reward) = (base.path().to_owned(), pm.path().to_owned());
    let own = [3, 2, 2, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2];
    check(
        &own,
        base.path(),
        || few(4, asked),
        |levels, again| {
            let (optim, compute) = shared(levels, &optim(0.001));
            let algorithm = levels.of(&[Algorithm::Ppo, Algorithm::Rloo, Algorithm::Grpo]);
            let mut ppo = PpoSettings {
                optim,
                algorithm,
                critic: levels.of(&[CriticTrunk::Separate, CriticTrunk::Shared]),
                critic_warmup: levels.of(&[0, 1]),
                num_mini_batches: levels.of(&[1, 2, 4]),
                num_ppo_epochs: levels.of(&[1, 2]),
                num_generations: levels.of(&[1, 2]),
                kl_estimator: levels.of(&["k1", "k3"]).to_owned(),
                adaptive_kl: levels.of(&[None, Some(AdaptiveKl { target: 6.0, horizon: 64.0 })]),
                whiten_advantages: levels.of(&[false, true]),
                whiten_rewards: levels.of(&[false, true]),
                normalize_reward: levels.of(&[false, true]),
                target_kl: levels.of(&[0.0, 0.01]),
                save_every: levels.of(&[0, 1]),
                keep_below_kl: levels.of(&[None, Some(0.5)]),
                reference: levels.of(&[None, Some(start.clone())]),
                test_reward: levels.of(&[None, Some(reward.clone())]),
                stop: levels.of(&[Vec::new(), vec![" .".to_owned()]]),
                compute: Compute { gradient_checkpointing: again, ..compute },
                total_episodes: 16,
                batch_size: 8,
                response_length: 6,
                temperature: levels.of(&[1.0, 0.7]),
                ..ppo_settings(&reward)
            };
            // What the pipeline's checks refuse.
            if algorithm != Algorithm::Ppo {
                (ppo.critic_warmup, ppo.num_generations) = (0, 2);
            }
            TrainSettings::PpoUpdate(ppo)
        },
    );
}
