//! Pictures of what was measured, as SVG. They follow the reader's light or dark mode, and say in words what they show.

mod chart;
mod scale;

pub use chart::{Panel, Row, Series, rows_height};
pub use scale::Scale;

use std::fmt::Write;
use std::path::Path;

/// Beside BENCHMARKS.md, which shows them.
const DIRECTORY: &str = "docs/plots";

/// Colours of GitHub, in which each series differs from the others in lightness, too.
const STYLE: &str = "\
text{font:13px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#1f2328}\
.title{font-size:15px;font-weight:600}.soft{fill:#59636e}.card{fill:#fff;stroke:#d1d9e0}\
.grid{stroke:#d1d9e0;stroke-width:1}.line{fill:none;stroke-width:2.5;stroke-linejoin:round}\
.dash{stroke-dasharray:5 4;stroke-width:1.5}.band{stroke-width:9;stroke-opacity:.3;stroke-linecap:round}\
.a{fill:#0969da;stroke:#0969da}.b{fill:#bc4c00;stroke:#bc4c00}.c{fill:#59636e;stroke:#59636e}\
text.a,text.b,text.c{stroke:#fff;stroke-width:4;paint-order:stroke;font-weight:600}.line.a,.line.b,.line.c{fill:none}\
@media (prefers-color-scheme:dark){text{fill:#f0f6fc}.soft{fill:#9198a1}\
.card{fill:#0d1117;stroke:#3d444d}.grid{stroke:#2f353d}.a{fill:#4493f8;stroke:#4493f8}\
.b{fill:#f0883e;stroke:#f0883e}.c{fill:#9198a1;stroke:#9198a1}.line.a,.line.b,.line.c{fill:none}\
text.a,text.b,text.c{stroke:#0d1117}}";

/// Which of the colours something has.
#[derive(Clone, Copy, Debug)]
pub enum Colour {
    /// Job Worker.
    Ours,
    /// What it is compared with.
    Theirs,
    /// What nobody can do better.
    Reference,
}

impl Colour {
    fn class(self) -> char {
        match self {
            Self::Ours => 'a',
            Self::Theirs => 'b',
            Self::Reference => 'c',
        }
    }
}

/// A picture that is being drawn, in pixels from its upper left corner.
pub struct Picture {
    name: &'static str,
    size: (u32, u32),
    title: String,
    description: String,
    body: String,
}

impl Picture {
    /// `description` is what somebody hears who cannot see it.
    pub fn new(name: &'static str, size: (u32, u32), title: &str, description: &str) -> Self {
        let mut picture = Self {
            name,
            size,
            title: title.to_owned(),
            description: description.to_owned(),
            body: String::new(),
        };
        picture.text((20.0, 30.0), "title", title);
        picture
    }

    /// `style` is what [`STYLE`] knows, and `end` or `middle` for text that does not begin at its place.
    fn text(&mut self, (x, y): (f64, f64), style: &str, text: &str) {
        let anchor = match style.rsplit_once(' ').map_or(style, |(_, last)| last) {
            anchor @ ("end" | "middle") => format!(" text-anchor=\"{anchor}\""),
            _ => String::new(),
        };
        let text = escaped(text);
        self.add(format_args!(
            "<text x=\"{x:.0}\" y=\"{y:.0}\" class=\"{style}\"{anchor}>{text}</text>"
        ));
    }

    fn line(&mut self, style: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        self.add(format_args!(
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" class=\"{style}\"/>"
        ));
    }

    fn polyline(&mut self, style: &str, points: &[(f64, f64)]) {
        let points: Vec<String> = points
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let points = points.join(" ");
        self.add(format_args!(
            "<polyline points=\"{points}\" class=\"{style}\"/>"
        ));
    }

    fn dot(&mut self, colour: Colour, (x, y): (f64, f64)) {
        let class = colour.class();
        self.add(format_args!(
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\" class=\"{class}\"/>"
        ));
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        writeln!(self.body, "{element}").expect("a string takes everything");
    }

    /// What shows it in a page of Markdown in the repository's main directory.
    pub fn link(&self) -> String {
        format!("![{}]({DIRECTORY}/{}.svg)", self.title, self.name)
    }

    /// Puts it where the pages look for it.
    ///
    /// # Errors
    /// What the system said.
    pub fn write(&self, repository: &Path) -> std::io::Result<()> {
        let directory = repository.join(DIRECTORY);
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join(format!("{}.svg", self.name)), self.svg())
    }

    fn svg(&self) -> String {
        let (width, height) = self.size;
        let (title, description) = (escaped(&self.title), escaped(&self.description));
        let (card_width, card_height) = (width - 1, height - 1);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
             role=\"img\" aria-labelledby=\"title desc\">\n<title id=\"title\">{title}</title>\n\
             <desc id=\"desc\">{description}</desc>\n<style>{STYLE}</style>\n\
             <rect x=\".5\" y=\".5\" width=\"{card_width}\" height=\"{card_height}\" rx=\"8\" class=\"card\"/>\n{}</svg>\n",
            self.body
        )
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
