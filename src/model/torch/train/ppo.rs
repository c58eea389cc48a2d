//! `ppo-update`: reinforcement learning of a policy against a preference model (arXiv 1707.06347;
//! the details are those of arXiv 2403.17031).
//!
//! Each step samples answers to a batch of prompts, has them scored, and learns from them for a
//! few epochs.

use std::path::Path;
use std::{fs, io};

use super::best::Best;
use super::critic::Trunk;
use super::experience::{Actors, Experience, FirstPass, Judge};
use super::learner::Learner;
use super::optimizer::Schedule;
use super::order::epoch_order;
use super::report::Batch;
use super::reward::{Asked, Reward};
use super::rollout::{Episode, Prompts, sample};
use super::state::{Position, State};
use super::update::{Students, update};
use crate::model::torch::config::Head;
use crate::model::train::{
    Algorithm, CriticTrunk, Example, Init, Kept, PpoSettings, TrainError, TrainJob, Trained,
};
use crate::record::Id;

/// The models of a training.
struct Cast<'a> {
    policy: Learner,
    reference: Learner,
    critic: Option<Trunk>,
    reward: Reward<'a>,
    /// A second judge, from which nothing is learnt.
    second: Option<Judge>,
}

impl Cast<'_> {
    fn read<'a>(job: &'a TrainJob, settings: &PpoSettings) -> Result<Cast<'a>, TrainError> {
        let start = &job.init;
        let Init::Checkpoint(init) = start else {
            return Err(TrainError::Data(
                "a policy begins at a model, not from nothing".to_owned(),
            ));
        };
        let compute = &settings.compute;
        let scorer_at = |dir: &Path| Learner::read(dir, Head::Score, compute);
        let judge = |model: Learner| Judge::new(model, settings.normalize_reward);
        let judge_at = |dir: &Path| Ok::<_, TrainError>(judge(scorer_at(dir)?.frozen()));
        let reference = settings.reference.as_ref().unwrap_or(init);
        let policy = Learner::read(init, Head::Lm, compute)?.adapted(start, &settings.optim)?;
        let cast = Cast {
            reference: Learner::read(reference, Head::Lm, compute)?.frozen(),
            critic: match (settings.algorithm, settings.critic) {
                (Algorithm::Ppo, CriticTrunk::Separate) => {
                    Some(Trunk::Own(Box::new(judge(scorer_at(&settings.reward)?))))
                }
                (Algorithm::Ppo, CriticTrunk::Shared) => Some(Trunk::of_policy(&policy)),
                (Algorithm::Rloo | Algorithm::Grpo, _) => None,
            },
            reward: match &job.asks {
                None => Reward::Model(judge_at(&settings.reward)?),
                Some(asks) => Reward::Asked(Asked {
                    model: Learner::read(&settings.reward, Head::Lm, compute)?.frozen(),
                    asks: &**asks,
                }),
            },
            second: settings.test_reward.as_deref().map(judge_at).transpose()?,
            policy,
        };
        let is_of_others = |trunk: &Trunk| match trunk {
            Trunk::Own(judge) => !judge.model.has_tokenizer_of(&cast.policy),
            Trunk::Policy(_) => false,
        };
        if cast.critic.as_ref().is_some_and(is_of_others) {
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
    prompts: &'a Prompts<'a>,
    reference: Learner,
    reward: Reward<'a>,
    second: Option<Judge>,
}

impl Stage<'_> {
    /// The policy as it is answers the prompts asked, after so many episodes, and is judged.
    fn act(
        &mut self,
        students: &mut Students,
        settings: &PpoSettings,
        asked: &[usize],
        [n_episodes, update]: [usize; 2],
    ) -> Result<(Vec<Episode>, Experience, FirstPass), TrainError> {
        let Students { policy, critic, .. } = students;
        let episodes = sample(policy, self.prompts, asked, settings, n_episodes)?;
        let Stage { prompts, reference, reward, .. } = self;
        let critic = critic.as_mut().map(|critic| &mut critic.trunk);
        let actors = Actors { policy, reference, critic, reward };
        let (experience, first) =
            Experience::of(actors, prompts, &episodes, update as u64, settings)?;
        Ok((episodes, experience, first))
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
    let Cast { policy, reference, critic, reward, second } = Cast::read(job, settings)?;
    let mut trained = Trained { kind: "lm".to_owned(), ..Trained::default() };
    let prompts = read(&policy, &job.examples, settings, &mut trained)?;
    let mut stage = Stage { prompts: &prompts, reference, reward, second };

    let batch_size = settings.batch_size.max(1);
    let n_batches = settings.total_episodes.div_ceil(batch_size) as u64;
    let per_batch = (settings.num_ppo_epochs.max(1) * settings.num_mini_batches.max(1)) as u64;
    let schedule = Schedule::new(&settings.optim, n_batches * per_batch)?;
    let mut students = Students::new(policy, critic, schedule, settings);
    let state = State::of(job, &settings.compute);
    let (mut at, mut best) = resume(&state, job, &mut students, n_batches)?;
    let mut n_episodes = settings.total_episodes.min(at.step as usize * batch_size);
    let mut order = asked(settings, &prompts.ids).skip(n_episodes);
    while at.step < n_batches {
        let size = batch_size.min(settings.total_episodes - n_episodes);
        let batch: Vec<usize> = order.by_ref().take(size).collect();
        // The weight of the KL divergence may follow it, batch by batch.
        let kl_coef = at.kl_coef.unwrap_or(settings.kl_coef);
        let settings = &PpoSettings { kl_coef, ..settings.clone() };
        let (episodes, experience, first) =
            stage.act(&mut students, settings, &batch, [n_episodes, at.step as usize])?;
        look(&mut best, &mut at, settings, &students.policy, experience.mean_kl());
        let second = stage.second.as_ref();
        let second = second.map(|judge| judge.scores(&prompts.texts, &episodes, settings));
        let second = second.transpose()?;
        let sums = update(&mut students, &experience, first, settings, at.step)?;

        n_episodes += size;
        at.step += 1;
        at.n_tokens += experience.rows.iter().map(|row| row.tokens.len()).sum::<usize>() as f64;
        at.kl_coef =
            settings.adaptive_kl.map(|adaptive| adaptive.next(kl_coef, experience.mean_kl(), size));
        let batch = Batch {
            step: at.step,
            n_episodes,
            episodes: &episodes,
            experience: &experience,
            reward: &stage.reward,
            second: stage.second.as_ref().zip(second.as_deref()),
        };
        batch.log(&mut at.log, settings, &sums);
        at.rollouts.extend(batch.rollouts(&prompts, settings));
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
        let place = [n_episodes, at.step as usize];
        let (_, experience, _) = stage.act(&mut students, settings, &batch, place)?;
        look(&mut best, &mut at, settings, &students.policy, experience.mean_kl());
        best.restore(&students.policy);
        students.refresh()?;
        if let Some((step, kl)) = at.best {
            at.log.push(at.step, 0.0, "train", "kept/step", step as f64);
            at.log.push(at.step, 0.0, "train", "kept/kl", kl);
        }
    }
    at.tell(job, "done", n_batches);
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
    n_batches: u64,
) -> Result<(Position, Best), TrainError> {
    let (at, more) = state.resume(job, &mut students.optimizers_mut(), n_batches)?;
    students.refresh()?;
    Ok((at, Best::of(more)))
}

/// Looks at the policy after `at.step` updates: the last whose KL to the reference is at most the
/// limit is kept, where there is one.
///
/// The KL of a policy is measured on the rollouts that it makes, so it is known a batch after the
/// policy is. The first policy, which has learnt nothing, is within any limit.
fn look(best: &mut Best, at: &mut Position, settings: &PpoSettings, policy: &Learner, kl: f64) {
    if settings.keep_below_kl.is_some_and(|limit| kl <= limit) {
        best.keep(at, policy, kl);
    }
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
    at.tell(job, &format!("score {score:.3} kl {kl:.3}"), n_batches);
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
