//! Columns of text, aligned by their widest cell. Used for plans, inspections and reports.

/// How a column lines up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Rows of cells under an optional header.
#[derive(Debug)]
pub(crate) struct Table {
    align: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(align: &[Align]) -> Self {
        Self { align: align.to_vec(), rows: Vec::new() }
    }

    pub(crate) fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        let cells: Vec<String> = cells.into_iter().map(Into::into).collect();
        assert_eq!(cells.len(), self.align.len(), "a row has one cell per column");
        self.rows.push(cells);
    }

    /// Lines without trailing blanks, two spaces between columns, each line after `indent`.
    pub(crate) fn render(&self, indent: &str) -> String {
        let width = |text: &str| text.chars().count();
        let widths: Vec<usize> = (0..self.align.len())
            .map(|c| self.rows.iter().map(|r| width(&r[c])).max().unwrap_or(0))
            .collect();
        let mut lines = Vec::with_capacity(self.rows.len());
        for row in &self.rows {
            let mut line = String::from(indent);
            for (c, cell) in row.iter().enumerate() {
                let pad = " ".repeat(widths[c] - width(cell));
                let gap = if c == 0 { "" } else { "  " };
                line.push_str(gap);
                match self.align[c] {
                    Align::Left => line.extend([cell.as_str(), pad.as_str()]),
                    Align::Right => line.extend([pad.as_str(), cell.as_str()]),
                }
            }
            lines.push(line.trim_end().to_owned());
        }
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&[Align::Left, Align::Right, Align::Left]);
        table.row(["dense weights", "15.5 GiB", ""]);
        table.row(["bank", "8 MiB", "4 slots"]);
        assert_eq!(table.render("  "), "  dense weights  15.5 GiB\n  bank              8 MiB  4 slots");
    }
}
