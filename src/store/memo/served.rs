//! What endpoints said that they served, in the first and the last calls of the memo.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{Array, AsArray, RecordBatch};

use super::{Memo, Segment};
use crate::store::error::Result;

/// Calls that are looked at from each end, about: their columns are read in some 10 ms.
const CALLS: usize = 16_384;

const COLUMNS: [&str; 3] = ["model_fingerprint", "served_model", "system_fingerprint"];

/// What an endpoint said of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// The name of the model that answered.
    pub model: Option<String>,
    /// The fingerprint of the system that ran it.
    pub system_fingerprint: Option<String>,
}

impl Memo {
    /// What served the first and the last calls of models, by the models' fingerprints: of each what
    /// was said nearest to that end, among some thousand calls of any model. Texts are not read
    /// where a segment is compacted.
    pub fn served(&self, models: &BTreeSet<String>) -> Result<BTreeMap<String, [Served; 2]>> {
        if models.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut frames = Vec::new();
        for segment in self.shared.segments().iter() {
            let offsets = segment.offsets()?.into_iter();
            frames.extend(offsets.map(|offset| (std::sync::Arc::clone(segment), offset)));
        }
        let mut served: BTreeMap<String, [Served; 2]> = BTreeMap::new();
        for end in 0..2 {
            let mut seen = 0;
            for at in 0..frames.len() {
                let (segment, offset) = &frames[if end == 0 { at } else { frames.len() - 1 - at }];
                let rows = segment.columns(*offset, &COLUMNS)?;
                let last = rows.num_rows();
                for row in 0..last {
                    let row = if end == 0 { row } else { last - 1 - row };
                    look(&rows, row, models, end, &mut served);
                }
                seen += last;
                let is_told =
                    |model: &String| served.get(model).is_some_and(|of| of[end].is_told());
                if seen >= CALLS || models.iter().all(is_told) {
                    break;
                }
            }
        }
        Ok(served)
    }
}

impl Served {
    fn is_told(&self) -> bool {
        self.model.is_some() && self.system_fingerprint.is_some()
    }
}

/// Takes in what a call says that is not known yet.
fn look(
    rows: &RecordBatch,
    row: usize,
    models: &BTreeSet<String>,
    end: usize,
    served: &mut BTreeMap<String, [Served; 2]>,
) {
    let text = |name: &str| {
        let column = rows.column_by_name(name)?.as_string_opt::<i32>()?;
        (!column.is_null(row)).then(|| column.value(row))
    };
    let Some(model) = text(COLUMNS[0]).filter(|model| models.contains(*model)) else { return };
    let said = [text(COLUMNS[1]), text(COLUMNS[2])];
    if said == [None, None] {
        return;
    }
    let known = &mut served.entry(model.to_owned()).or_default()[end];
    let [name, system] = said.map(|said| said.map(str::to_owned));
    known.model = known.model.take().or(name);
    known.system_fingerprint = known.system_fingerprint.take().or(system);
}

impl Segment {
    /// Some columns of the frame at an offset, and others where a frame is read as a whole.
    fn columns(&self, offset: u64, names: &[&str]) -> Result<RecordBatch> {
        match self {
            Segment::Log(log) => Ok(log.read(offset)?.0),
            Segment::Archive(archive) => archive.columns(offset as usize, names),
        }
    }
}
