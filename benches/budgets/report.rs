//! What goes into BENCHMARKS.md.

use crate::plot::Picture;
use crate::statistics::Sample;
use std::fmt;

/// What one stage has found.
pub struct Part {
    pub figures: Vec<Figure>,
    pub table: Option<Table>,
    pub picture: Option<Picture>,
}

impl From<Vec<Figure>> for Part {
    fn from(figures: Vec<Figure>) -> Self {
        Self {
            figures,
            table: None,
            picture: None,
        }
    }
}

impl From<(Vec<Figure>, Picture)> for Part {
    fn from((figures, picture): (Vec<Figure>, Picture)) -> Self {
        Self {
            picture: Some(picture),
            ..figures.into()
        }
    }
}

impl From<(Vec<Figure>, Table)> for Part {
    fn from((figures, table): (Vec<Figure>, Table)) -> Self {
        Self {
            table: Some(table),
            ..figures.into()
        }
    }
}

impl From<(Vec<Figure>, Table, Picture)> for Part {
    fn from((figures, table, picture): (Vec<Figure>, Table, Picture)) -> Self {
        Self {
            picture: Some(picture),
            ..(figures, table).into()
        }
    }
}

/// Figures and table.
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", Figure::table(&self.figures))?;
        match &self.table {
            Some(table) => writeln!(f, "{table}"),
            None => Ok(()),
        }
    }
}

/// A line of the table of budgets.
pub struct Figure {
    what: String,
    budget: String,
    measured: String,
    verdict: &'static str,
}

impl Figure {
    pub fn at_most(what: &str, limit: f64, unit: &str, sample: &Sample) -> Self {
        Self::with(
            what,
            format!("≤ {limit} {unit}"),
            sample,
            if sample.median() <= limit {
                "yes"
            } else {
                "**no**"
            },
        )
    }

    pub fn at_least(what: &str, limit: f64, unit: &str, sample: &Sample) -> Self {
        Self::with(
            what,
            format!("≥ {limit} {unit}"),
            sample,
            if sample.median() >= limit {
                "yes"
            } else {
                "**no**"
            },
        )
    }

    /// Without a budget.
    pub fn told(what: &str, unit: &str, sample: &Sample) -> Self {
        Self::with(
            what,
            if unit.is_empty() {
                String::new()
            } else {
                format!("– {unit}")
            },
            sample,
            "",
        )
    }

    pub fn skipped(what: &str, why: &str) -> Self {
        Self {
            what: what.to_owned(),
            budget: String::new(),
            measured: format!("skipped: {why}"),
            verdict: "",
        }
    }

    fn with(what: &str, budget: String, sample: &Sample, verdict: &'static str) -> Self {
        Self {
            what: what.to_owned(),
            budget,
            measured: sample.to_string(),
            verdict,
        }
    }

    pub fn table<'a>(figures: impl IntoIterator<Item = &'a Self>) -> Table {
        let mut table = Table::new(&["figure", "budget", "measured", "met"]);
        for figure in figures {
            table.row([
                figure.what.clone(),
                figure.budget.clone(),
                figure.measured.clone(),
                figure.verdict.to_owned(),
            ]);
        }
        table
    }
}

/// A table in Markdown.
pub struct Table(String);

impl Table {
    pub fn new(columns: &[&str]) -> Self {
        let rule = if columns[0] == "figure" {
            "---|"
        } else {
            "--:|"
        };
        Self(format!(
            "| {} |\n|---|{}\n",
            columns.join(" | "),
            rule.repeat(columns.len() - 1)
        ))
    }

    pub fn row<const COLUMNS: usize>(&mut self, cells: [String; COLUMNS]) {
        self.0.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
