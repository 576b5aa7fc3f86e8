//! The experts that a trace uses most: as a bank that never changes, and as a set to pin.

use super::Watch;
use super::belady::{first_of_layers, pool_sizes};
use super::workload::Workload;
use crate::plan::BankPlan;
use crate::policy::ExpertKey;
use crate::trace::TraceRecord;
use crate::{Error, Result};

/// Calls that name each expert, by layer of the plan.
fn counts(workload: &Workload, plan: &BankPlan) -> Vec<u32> {
    let first = first_of_layers(plan);
    let mut counts = vec![0; plan.layers().iter().map(|layer| layer.n_expert as usize).sum()];
    for call in &workload.calls {
        call.unique.iter().for_each(|id| counts[(first[call.layer] + id) as usize] += 1);
    }
    counts
}

/// Everybody as (layer of the plan, expert id, count), the most frequent first.
fn by_count(counts: &[u32], plan: &BankPlan) -> Vec<(usize, u32, u32)> {
    let of_layer = |(i, n_expert): (usize, u32)| (0..n_expert).map(move |id| (i, id));
    let layers = plan.layers().iter().map(|layer| layer.n_expert).enumerate();
    let mut order: Vec<_> =
        layers.flat_map(of_layer).zip(counts).map(|((layer, id), &count)| (layer, id, count)).collect();
    // Of equals the first layer and the lowest id: the sort is stable.
    order.sort_by_key(|&(_, _, count)| std::cmp::Reverse(count));
    order
}

/// A bank that holds the most frequent experts from the start and never changes: of each layer where the plan gives each
/// layer its own slots, of all layers where they share. The slots through which misses pass are not counted.
pub(super) fn run(workload: &Workload, plan: &BankPlan, watch: &mut Watch<'_>) {
    let first = first_of_layers(plan);
    let counts = counts(workload, plan);
    let (mut left, pool_of) = pool_sizes(plan);
    let mut resident = vec![false; counts.len()];
    for (layer, id, _) in by_count(&counts, plan) {
        let left = &mut left[pool_of[layer]];
        if *left > 0 {
            *left -= 1;
            resident[(first[layer] + id) as usize] = true;
        }
    }
    for (i, call) in workload.calls.iter().enumerate() {
        watch(i, &|id| resident[(first[call.layer] + id) as usize]);
    }
}

/// The hottest experts of a trace, as many as may be pinned in a bank of this plan: half of the slots that a
/// layer, and half of those that all layers of a size class together, can have beyond top-k each, so that whatever else is
/// wanted still finds slots. Experts that were used once are not hot.
///
/// Errors: as [`Workload::new`].
pub fn hottest(
    trace: impl IntoIterator<Item = Result<TraceRecord>>,
    plan: &BankPlan,
) -> Result<Vec<ExpertKey>, Error> {
    let workload = Workload::new(trace, plan)?;
    let floor = |layer: usize| plan.layers()[layer].n_expert.min(plan.top_k());
    let layers = 0..plan.layers().len();
    let mut of_layer: Vec<u32> =
        layers.map(|i| plan.layers()[i].slots_max.saturating_sub(floor(i)) / 2).collect();
    let class_share = |(c, class): (usize, &crate::SizeClass)| {
        let members = plan.layers().iter().enumerate().filter(|(_, layer)| usize::from(layer.class) == c);
        let floors: u32 = members.map(|(i, _)| floor(i)).sum();
        class.slots.saturating_sub(floors) / 2
    };
    let mut of_class: Vec<u32> = plan.classes().iter().enumerate().map(class_share).collect();
    let mut hot = Vec::new();
    for (layer, expert, count) in by_count(&counts(&workload, plan), plan) {
        let planned = &plan.layers()[layer];
        let (mine, ours) = (&mut of_layer[layer], &mut of_class[usize::from(planned.class)]);
        if count > 1 && *mine > 0 && *ours > 0 {
            *mine -= 1;
            *ours -= 1;
            hot.push(ExpertKey { layer: planned.layer, expert });
        }
    }
    Ok(hot)
}
