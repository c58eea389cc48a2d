//! Every parameter of a model: its name in a checkpoint and its shape.

use std::collections::BTreeMap;

use super::{Head, Joined, TransformerConfig};

impl TransformerConfig {
    /// Every parameter with its shape, by name.
    pub fn parameters(&self) -> BTreeMap<String, Vec<i64>> {
        let names = self.family.names;
        let mut shapes = BTreeMap::new();
        shapes.insert(self.embeddings_name(), vec![self.vocab_size, self.hidden_size]);
        if self.family.has_learned_positions {
            let positions = self.max_position_embeddings as i64;
            shapes.insert(self.positions_name(), vec![positions, self.hidden_size]);
        }
        self.add_norm(&mut shapes, &self.norm_name(), self.hidden_size);
        match self.head {
            Head::Lm if self.tie_word_embeddings => {}
            Head::Lm | Head::Score => {
                let rows = if self.head == Head::Lm { self.vocab_size } else { 1 };
                shapes.insert(self.head_name(), vec![rows, self.hidden_size]);
            }
        }
        for layer in 0..self.layers.len() {
            let part = |part: &str| self.layer_name(layer, part);
            self.add_norm(&mut shapes, &part(names.input_norm), self.hidden_size);
            self.add_norm(&mut shapes, &part(names.post_attention_norm), self.hidden_size);
            if self.family.has_query_key_norms {
                self.add_norm(&mut shapes, &part(names.query_norm), self.head_dim);
                self.add_norm(&mut shapes, &part(names.key_norm), self.head_dim);
            }
            for (name, rows, columns, bias) in self.linears() {
                let name = part(name);
                let shape =
                    if self.family.is_transposed { [columns, rows] } else { [rows, columns] };
                shapes.insert(format!("{name}.weight"), shape.to_vec());
                if bias {
                    shapes.insert(format!("{name}.bias"), vec![rows]);
                }
            }
        }
        shapes
    }

    /// The linears of a layer: name, outputs, inputs, and whether there is a bias.
    fn linears(&self) -> Vec<(&'static str, i64, i64, bool)> {
        let names = self.family.names;
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let query = self.num_attention_heads * self.head_dim;
        let key = self.num_key_value_heads * self.head_dim;
        let sizes = match self.family.query_key_value {
            Joined::Apart => vec![query, key, key],
            Joined::Stacked | Joined::ByHead => vec![query + 2 * key],
        };
        let biases = self.has_biases;
        let mut linears = Vec::with_capacity(7);
        for (name, rows) in names.query_key_value.iter().zip(sizes) {
            linears.push((*name, rows, hidden, biases.query_key_value));
        }
        linears.push((names.output, hidden, query, biases.output));
        linears.extend(names.up.iter().map(|name| (*name, inner, hidden, biases.mlp)));
        linears.push((names.down, hidden, inner, biases.mlp));
        linears
    }

    fn add_norm(&self, shapes: &mut BTreeMap<String, Vec<i64>>, name: &str, width: i64) {
        shapes.insert(format!("{name}.weight"), vec![width]);
        if self.family.has_layer_norms {
            shapes.insert(format!("{name}.bias"), vec![width]);
        }
    }

    pub(in super::super) fn embeddings_name(&self) -> String {
        format!("{}.{}.weight", self.family.names.backbone, self.family.names.embeddings)
    }

    pub(in super::super) fn positions_name(&self) -> String {
        format!("{}.{}.weight", self.family.names.backbone, self.family.names.positions)
    }

    pub(in super::super) fn norm_name(&self) -> String {
        format!("{}.{}", self.family.names.backbone, self.family.names.norm)
    }

    pub(in super::super) fn head_name(&self) -> String {
        match self.head {
            Head::Lm => format!("{}.weight", self.family.names.head),
            Head::Score => "score.weight".to_owned(),
        }
    }

    pub(in super::super) fn layer_name(&self, layer: usize, part: &str) -> String {
        let names = self.family.names;
        format!("{}.{}.{layer}.{part}", names.backbone, names.layers)
    }
}
