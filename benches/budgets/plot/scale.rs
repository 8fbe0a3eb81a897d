//! Where a value is on an axis.

/// An axis: from which value to which, and over which pixels.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    kind: Kind,
    values: (f64, f64),
    pixels: (f64, f64),
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Linear { step: f64 },
    Logarithmic { base: f64 },
}

impl Scale {
    /// From 0 to at least `highest`, with a line at each round number.
    pub fn linear(highest: f64, pixels: (f64, f64)) -> Self {
        let rough = highest / 4.0;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0]
            .map(|factor| factor * power)
            .into_iter()
            .find(|step| *step >= rough * 0.999)
            .unwrap_or(rough);
        Self {
            kind: Kind::Linear { step },
            values: (0.0, (highest / step).ceil() * step),
            pixels,
        }
    }

    /// From 1 to `last` with a line at each.
    pub fn counted(last: usize, pixels: (f64, f64)) -> Self {
        Self {
            kind: Kind::Linear { step: 1.0 },
            values: (1.0, last as f64),
            pixels,
        }
    }

    /// From the power of `base` at or below `lowest` to that at or above `highest`, with a line at each power.
    pub fn logarithmic(base: f64, lowest: f64, highest: f64, pixels: (f64, f64)) -> Self {
        Self {
            kind: Kind::Logarithmic { base },
            values: (
                base.powf(lowest.log(base).floor()),
                base.powf(highest.log(base).ceil()),
            ),
            pixels,
        }
    }

    /// The pixel of a value.
    pub fn at(&self, value: f64) -> f64 {
        let (low, high) = self.values;
        let share = match self.kind {
            Kind::Linear { .. } => (value - low) / (high - low),
            Kind::Logarithmic { .. } => (value / low).ln() / (high / low).ln(),
        };
        self.pixels.0 + share * (self.pixels.1 - self.pixels.0)
    }

    /// The values that have a line of the grid.
    pub fn ticks(&self) -> Vec<f64> {
        let (low, high) = self.values;
        let (mut ticks, mut tick) = (Vec::new(), low);
        while tick <= high * 1.001 {
            ticks.push(tick);
            tick = match self.kind {
                Kind::Linear { step } => tick + step,
                Kind::Logarithmic { base } => tick * base,
            };
        }
        ticks
    }

    pub fn pixels(&self) -> (f64, f64) {
        self.pixels
    }
}
