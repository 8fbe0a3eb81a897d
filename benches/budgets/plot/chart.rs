//! The two kinds of charts: lines over an axis, and one row for each of those that are compared.

use super::{Colour, Picture, Scale};
use crate::statistics::Sample;

/// How far apart the names of two lines are at least, in pixels.
const NAME_HEIGHT: f64 = 17.0;

/// Where the first row begins, how high a row is, and what is below the last one, in pixels.
const ROWS: (f64, f64, f64) = (52.0, 34.0, 50.0);

/// A chart of lines: where its axes are, and what is said about them.
pub struct Panel {
    pub x: Scale,
    pub y: Scale,
    /// Said above it.
    pub heading: &'static str,
    /// Said below it.
    pub below: &'static str,
    pub x_label: fn(f64) -> String,
    pub y_label: fn(f64) -> String,
}

/// One line, whose name is at its end.
pub struct Series {
    pub name: String,
    pub colour: Colour,
    /// A line without dots is not measured.
    pub has_dots: bool,
    pub points: Vec<(f64, f64)>,
}

/// One of those that are compared.
pub struct Row {
    pub name: String,
    pub colour: Colour,
    pub sample: Sample,
}

/// How high a picture of this many rows is.
pub fn rows_height(rows: usize) -> u32 {
    let (top, row, bottom) = ROWS;
    (top + rows as f64 * row + bottom) as u32
}

impl Picture {
    /// Draws lines.
    pub fn lines(&mut self, panel: &Panel, series: &[Series]) {
        let Panel { x, y, .. } = panel;
        let ((left, right), (bottom, top)) = (x.pixels(), y.pixels());
        self.text((left, top - 14.0), "soft", panel.heading);
        for tick in y.ticks() {
            let at = y.at(tick);
            self.line("grid", (left, at), (right, at));
            self.text((left - 8.0, at + 4.0), "soft end", &(panel.y_label)(tick));
        }
        for tick in x.ticks() {
            let at = x.at(tick);
            self.text((at, bottom + 20.0), "soft middle", &(panel.x_label)(tick));
        }
        let middle = f64::midpoint(left, right);
        self.text((middle, bottom + 40.0), "soft middle", panel.below);
        for series in series {
            self.series(panel, series);
        }
        self.names(panel, series);
    }

    fn series(&mut self, panel: &Panel, series: &Series) {
        let points: Vec<_> = series
            .points
            .iter()
            .map(|(x, y)| (panel.x.at(*x), panel.y.at(*y)))
            .collect();
        let class = series.colour.class();
        let dashes = if series.has_dots { "" } else { " dash" };
        self.polyline(&format!("line {class}{dashes}"), &points);
        if series.has_dots {
            points.iter().for_each(|at| self.dot(series.colour, *at));
        }
    }

    /// The name of each line at its end, none over another one.
    fn names(&mut self, panel: &Panel, series: &[Series]) {
        let mut ends: Vec<_> = series
            .iter()
            .filter_map(|series| {
                let (x, y) = series.points.last()?;
                Some((panel.x.at(*x), panel.y.at(*y), series))
            })
            .collect();
        ends.sort_by(|(_, one, _), (_, other, _)| one.total_cmp(other));
        let mut free = f64::MIN;
        for (x, y, series) in ends {
            let at = y.max(free);
            free = at + NAME_HEIGHT * series.name.lines().count() as f64;
            let style = series.colour.class().to_string();
            for (number, line) in series.name.lines().enumerate() {
                let below = number as f64 * NAME_HEIGHT;
                self.text((x + 12.0, at + 4.0 + below), &style, line);
            }
        }
    }

    /// Draws a row for each: a dot at the median, the quartiles as a band, and the median in words.
    pub fn rows(&mut self, x: Scale, label: fn(f64) -> String, rows: &[Row]) {
        let (top, height, _) = ROWS;
        let bottom = top + height * rows.len() as f64;
        for tick in x.ticks() {
            let at = x.at(tick);
            self.line("grid", (at, top), (at, bottom));
            self.text((at, bottom + 20.0), "soft middle", &label(tick));
        }
        for (number, row) in rows.iter().enumerate() {
            let y = top + height * (number as f64 + 0.5);
            let [low, median, high] =
                [0.25, 0.5, 0.75].map(|share| x.at(row.sample.quantile(share)));
            let class = row.colour.class();
            self.text((20.0, y + 4.0), "", &row.name);
            self.line(&format!("band {class}"), (low, y), (high, y));
            self.dot(row.colour, (median, y));
            let words = label(row.sample.median());
            self.text((high + 12.0, y + 4.0), &class.to_string(), &words);
        }
    }
}
