//! One pass over the next tokens of many texts, by the kernels.
//!
//! The tokens stand one after the other in one row, whatever texts they are of and however many of
//! each: prompts, rests of prompts behind a prefix, and single tokens that were just drawn.

use amend_kernels::{Heads, Pass, Sight, Text};
use tch::{Kind, Tensor};

use super::block::{PagesView, Sights, View};
use super::reader::Branches;
use super::transformer::Transformer;
use super::{int, kernels};

/// The next tokens of a text.
pub(super) struct Part<'a> {
    pub(super) text: Text,
    pub(super) ids: &'a [i64],
    /// Of the whole row, where its tokens do not come one after the other.
    pub(super) branches: Option<Branches<'a>>,
    /// Which tokens of the row what the head sees is wanted of; of all if none are named.
    pub(super) wanted: Option<&'a [usize]>,
}

impl Transformer {
    /// How its heads are shaped, if it is one that is read by pages.
    pub(super) fn heads(&self) -> Option<Heads> {
        let config = &self.config;
        self.is_packed().then_some(Heads {
            layers: self.blocks.len(),
            queries: config.num_attention_heads as usize,
            keys: config.num_key_value_heads as usize,
            dim: config.head_dim as usize,
        })
    }

    /// Reads the parts' tokens: what the head sees of those that are wanted, one part after the
    /// other, and the texts with them.
    pub(super) fn read_parts(&self, parts: Vec<Part<'_>>) -> (Tensor, Vec<Text>) {
        let _guard = tch::no_grad_guard();
        let window = self.config.sliding_window.filter(|_| self.has_windows());
        let mut sights = Sights { full: Vec::new(), windowed: window.map(|_| Vec::new()) };
        let (mut ids, mut positions, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
        for part in &parts {
            let at = |token: usize| int(ids.len() + token - part.text.tokens());
            match part.wanted {
                Some(tokens) => wanted.extend(tokens.iter().map(|&token| at(token))),
                None => wanted.extend((int(ids.len())..).take(part.ids.len())),
            }
            ids.extend(part.ids);
            for token in (part.text.tokens()..).take(part.ids.len()) {
                let (position, base, own) = part.place(token);
                positions.push(int(position));
                sights.full.push(Sight { shared: 0..base, own: own..token + 1 });
                if let (Some(window), Some(windowed)) = (window, &mut sights.windowed) {
                    let first = (position + 1).saturating_sub(window as usize);
                    let own = own + first.saturating_sub(base);
                    windowed.push(Sight { shared: first.min(base)..base, own: own..token + 1 });
                }
            }
        }
        let end = positions.iter().max().map_or(0, |&last| last as usize) + 1;
        let row = |values: &[i64]| Tensor::from_slice(values).view([1, -1]); // (1, N)
        let positions = self.positions_at(&row(&positions), end);
        let texts = parts.into_iter().map(|part| (part.text, part.ids.len())).collect();
        let mut pass = Pass::new(texts, kernels::threads());
        let mut x = self.embed(&row(&ids), &positions); // (1, N, C)
        debug_assert_eq!(x.kind(), Kind::Float, "kernels read f32");
        let wanted = (wanted.len() < ids.len()).then(|| Tensor::from_slice(&wanted));
        for (layer, block) in self.blocks.iter().enumerate() {
            let wanted = wanted.as_ref().filter(|_| layer + 1 == self.blocks.len());
            let view = View::Pages(PagesView { pass: &mut pass, layer, sights: &sights, wanted });
            x = block.forward(&x, positions.rotation.as_ref(), view);
        }
        (self.finish(&x).squeeze_dim(0), pass.into_texts()) // (N, C)
    }
}

impl Part<'_> {
    /// A token's position, how many tokens from the first it sees with all branches, and where its
    /// own branch begins.
    fn place(&self, token: usize) -> (usize, usize, usize) {
        let Some(Branches { positions, segments }) = self.branches else { return (token, 0, 0) };
        let position = positions[token] as usize;
        match segments[token] {
            0 => (position, 0, 0),
            segment => {
                let begin = |segment: i64| segments.partition_point(|&of| of < segment);
                (position, begin(1), begin(segment))
            }
        }
    }
}
