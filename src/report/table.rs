//! Tables in plain text.

/// Rows of cells; the first column is aligned to the left, the others to the right.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with this header.
    pub fn new<'a>(header: impl IntoIterator<Item = &'a str>) -> Self {
        Table {
            rows: vec![header.into_iter().map(str::to_owned).collect()],
        }
    }

    /// The cells of all rows, the header's first.
    pub fn rows(&self) -> &[Vec<String>] {
        &self.rows
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for (index, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                match column {
                    0 => line.push_str(&format!("  {cell:<width$}", width = widths[0])),
                    _ => line.push_str(&format!("  {cell:>width$}", width = widths[column])),
                }
            }
            writeln!(f, "{}", line.trim_end())?;
            if index == 0 {
                let rule: usize = widths.iter().map(|width| width + 2).sum();
                writeln!(f, "  {}", "─".repeat(rule.saturating_sub(2)))?;
            }
        }
        Ok(())
    }
}
