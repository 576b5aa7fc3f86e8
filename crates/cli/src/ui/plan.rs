//! The memory plan on one screen.

use engine::MemoryPlan;

use super::table::{Align, Table};
use super::{Paint, units};

/// A heading, one line per part, the sum against what there is, and what else there is to know.
pub(crate) fn render(name: &str, plan: &MemoryPlan) -> String {
    let mut table = Table::new(&[Align::Left, Align::Right, Align::Left]);
    for row in &plan.rows {
        table.row([row.name.to_owned(), units::bytes(row.bytes), row.note.clone()]);
    }
    let available = format!("of {} available", units::bytes(plan.available_bytes));
    table.row(["total".to_owned(), units::bytes(plan.total_bytes), available]);
    let notes: String = plan.notes.iter().map(|note| format!("\nnote: {note}")).collect();
    format!("{}\n{}{notes}", Paint::Bold.on(&heading(name, plan)), table.render("  "))
}

fn heading(name: &str, plan: &MemoryPlan) -> String {
    let model = &plan.model;
    let mut parts = vec![name.to_owned(), model.architecture.clone(), format!("{} layers", model.n_layers)];
    if plan.bank.is_some() {
        parts.push(format!(
            "{} with {} experts, top {}",
            model.expert_layers.len(),
            model.n_experts,
            model.top_k
        ));
    } else {
        parts.push("routed experts left out".into());
    }
    parts.join(" · ")
}
