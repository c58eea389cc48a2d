//! `ppo-update`: reinforcement learning of a policy against a preference model (arXiv 1707.06347;
//! the details are those of arXiv 2403.17031).
//!
//! Each step samples answers to a batch of prompts, has them scored, and learns from them for a
//! few epochs. The critic is a model of its own that begins at the preference model, score head
//! included.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use tch::{Tensor, no_grad_guard};

use super::experience::{Actors, Experience, Judge};
use super::learner::Learner;
use super::optimizer::Schedule;
use super::order::epoch_order;
use super::report::Batch;
use super::rollout::{Episode, Prompts, sample};
use super::state::{Position, State};
use super::update::{Students, update};
use crate::model::torch::config::Head;
use crate::model::train::{
    Algorithm, Example, Init, Kept, PpoSettings, TrainError, TrainJob, Trained,
};
use crate::record::Id;

/// The models of a training.
struct Cast {
    policy: Learner,
    reference: Learner,
    critic: Option<Judge>,
    judge: Judge,
    /// A second judge, from which nothing is learnt.
    second: Option<Judge>,
}

impl Cast {
    fn read(start: &Init, settings: &PpoSettings) -> Result<Cast, TrainError> {
        let Init::Checkpoint(init) = start else {
            return Err(TrainError::Data(
                "a policy begins at a model, not from nothing".to_owned(),
            ));
        };
        let compute = &settings.compute;
        let judge_at = |dir: &Path| -> Result<Judge, TrainError> {
            Ok(Judge::new(Learner::read(dir, Head::Score, compute)?, settings.normalize_reward))
        };
        let reference = settings.reference.as_ref().unwrap_or(init);
        let cast = Cast {
            policy: Learner::read(init, Head::Lm, compute)?.adapted(start, &settings.optim)?,
            reference: Learner::read(reference, Head::Lm, compute)?,
            critic: match settings.algorithm {
                Algorithm::Ppo => Some(judge_at(&settings.reward)?),
                Algorithm::Rloo | Algorithm::Grpo => None,
            },
            judge: judge_at(&settings.reward)?,
            second: settings.test_reward.as_deref().map(judge_at).transpose()?,
        };
        let reads = |critic: &Judge| critic.model.has_tokenizer_of(&cast.policy);
        if !cast.critic.as_ref().is_none_or(reads) {
            return Err(TrainError::Data(
                "the reward's tokenizer is not the policy's: the critic begins at the reward model \
                 and reads the policy's tokens"
                    .to_owned(),
            ));
        }
        if !cast.reference.has_tokenizer_of(&cast.policy) {
            return Err(TrainError::Data(
                "the reference's tokenizer is not the policy's: it reads the policy's tokens"
                    .to_owned(),
            ));
        }
        Ok(cast)
    }
}

/// What stays as it is while batch after batch is learnt from.
struct Stage<'a> {
    settings: &'a PpoSettings,
    prompts: Prompts<'a>,
    reference: Learner,
    judge: Judge,
    second: Option<Judge>,
}

impl Stage<'_> {
    /// The policy as it is answers the prompts asked, after so many episodes, and is judged.
    fn act(
        &self,
        students: &Students,
        asked: &[usize],
        n_episodes: usize,
    ) -> Result<(Vec<Episode>, Experience), TrainError> {
        let policy = &students.policy;
        let episodes = sample(policy, &self.prompts, asked, self.settings, n_episodes)?;
        let Stage { reference, judge, .. } = self;
        let critic = students.critic.as_ref().map(|critic| &critic.judge);
        let actors = Actors { policy, reference, critic, judge };
        let experience = Experience::of(&actors, &self.prompts.texts, &episodes, self.settings)?;
        Ok((episodes, experience))
    }

    /// The state of the whole: step, students, and the policy that will be kept.
    fn write(
        &self,
        state: &State,
        at: &Position,
        students: &Students,
        best: &Best,
    ) -> Result<(), TrainError> {
        state.write(at, &students.optimizers(), &best.tensors())
    }
}

/// Does the training.
pub(super) fn train(job: &TrainJob, settings: &PpoSettings) -> Result<Trained, TrainError> {
    let Cast { policy, reference, critic, judge, second } = Cast::read(&job.init, settings)?;
    let mut trained = Trained { kind: "lm".to_owned(), ..Trained::default() };
    let prompts = read(&policy, &job.examples, settings, &mut trained)?;
    let stage = Stage { settings, prompts, reference, judge, second };

    let batch_size = settings.batch_size.max(1);
    let n_batches = settings.total_episodes.div_ceil(batch_size) as u64;
    let per_batch = (settings.num_ppo_epochs.max(1) * settings.num_mini_batches.max(1)) as u64;
    let schedule = Schedule::new(&settings.optim, n_batches * per_batch)?;
    let mut students = Students::new(policy, critic, schedule, settings);
    let state = State::of(job, &settings.compute);
    let (mut at, mut best) = resume(&state, job, &mut students, settings, n_batches)?;
    let mut n_episodes = settings.total_episodes.min(at.step as usize * batch_size);
    let mut order = asked(settings, &stage.prompts.ids).skip(n_episodes);
    while at.step < n_batches {
        let size = batch_size.min(settings.total_episodes - n_episodes);
        let batch: Vec<usize> = order.by_ref().take(size).collect();
        let (episodes, experience) = stage.act(&students, &batch, n_episodes)?;
        best.look(&mut at, &students.policy, experience.mean_kl());
        let second = stage.second.as_ref();
        let second = second.map(|judge| judge.scores(&stage.prompts.texts, &episodes, settings));
        let second = second.transpose()?;
        let sums = update(&mut students, &experience, settings, at.step)?;

        n_episodes += size;
        at.step += 1;
        let batch = Batch {
            step: at.step,
            n_episodes,
            episodes: &episodes,
            experience: &experience,
            judge: &stage.judge,
            second: second.as_deref(),
        };
        batch.log(&mut at.log, settings, &sums);
        at.rollouts.extend(batch.rollouts(&stage.prompts, settings));
        if at.step % settings.optim.logging_steps.max(1) == 0 || at.step == n_batches {
            let rate = students.schedule.rate(at.step * per_batch - 1);
            report(&mut at, &stage, n_episodes, rate, n_batches, job);
        }
        if settings.save_every > 0 && at.step % settings.save_every == 0 {
            snapshot(&mut at, &students.policy, job)?;
        }
        if state.is_due(at.step, n_batches) {
            stage.write(&state, &at, &students, &best)?;
        }
    }
    if settings.keep_below_kl.is_some() {
        let batch: Vec<usize> = order.take(batch_size.min(settings.total_episodes)).collect();
        let (_, experience) = stage.act(&students, &batch, n_episodes)?;
        best.look(&mut at, &students.policy, experience.mean_kl());
        best.restore(&mut at, &students.policy);
        students.refresh()?;
    }
    trained.steps = at.best.map_or(n_batches, |(step, _)| step);
    trained.rollouts = at.rollouts;
    trained.snapshots = at.snapshots;
    trained.metrics = at.log.into_metrics();
    trained.weights = students.policy.save(&job.out, "ppo-update")?;
    Ok(trained)
}

/// Where the training goes on, with the students and the policy to be kept as they were there.
fn resume(
    state: &State,
    job: &TrainJob,
    students: &mut Students,
    settings: &PpoSettings,
    n_batches: u64,
) -> Result<(Position, Best), TrainError> {
    let (at, more) = state.resume(job, &mut students.optimizers_mut(), n_batches)?;
    students.refresh()?;
    Ok((at, Best { limit: settings.keep_below_kl, weights: more.into_values().collect() }))
}

fn report(
    at: &mut Position,
    stage: &Stage<'_>,
    n_episodes: usize,
    rate: f64,
    n_batches: u64,
    job: &TrainJob,
) {
    let (done, epoch) = (at.step, n_episodes as f64 / stage.prompts.ids.len() as f64);
    let means = at.log.flush(done, epoch, "train");
    at.log.push(done, epoch, "train", "lr", rate);
    at.log.push(done, epoch, "train", "episode", n_episodes as f64);
    let (score, kl) = (means["objective/scores"], means["objective/kl"]);
    (job.progress)(
        &format!("step {done}/{n_batches} score {score:.3} kl {kl:.3}"),
        done,
        n_batches,
    );
}

/// Writes the policy as it is beside the state; an earlier try may have written it before it was
/// killed.
fn snapshot(at: &mut Position, policy: &Learner, job: &TrainJob) -> Result<(), TrainError> {
    let dir = format!("step-{:06}", at.step);
    let path = job.state.join(&dir);
    let made = match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => fs::create_dir(&path),
    };
    made.map_err(|source| TrainError::File { path: path.clone(), source })?;
    let weights = policy.save(&path, "ppo-update")?;
    at.snapshots.push(Kept { step: at.step, weights, dir, files: Vec::new() });
    Ok(())
}

/// The last policy whose KL to the reference is at most a limit, where there is one.
///
/// The KL of a policy is measured on the rollouts that it makes, so it is known a batch after the
/// policy is. The first policy, which has learnt nothing, is within any limit.
struct Best {
    limit: Option<f64>,
    weights: Vec<Tensor>,
}

impl Best {
    /// Looks at the policy after `at.step` updates, whose KL is known now.
    fn look(&mut self, at: &mut Position, policy: &Learner, kl: f64) {
        if self.limit.is_some_and(|limit| kl <= limit) {
            at.best = Some((at.step, kl));
            self.weights = policy.weights().iter().map(|weight| weight.detach().copy()).collect();
        }
    }

    fn tensors(&self) -> BTreeMap<String, Tensor> {
        let named = |(place, weight): (usize, &Tensor)| {
            // Names sort as the weights do.
            (format!("best/{place:06}"), weight.shallow_clone())
        };
        self.weights.iter().enumerate().map(named).collect()
    }

    /// Makes the policy what it was, and logs which that is.
    fn restore(&self, at: &mut Position, policy: &Learner) {
        let _guard = no_grad_guard();
        let Some((step, kl)) = at.best else { return };
        for (mut weight, best) in policy.weights().into_iter().zip(&self.weights) {
            weight.copy_(best);
        }
        for (name, value) in [("kept/step", step as f64), ("kept/kl", kl)] {
            at.log.push(at.step, 0.0, "train", name, value);
        }
    }
}

/// The prompts in tokens; what leaves no room for an answer is rejected.
fn read<'a>(
    policy: &Learner,
    examples: &'a [Example],
    settings: &PpoSettings,
    trained: &mut Trained,
) -> Result<Prompts<'a>, TrainError> {
    if settings.response_length == 0 || settings.total_episodes == 0 {
        return Err(TrainError::Data(
            "response_length and total_episodes are at least 1".to_owned(),
        ));
    }
    let group = settings.num_generations;
    let least = if settings.algorithm == Algorithm::Ppo { 1 } else { 2 };
    let is_whole = |count: usize| count.is_multiple_of(group.max(1));
    if group < least || !is_whole(settings.batch_size) || !is_whole(settings.total_episodes) {
        return Err(TrainError::Data(format!(
            "num_generations is {group}: it is at least {least}, and divides batch_size and \
             total_episodes"
        )));
    }
    let mut prompts = Prompts::default();
    let room = policy.length_max().saturating_sub(settings.response_length);
    for example in examples {
        let Example::Prompt { row_id, prompt, messages } = example else {
            return Err(TrainError::Data("ppo-update learns from prompts only".to_owned()));
        };
        let tokens = policy.prompt(prompt)?;
        let (reason, detail) = match tokens.len() {
            0 => ("empty", "the prompt is empty".to_owned()),
            n if n > room => ("too_long", format!("{n} tokens, of at most {room}")),
            _ => {
                prompts.ids.push(*row_id);
                prompts.texts.push(prompt);
                prompts.messages.push(messages);
                prompts.tokens.push(tokens);
                continue;
            }
        };
        trained.rejected.push((*row_id, reason.to_owned(), detail));
    }
    if prompts.ids.is_empty() {
        return Err(TrainError::Data(format!(
            "no prompt is left to train on: {} of {} are empty or longer than {room} tokens",
            trained.rejected.len(),
            examples.len()
        )));
    }
    Ok(prompts)
}

/// The prompts over and over, each as often as it is answered: in the order given at first, by hash
/// in later rounds.
fn asked<'a>(settings: &'a PpoSettings, ids: &'a [Id]) -> impl Iterator<Item = usize> + 'a {
    let prompts = (0_u64..).flat_map(move |round| epoch_order(settings.optim.seed, round, ids));
    prompts.flat_map(move |prompt| std::iter::repeat_n(prompt, settings.num_generations))
}
