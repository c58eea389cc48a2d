//! Tables of text: columns aligned, numbers to the right.

use crate::query::shown::shown;

/// A table that is being filled.
pub(super) struct TextTable {
    heads: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl TextTable {
    /// A table with these heads. A head that begins with `>` aligns its column to the right.
    pub(super) fn new(heads: &[impl AsRef<str>]) -> TextTable {
        TextTable {
            heads: heads.iter().map(|head| head.as_ref().to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    ///
    /// # Panics
    ///
    /// When it has not as many cells as the table has heads.
    pub(super) fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.heads.len(), "a row has a cell a column");
        self.rows.push(cells.iter().map(|cell| shown(cell).into_owned()).collect());
    }

    /// The table as lines, the heads as `style` shows them.
    pub(super) fn render(&self, style: impl Fn(&str) -> String) -> String {
        let heads: Vec<String> =
            self.heads.iter().map(|head| head.trim_start_matches('>').to_owned()).collect();
        let width = |at: usize| {
            let cells = self.rows.iter().map(|row| row[at].chars().count());
            cells.chain([heads[at].chars().count()]).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..heads.len()).map(width).collect();
        let line = |cells: &[String]| {
            let cell = |at: usize| {
                let width = widths[at];
                if self.heads[at].starts_with('>') {
                    format!("{:>width$}", cells[at])
                } else {
                    format!("{:<width$}", cells[at])
                }
            };
            let cells: Vec<String> = (0..cells.len()).map(cell).collect();
            cells.join("  ").trim_end().to_owned()
        };
        let mut text = format!("{}\n", style(&line(&heads)));
        for row in &self.rows {
            text.push_str(&line(row));
            text.push('\n');
        }
        text
    }
}

/// A count with commas: `6,575`.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count that is not shown when it is nothing.
pub(super) fn some(number: u64) -> String {
    if number == 0 { "-".to_owned() } else { count(number) }
}

/// A count that may be one that is not exceeded: `≤ 6,575`.
pub(super) fn up_to(number: u64, exact: bool) -> String {
    match (number, exact) {
        (0, true) => "-".to_owned(),
        (_, true) => count(number),
        (_, false) => format!("≤ {}", count(number)),
    }
}

/// About how many, where it is known.
pub(super) fn about(number: Option<u64>) -> String {
    match number {
        None => "?".to_owned(),
        Some(0) => "-".to_owned(),
        Some(number) => format!("~ {}", count(number)),
    }
}

/// A price.
pub(super) fn usd(cost: Option<f64>) -> String {
    match cost {
        None => "-".to_owned(),
        Some(cost) if cost > 0.0 && cost < 0.1 => format!("${cost:.4}"),
        Some(cost) => format!("${cost:.2}"),
    }
}

/// A number and its noun: `1 row`, `2 rows`.
pub(super) fn counted(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(number), if number == 1 { "" } else { "s" })
}

/// A time span.
pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 0.001 => "-".to_owned(),
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{} min {:02} s", (s / 60.0) as u64, s as u64 % 60),
        s => format!("{} h {:02} min", (s / 3600.0) as u64, s as u64 / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_to_the_right_and_have_commas() {
        let mut table = TextTable::new(&["node", ">rows"]);
        table.row(vec!["a".to_owned(), count(1_234_567)]);
        table.row(vec!["bcdef".to_owned(), some(0)]);
        insta::assert_snapshot!(table.render(str::to_owned), @r"
        node        rows
        a      1,234,567
        bcdef          -
        ");
    }

    #[test]
    fn spans_are_told_in_the_unit_that_fits() {
        assert_eq!(
            [0.0, 2.25, 75.0, 7260.0].map(duration),
            ["-", "2.2 s", "1 min 15 s", "2 h 01 min"]
        );
    }
}
