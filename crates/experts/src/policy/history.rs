//! Something remembered about every expert of a model, resident or not.

use crate::plan::BankPlan;
use crate::policy::ExpertKey;

/// A value per expert, found in O(1).
#[derive(Debug)]
pub(super) struct History<T> {
    /// By block index: where the experts of the layer begin.
    first: Vec<u32>,
    values: Vec<T>,
}

impl<T: Clone> History<T> {
    pub(super) fn new(plan: &BankPlan, blank: T) -> Self {
        Self::of_layers(plan.layers().iter().map(|layer| (layer.layer, layer.n_expert)), blank)
    }

    /// For layers given as block index and number of experts, ascending.
    pub(super) fn of_layers(layers: impl Iterator<Item = (u32, u32)>, blank: T) -> Self {
        let (mut first, mut total) = (Vec::new(), 0);
        for (layer, n_expert) in layers {
            // Blocks without experts are never asked about.
            first.resize(layer as usize, total);
            first.push(total);
            total += n_expert;
        }
        History { first, values: vec![blank; total as usize] }
    }

    pub(super) fn of(&mut self, expert: ExpertKey) -> &mut T {
        &mut self.values[(self.first[expert.layer as usize] + expert.expert) as usize]
    }

    pub(super) fn values(&mut self) -> impl Iterator<Item = &mut T> {
        self.values.iter_mut()
    }
}
