//! What no policy can beat: Belady's rule, which knows the future and gives up the expert whose next use is furthest away.
//!
//! Two things differ from the textbook. A request names several experts that have to be resident together, so none of them
//! gives way to another; and slots are not all one pool: with a budget over all layers the slots of a size class
//! are, with a fixed number per layer those of a layer. Each pool is decided on its own.
//!
//! The rule is optimal for these rules and ignores the floors of the layers, which every real policy has to keep, so its misses are a
//! lower bound on theirs. A request for more experts than its layer can hold at once passes through the slots in
//! groups; which of them stay is then free to choose, here as there.

use std::collections::BTreeSet;

use super::Watch;
use super::workload::Workload;
use crate::plan::BankPlan;

/// Later than every call.
const NEVER: u32 = u32::MAX;

/// Slots that experts compete for.
struct Pool {
    slots: usize,
    /// Next use and expert of everybody resident.
    resident: BTreeSet<(u32, u32)>,
}

/// Runs the workload through the optimum; `watch` sees every call before it is resolved.
pub(super) fn run(workload: &Workload, plan: &BankPlan, watch: &mut Watch<'_>) {
    let first = first_of_layers(plan);
    let experts = plan.layers().iter().map(|layer| layer.n_expert as usize).sum();
    let next_uses = next_uses(workload, &first, experts);
    let (mut pools, pool_of) = pools(plan);
    // The next use of everybody resident.
    let mut standing: Vec<Option<u32>> = vec![None; experts];
    let mut asked = vec![NEVER; experts];
    for (i, call) in workload.calls.iter().enumerate() {
        let flat = |id: u32| first[call.layer] + id;
        watch(i, &|id| standing[flat(id) as usize].is_some());
        let pool = &mut pools[pool_of[call.layer]];
        for (&id, &next) in call.unique.iter().zip(&next_uses[i]) {
            let id = flat(id);
            if let Some(old) = standing[id as usize].replace(next) {
                pool.resident.remove(&(old, id));
            }
            pool.resident.insert((next, id));
            asked[id as usize] = i as u32;
        }
        let together = call.unique.len() <= plan.layers()[call.layer].slots_max as usize;
        while pool.resident.len() > pool.slots {
            let may_go = |(_, id): &&(u32, u32)| !together || asked[*id as usize] != i as u32;
            let furthest = pool.resident.iter().rfind(may_go);
            let gone = *furthest.expect("a layer never holds more than its pool has slots");
            pool.resident.remove(&gone);
            standing[gone.1 as usize] = None;
        }
    }
}

/// Where the experts of each layer begin when all are counted through.
pub(super) fn first_of_layers(plan: &BankPlan) -> Vec<u32> {
    let begin = |total: &mut u32, n_expert: u32| Some(std::mem::replace(total, *total + n_expert));
    plan.layers().iter().map(|layer| layer.n_expert).scan(0, begin).collect()
}

/// The slots of each pool, and which pool each layer draws from.
pub(super) fn pool_sizes(plan: &BankPlan) -> (Vec<usize>, Vec<usize>) {
    let mut sizes: Vec<usize> = plan.classes().iter().map(|class| class.slots as usize).collect();
    let mut pool_of: Vec<usize> = plan.layers().iter().map(|layer| usize::from(layer.class)).collect();
    for (c, class) in plan.classes().iter().enumerate() {
        let members = || plan.layers().iter().enumerate().filter(|(_, layer)| usize::from(layer.class) == c);
        let at_most: u64 = members().map(|(_, layer)| u64::from(layer.slots_max)).sum();
        if at_most <= u64::from(class.slots) {
            // Nobody can grow at the cost of another: every layer has its own.
            for (i, layer) in members() {
                pool_of[i] = sizes.len();
                sizes.push(layer.slots_max as usize);
            }
        }
    }
    (sizes, pool_of)
}

fn pools(plan: &BankPlan) -> (Vec<Pool>, Vec<usize>) {
    let (sizes, pool_of) = pool_sizes(plan);
    (sizes.into_iter().map(|slots| Pool { slots, resident: BTreeSet::new() }).collect(), pool_of)
}

/// For each expert of each call the call that names it next.
fn next_uses(workload: &Workload, first: &[u32], experts: usize) -> Vec<Vec<u32>> {
    let mut next = vec![NEVER; experts];
    let mut uses: Vec<Vec<u32>> = Vec::with_capacity(workload.calls.len());
    for (i, call) in workload.calls.iter().enumerate().rev() {
        let of = |&id: &u32| std::mem::replace(&mut next[(first[call.layer] + id) as usize], i as u32);
        uses.push(call.unique.iter().map(of).collect());
    }
    uses.reverse();
    uses
}
