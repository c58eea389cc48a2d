//! Trainings in the dataflow: a digest of the dataset, joined with settings and models.

use std::sync::Arc;

use differential_dataflow::AsCollection;
use differential_dataflow::input::Input;
use timely::dataflow::operators::vec::Map;

use super::{Rendered, Renderer};
use crate::engine::ask::Coll;
use crate::engine::digest::Digest;
use crate::engine::rows::Rec;
use crate::engine::shape::{Node, NodeIdx};
use crate::engine::shared::Stream;
use crate::engine::time;
use crate::engine::train::{TrainAsk, TrainMade, train};
use crate::operators::ModelRef;
use crate::record::Id;

impl<'s> Renderer<'s, '_> {
    pub(super) fn train(
        &mut self,
        at: NodeIdx,
        node: &Node,
        of: NodeIdx,
        models: &[Option<NodeIdx>],
    ) -> Rendered<'s> {
        let data = self.done[of].rows.clone().map(|rec| (rec.row, rec.content));
        // A training would start at every chunk otherwise: its data is the whole epoch's.
        let data =
            data.inner.map(|(row, time, diff)| (row, time::close(time), diff)).as_collection();
        // A training that is held has a model though no row be left: every dataset has a digest.
        let scope = self.scope;
        let base = (scope.index() == 0).then_some(());
        let (_, base) = scope.new_collection_from(base);
        let rows = data.clone().explode(|(row, content)| Some(((), Digest::of(row, content))));
        let digest = base
            .explode(|()| Some(((), Digest::base())))
            .concat(rows)
            .count()
            .map(|((), digest)| ((), (digest.id(), digest.rows())));

        let (input, settings) = scope.new_collection::<Id, isize>();
        self.inputs.settings.insert(at, input);
        let mut settings =
            settings.inner.map(|(id, time, diff)| (id, time::close(time), diff)).as_collection();
        for (place, node) in models.iter().enumerate() {
            let Some(node) = node else { continue };
            let model = self.done[*node].model.clone().expect("a model edge ends at a training");
            let name: Arc<str> = self.shape.nodes[*node].name.as_str().into();
            let shared = Arc::clone(self.shared);
            settings = settings.map(|settings| ((), settings)).join_map(
                model.map(|fingerprint| ((), fingerprint)),
                move |(), settings, fingerprint| {
                    let model = ModelRef { name: Arc::clone(&name), fingerprint: *fingerprint };
                    shared.contexts.with_training_model(*settings, place, &model)
                },
            );
        }
        let asks = digest.join_map(
            settings.map(|settings| ((), settings)),
            |(), (dataset, dataset_rows), training| TrainAsk {
                dataset: *dataset,
                dataset_rows: *dataset_rows,
                training: *training,
            },
        );
        let made = train(asks, data, at, &node.name, self.shared);
        self.trained(at, made)
    }

    fn trained(&mut self, at: NodeIdx, made: Coll<'s, TrainMade>) -> Rendered<'s> {
        let pick = |choose: fn(TrainMade) -> Option<Rec>| made.clone().flat_map(choose);
        let rows = pick(|made| match made {
            TrainMade::Checkpoint(rec) => Some(rec),
            _ => None,
        });
        let metrics = pick(|made| match made {
            TrainMade::Metric(rec) => Some(rec),
            _ => None,
        });
        let rollouts = pick(|made| match made {
            TrainMade::Rollout(rec) => Some(rec),
            _ => None,
        });
        let snapshots = pick(|made| match made {
            TrainMade::Snapshot(rec) => Some(rec),
            _ => None,
        });
        let rejects = pick(|made| match made {
            TrainMade::Reject(rec) => Some(rec),
            _ => None,
        });
        let model = made.clone().flat_map(|made| match made {
            TrainMade::Model(weights) => Some(weights),
            _ => None,
        });
        self.sink(at, Stream::Rows, rows.clone());
        self.sink(at, Stream::Rejects, rejects);
        self.sink(at, Stream::Metrics, metrics);
        self.sink(at, Stream::Rollouts, rollouts);
        self.sink(at, Stream::Snapshots, snapshots);
        Rendered { rows, asks: None, model: Some(model) }
    }
}
