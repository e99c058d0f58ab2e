/// A table as Markdown that is also read easily as it is: columns are aligned, and those that say nothing left out.
#[derive(Default)]
pub(super) struct Columns {
    columns: Vec<(String, Align, Vec<String>)>,
}

/// To which side a column's cells stand.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Align {
    Left,
    Right,
}

impl Columns {
    /// Adds a column. A cell that is `None` becomes a dash; a column of nothing else is left out.
    pub(super) fn add(&mut self, title: &str, align: Align, cells: impl IntoIterator<Item = Option<String>>) {
        let cells: Vec<Option<String>> = cells.into_iter().collect();
        if cells.iter().any(Option::is_some) {
            let cell = |cell: Option<String>| escaped(&cell.unwrap_or_else(|| "–".to_owned()));
            self.columns.push((escaped(title), align, cells.into_iter().map(cell).collect()));
        }
    }

    pub(super) fn render(&self) -> String {
        let rows = self.columns.first().map_or(0, |column| column.2.len());
        let mut lines = vec![String::from("|"); rows + 2];
        for (title, align, cells) in &self.columns {
            let length = |text: &str| text.chars().count();
            let width = cells.iter().map(|cell| length(cell)).fold(length(title).max(3), usize::max);
            let pad = |text: &str| match align {
                Align::Left => format!(" {text:<width$} |"),
                Align::Right => format!(" {text:>width$} |"),
            };
            let rule = match align {
                Align::Left => format!(" {} |", "-".repeat(width)),
                Align::Right => format!(" {}: |", "-".repeat(width - 1)),
            };
            let cells = [pad(title), rule].into_iter().chain(cells.iter().map(|cell| pad(cell)));
            for (line, cell) in lines.iter_mut().zip(cells) {
                line.push_str(&cell);
            }
        }
        lines.join("\n")
    }
}

/// A name is no end of a cell.
fn escaped(text: &str) -> String {
    text.replace('|', "\\|")
}
