//! Line charts as SVG.

mod axis;
mod drawing;
mod number;
#[cfg(test)]
mod tests;

pub(super) use axis::Axis;
pub(super) use number::short;

use drawing::{Drawing, Stroke, Words};

/// A point, and how far what it stands for goes up and down.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

/// How a line's points are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Form {
    /// A line through many points, and the surface between lowest and highest.
    Curve,
    /// A dot each, with its number and a bar from lowest to highest, and a line through them.
    Dots,
    /// A dashed line over the whole width at the height of the first point: something to compare with.
    Level,
}

/// One thing that is drawn, with its name at its right end.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) label: String,
    pub(super) form: Form,
    pub(super) points: Vec<Point>,
}

/// Lines over two axes.
pub(super) struct Plot {
    pub(super) title: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) lines: Vec<Line>,
}

/// A place in the picture: left, top, width, height.
pub(super) type Area = (f64, f64, f64, f64);

/// Dark enough to be read as text on white, and told apart by most who do not see all colours.
const COLOURS: [&str; 7] = ["#0b5cad", "#c2410c", "#00755a", "#8a2f8f", "#8a6500", "#b0123c", "#4b5563"];
/// Lines beyond the colours.
const DASHES: [&str; 3] = ["", "7 3", "2 3"];
const INK: &str = "#1f2328";
const FAINT: &str = "#e4e8ec";
const LABEL_SIZE: f64 = 12.0;
/// From one label to the next.
const LABEL_HEIGHT: f64 = 15.0;

/// One picture of several plots, each in its place.
pub(super) fn picture(width: f64, height: f64, title: &str, plots: &[(Plot, Area)]) -> String {
    let mut drawing = Drawing::new(width, height, title);
    for (plot, area) in plots {
        plot.draw(&mut drawing, *area);
    }
    drawing.finish()
}

/// One plot as a picture, as high as its labels need.
pub(super) fn single(plot: Plot) -> String {
    let height = (plot.lines.len() as f64 * LABEL_HEIGHT + 90.0).max(420.0);
    let title = plot.title.clone();
    picture(860.0, height, &title, &[(plot, (0.0, 0.0, 860.0, height))])
}

impl Plot {
    fn draw(&self, drawing: &mut Drawing, (left, top, width, height): Area) {
        let longest = self.lines.iter().map(|line| line.label.chars().count()).max().unwrap_or(0);
        let labels = (7.0 * longest as f64 + 14.0).min(0.45 * width);
        let inner = (left + 66.0, top + 36.0, width - 66.0 - labels - 8.0, height - 36.0 - 48.0);
        self.draw_axes(drawing, inner);
        drawing.clipped(inner, |drawing| {
            for (line, colour, dashes) in self.coloured() {
                self.draw_line(drawing, line, Stroke { colour, width: 2.0, dashes }, inner);
            }
        });
        for (line, colour, _) in self.coloured().filter(|(line, ..)| line.form == Form::Dots) {
            self.draw_dots(drawing, line, colour, inner);
        }
        self.draw_labels(drawing, inner);
        let title = Words { anchor: "start", size: 14.0, colour: INK, bold: true };
        drawing.text((left + 14.0, top + 23.0), &self.title, title);
    }

    fn coloured(&self) -> impl Iterator<Item = (&Line, &'static str, &'static str)> {
        let style = |i: usize| (COLOURS[i % COLOURS.len()], DASHES[i / COLOURS.len() % DASHES.len()]);
        self.lines.iter().enumerate().map(move |(i, line)| (line, style(i).0, style(i).1))
    }

    fn draw_axes(&self, drawing: &mut Drawing, area: Area) {
        let (left, top, width, height) = area;
        let (right, bottom) = (left + width, top + height);
        let words = |anchor| Words { anchor, size: 11.0, colour: INK, bold: false };
        let faint = Stroke { colour: FAINT, width: 1.0, dashes: "" };
        for tick in &self.y.ticks {
            let y = self.vertical(*tick, area);
            drawing.line(&[(left, y), (right, y)], faint);
            drawing.text((left - 6.0, y + 4.0), &self.y.text(*tick), words("end"));
        }
        for tick in &self.x.ticks {
            let x = self.horizontal(*tick, area);
            drawing.line(&[(x, top), (x, bottom)], faint);
            drawing.text((x, bottom + 16.0), &self.x.text(*tick), words("middle"));
        }
        let frame = Stroke { colour: INK, width: 1.0, dashes: "" };
        drawing.line(&[(left, top), (left, bottom), (right, bottom)], frame);
        let name = Words { size: LABEL_SIZE, ..words("middle") };
        drawing.text((left + width / 2.0, bottom + 36.0), &self.x.label, name);
        drawing.upward_text((left - 50.0, top + height / 2.0), &self.y.label, name);
    }

    fn draw_line(&self, drawing: &mut Drawing, line: &Line, stroke: Stroke, area: Area) {
        let at = |x: f64, y: f64| (self.horizontal(x, area), self.vertical(y, area));
        let Some(first) = line.points.first() else { return };
        if line.form == Form::Curve {
            let above = line.points.iter().map(|p| at(p.x, p.high));
            let below = line.points.iter().rev().map(|p| at(p.x, p.low));
            if line.points.iter().any(|p| p.high > p.low) {
                drawing.surface(&above.chain(below).collect::<Vec<_>>(), stroke.colour);
            }
        }
        // A single point is a level too: what it is to be compared with lies beside it.
        if line.form == Form::Level || line.points.len() == 1 {
            let (y, right) = (self.vertical(first.y, area), area.0 + area.2);
            drawing.line(&[(area.0, y), (right, y)], Stroke { width: 1.2, dashes: "5 4", ..stroke });
        } else {
            drawing.line(&line.points.iter().map(|p| at(p.x, p.y)).collect::<Vec<_>>(), stroke);
        }
    }

    fn draw_dots(&self, drawing: &mut Drawing, line: &Line, colour: &'static str, area: Area) {
        let words = Words { anchor: "start", size: 11.0, colour, bold: false };
        for point in &line.points {
            let x = self.horizontal(point.x, area);
            let [y, low, high] = [point.y, point.low, point.high].map(|y| self.vertical(y, area));
            drawing.line(&[(x, low), (x, high)], Stroke { colour, width: 1.5, dashes: "" });
            drawing.dot((x, y), colour);
            // On the side that a falling line leaves free.
            drawing.text((x + 5.0, y - 7.0), &short(point.y, 4), words);
        }
    }

    /// Each line's name beside its end, moved up or down where two would touch.
    fn draw_labels(&self, drawing: &mut Drawing, area: Area) {
        let (left, top, width, height) = area;
        let mut labels: Vec<_> = self
            .coloured()
            .filter_map(|(line, colour, _)| Some((line.points.last()?, line, colour)))
            .map(|(end, line, colour)| {
                ((self.horizontal(end.x, area), self.vertical(end.y, area)), line, colour)
            })
            .collect();
        labels.sort_by(|a, b| a.0.1.total_cmp(&b.0.1));
        let wanted: Vec<f64> = labels.iter().map(|(end, ..)| end.1.clamp(top, top + height)).collect();
        for (y, (end, line, colour)) in spread(&wanted, LABEL_HEIGHT, top + height).into_iter().zip(labels) {
            // From where a line ends to its name, which may be far.
            if line.form != Form::Level && line.points.len() > 1 && !line.label.is_empty() {
                let stroke = Stroke { colour, width: 0.8, dashes: "1 3" };
                drawing.line(&[end, (left + width + 5.0, y)], stroke);
            }
            let words = Words { anchor: "start", size: LABEL_SIZE, colour, bold: false };
            drawing.text((left + width + 8.0, y + 4.0), &line.label, words);
        }
    }

    fn horizontal(&self, x: f64, (left, _, width, _): Area) -> f64 {
        left + width * self.x.place(x)
    }

    /// Kept near the picture, so that what lies far outside of it is cut off but still a number.
    fn vertical(&self, y: f64, (_, top, _, height): Area) -> f64 {
        top + height * (1.0 - self.y.place(y).clamp(-2.0, 3.0))
    }
}

/// Sorted heights, moved down until they are `apart`, and up again where that left no room above `bottom`.
fn spread(wanted: &[f64], apart: f64, bottom: f64) -> Vec<f64> {
    let mut heights = wanted.to_vec();
    for i in 1..heights.len() {
        heights[i] = heights[i].max(heights[i - 1] + apart);
    }
    let mut limit = bottom;
    for height in heights.iter_mut().rev() {
        *height = height.min(limit);
        limit = *height - apart;
    }
    heights
}
