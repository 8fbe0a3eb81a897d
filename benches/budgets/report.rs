//! Samples, and what goes into BENCHMARKS.md.

use crate::plots::Plot;
use std::fmt;

/// Measurements of one thing.
#[derive(Clone, Debug, Default)]
pub struct Sample(pub Vec<f64>);

impl Sample {
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The value below which this share of the values lies.
    pub fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let place = share * sorted.len().saturating_sub(1) as f64;
        let at = |place: f64| sorted.get(place as usize).copied().unwrap_or(f64::NAN);
        let low = at(place.floor());
        low + (at(place.ceil()) - low) * place.fract()
    }

    /// Each value divided by the one of `other` that was measured in the same round.
    pub fn over(&self, other: &Self) -> Self {
        self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect()
    }
}

impl FromIterator<f64> for Sample {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

/// The median, and the quartiles in brackets.
impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = if self.median().abs() < 100.0 { 2 } else { 0 };
        let [low, median, high] = [0.25, 0.5, 0.75].map(|share| self.quantile(share));
        match self.0.len() {
            1 => write!(f, "{median:.digits$}"),
            _ => write!(f, "{median:.digits$} [{low:.digits$}–{high:.digits$}]"),
        }
    }
}

/// What one stage has found.
#[derive(Default)]
pub struct Part {
    pub figures: Vec<Figure>,
    /// Tables in Markdown.
    pub tables: String,
    pub plot: Option<Plot>,
}

/// What we wish a figure to be.
pub enum Budget {
    AtMost(f64),
    AtLeast(f64),
}
use Budget::{AtLeast, AtMost};

/// A line of the table of budgets.
pub struct Figure {
    row: [String; 4],
    /// What a user meets where the budget is missed.
    missed: Option<String>,
}

impl Figure {
    /// `means` is what a user meets where this is missed.
    pub fn new(what: &str, budget: Budget, unit: &str, sample: &Sample, means: &str) -> Self {
        let (is_met, budget) = match budget {
            AtMost(limit) => (sample.median() <= limit, format!("≤ {limit} {unit}")),
            AtLeast(limit) => (sample.median() >= limit, format!("≥ {limit} {unit}")),
        };
        let verdict = if is_met { "yes" } else { "**no**" };
        Self {
            row: [what.into(), budget, sample.to_string(), verdict.into()],
            missed: (!is_met).then(|| format!("- {what}: {means}\n")),
        }
    }

    pub fn skipped(what: &str, why: &str) -> Self {
        let why = format!("skipped: {why}");
        Self {
            row: [what.into(), String::new(), why, String::new()],
            missed: None,
        }
    }

    /// The table of all, and what the misses mean.
    pub fn table<'a>(figures: impl Iterator<Item = &'a Self>) -> (String, String) {
        let (rows, missed): (Vec<_>, Vec<_>) = figures
            .map(|figure| (figure.row.clone(), figure.missed.clone()))
            .unzip();
        let table = table(&["figure", "wish", "measured", "met"], rows);
        (table, missed.into_iter().flatten().collect())
    }
}

/// A table in Markdown.
pub fn table<const COLUMNS: usize>(
    titles: &[&str; COLUMNS],
    rows: impl IntoIterator<Item = [String; COLUMNS]>,
) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule = "--:|".repeat(COLUMNS - 1);
    let rows: String = rows.into_iter().map(|row| line(&row)).collect();
    format!(
        "{}|---|{rule}\n{rows}",
        line(&titles.map(ToOwned::to_owned))
    )
}
