//! What a trace would have cost in another bank: the same resolution, the same policies, no bytes.

use crate::bank::Table;
use crate::plan::BankPlan;
use crate::policy::Policy;
use crate::stats::Stats;
use crate::trace::TraceRecord;
use crate::{Error, Result};

/// Runs the calls of a trace through a bank of the given plan and policy and returns its counters.
///
/// With the plan and the policy of the run that wrote the trace they equal the run's own, but for time, if no
/// read failed in it: where experts go never depends on when reads arrive. `preloaded` says whether the run
/// began with [`crate::Bank::preload`]. Errors: what `trace` yields, and [`Error::TraceLine`] (counting
/// records) for calls that this model cannot have made.
pub fn replay(
    trace: impl IntoIterator<Item = Result<TraceRecord>>,
    plan: &BankPlan,
    policy: Box<dyn Policy>,
    preloaded: bool,
) -> Result<Stats> {
    replay_watched(trace, plan, policy, preloaded, &mut |_, _| ())
}

/// Sees a record, with the question which experts of its layer are resident.
pub(crate) type Watch<'a> = dyn FnMut(&TraceRecord, &dyn Fn(u32) -> bool) + 'a;

/// The same; `watch` sees every record before it is resolved.
pub(crate) fn replay_watched(
    trace: impl IntoIterator<Item = Result<TraceRecord>>,
    plan: &BankPlan,
    policy: Box<dyn Policy>,
    preloaded: bool,
    watch: &mut Watch<'_>,
) -> Result<Stats> {
    let mut table = Table::new(plan.clone(), policy);
    if preloaded {
        for layer in 0..plan.layers().len() {
            let ids: Vec<u32> = (0..plan.layers()[layer].n_expert).collect();
            table.resolve(layer, &ids)?;
            table.settle();
        }
    }
    for (record, line) in trace.into_iter().zip(1u64..) {
        let record = record?;
        let foreign = |error: Error| Error::TraceLine { line, why: error.to_string() };
        let layer = table.layer_index(record.layer).map_err(foreign)?;
        watch(&record, &|expert| table.slot_of(layer, expert).is_some());
        table.resolve(layer, &record.experts).map_err(foreign)?;
        table.count_request(record.experts.len());
        table.settle();
    }
    Ok(table.stats.clone())
}
