//! The pictures of BENCHMARKS.md.

pub use plotters::prelude::RGBColor;
use plotters::prelude::*;
use std::error::Error;
use std::path::Path;

/// Beside BENCHMARKS.md, which shows them.
const DIRECTORY: &str = "docs/plots";

/// Job Worker, what it is compared with, and what cannot be done better.
pub const OURS: RGBColor = RGBColor(9, 105, 218);
pub const THEIRS: RGBColor = RGBColor(188, 76, 0);
pub const BEST: RGBColor = RGBColor(89, 99, 110);

/// plotters draws black on white: this follows the reader's dark mode.
const STYLE: &str = "<style>text{font-family:system-ui,sans-serif}@media (prefers-color-scheme:dark){\
[fill=\"#FFFFFF\"]{fill:#0d1117}[fill=\"#000000\"]{fill:#f0f6fc}[stroke=\"#000000\"]{stroke:#9198a1}}</style>";

/// A finished picture.
pub struct Plot {
    name: &'static str,
    title: String,
    svg: String,
}

/// One line of a chart.
pub struct Line {
    pub name: String,
    pub colour: RGBColor,
    pub points: Vec<(f64, f64)>,
}

/// An axis: what it is called, and the base of its powers where it is logarithmic.
pub type Axis = (&'static str, Option<f64>);

impl Plot {
    /// Charts of lines beside each other, each with a heading.
    pub fn lines(
        name: &'static str,
        title: &str,
        axes: (Axis, Axis),
        panels: &[(&str, Vec<Line>)],
    ) -> Self {
        Self::new(name, title, |svg| draw_lines(svg, title, axes, panels))
    }

    /// A bar for each name, on a logarithmic axis of milliseconds.
    pub fn bars(name: &'static str, title: &str, bars: &[(String, RGBColor, f64)]) -> Self {
        Self::new(name, title, |svg| draw_bars(svg, title, bars))
    }

    fn new(
        name: &'static str,
        title: &str,
        draw: impl FnOnce(&mut String) -> Result<(), Box<dyn Error>>,
    ) -> Self {
        let mut svg = String::new();
        draw(&mut svg).expect("a string takes everything");
        let (head, body) = svg.split_once(">\n").expect("an element");
        let svg = format!("{head} role=\"img\">\n<title>{title}</title>\n{STYLE}\n{body}");
        let title = title.to_owned();
        Self { name, title, svg }
    }

    /// What shows it in a page of Markdown in the repository's main directory.
    pub fn link(&self) -> String {
        format!("![{}]({DIRECTORY}/{}.svg)", self.title, self.name)
    }

    /// Puts it where the pages look for it.
    pub fn write(&self, repository: &Path) {
        let file = repository.join(DIRECTORY).join(self.name);
        std::fs::write(file.with_extension("svg"), &self.svg).expect("docs/plots");
    }
}

fn draw_lines(
    svg: &mut String,
    title: &str,
    (x, y): (Axis, Axis),
    panels: &[(&str, Vec<Line>)],
) -> Result<(), Box<dyn Error>> {
    let area = SVGBackend::with_string(svg, (760, 340)).into_drawing_area();
    area.fill(&WHITE)?;
    let area = area.titled(title, ("sans-serif", 18))?;
    // the axes are linear for plotters, and have the logarithms
    let place = |(_, base): Axis, value: f64| base.map_or(value, |base| value.log(base));
    let label = |(_, base): Axis, value: f64| match base.map_or(value, |base| base.powf(value)) {
        value if value < 10.0 && value.fract() > 0.01 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    };
    for (area, (heading, lines)) in area.split_evenly((1, panels.len())).iter().zip(panels) {
        let ends = |axis: Axis, of: fn(&(f64, f64)) -> f64| {
            let values = lines.iter().flat_map(|line| &line.points);
            let values: Vec<f64> = values.map(|point| place(axis, of(point))).collect();
            let low = values.iter().copied().fold(f64::MAX, f64::min);
            let high = values.iter().copied().fold(f64::MIN, f64::max);
            match axis.1 {
                Some(_) => low.floor()..high.ceil().max(low.floor() + 1.0),
                None => 0.0..high * 1.1,
            }
        };
        let mut chart = ChartBuilder::on(area)
            .caption(heading, ("sans-serif", 14))
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(ends(x, |point| point.0), ends(y, |point| point.1))?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(11)
            .y_labels(6)
            .x_desc(x.0)
            .y_desc(y.0)
            .x_label_formatter(&|value| label(x, *value))
            .y_label_formatter(&|value| label(y, *value))
            .draw()?;
        for line in lines {
            let (colour, points) = (line.colour, line.points.iter());
            let points = points.map(|point| (place(x, point.0), place(y, point.1)));
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)).point_size(4))?
                .label(&line.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour));
        }
        let mut legend = chart.configure_series_labels();
        legend.position(SeriesLabelPosition::UpperLeft);
        legend.background_style(WHITE.mix(0.8)).draw()?;
    }
    area.present()?;
    Ok(())
}

fn draw_bars(
    svg: &mut String,
    title: &str,
    bars: &[(String, RGBColor, f64)],
) -> Result<(), Box<dyn Error>> {
    let area = SVGBackend::with_string(svg, (760, 70 + 34 * bars.len() as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    let longest = bars.iter().map(|bar| bar.2.log10()).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(10)
        .margin_right(70)
        .margin_left(290)
        .x_label_area_size(24)
        .build_cartesian_2d(-0.3..longest, bars.len() as f64..0.0)?;
    chart
        .configure_mesh()
        .disable_mesh()
        .disable_y_axis()
        .x_labels(4)
        .x_label_formatter(&|value| format!("{:.0} ms", 10_f64.powf(*value)))
        .draw()?;
    for (number, (name, colour, milliseconds)) in bars.iter().enumerate() {
        let (number, end) = (number as f64, milliseconds.log10());
        let corners = [(-0.3, number + 0.25), (end, number + 0.75)];
        chart.draw_series([Rectangle::new(corners, colour.filled())])?;
        let digits = usize::from(*milliseconds < 10.0);
        let (words, font) = (format!("{milliseconds:.digits$} ms"), ("sans-serif", 14));
        chart.draw_series([Text::new(words, (end + 0.03, number + 0.35), font)])?;
        let name = Text::new(name.clone(), (20, 46 + 34 * number as i32), font);
        area.draw(&name)?;
    }
    area.present()?;
    Ok(())
}
