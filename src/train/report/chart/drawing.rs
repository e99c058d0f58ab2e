use std::fmt::Write;

/// An SVG picture in the making. It has a ground of its own, so it looks the same on a light and on a dark page.
///
/// Written here because a picture of lines and words takes little more than these functions: the plotting crates were
/// looked at, and none labels a line at its end, where it needs no legend and no colours told apart.
pub(super) struct Drawing {
    body: String,
    clips: usize,
}

/// How a text stands.
#[derive(Clone, Copy)]
pub(super) struct Words {
    pub(super) anchor: &'static str,
    pub(super) size: f64,
    pub(super) colour: &'static str,
    pub(super) bold: bool,
}

/// How a line is drawn.
#[derive(Clone, Copy)]
pub(super) struct Stroke {
    pub(super) colour: &'static str,
    pub(super) width: f64,
    /// As `stroke-dasharray` has it; empty: a whole line.
    pub(super) dashes: &'static str,
}

impl Drawing {
    pub(super) fn new(width: f64, height: f64, title: &str) -> Self {
        let title = escaped(title);
        let body = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\" role=\"img\" font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', \
             Helvetica, Arial, sans-serif\">\n<title>{title}</title>\n<rect x=\"0.5\" y=\"0.5\" width=\"{}\" \
             height=\"{}\" rx=\"6\" fill=\"#ffffff\" stroke=\"#d0d7de\"/>\n",
            width - 1.0,
            height - 1.0
        );
        Self { body, clips: 0 }
    }

    pub(super) fn text(&mut self, (x, y): (f64, f64), text: &str, words: Words) {
        let Words { anchor, size, colour, bold } = words;
        let weight = if bold { " font-weight=\"600\"" } else { "" };
        let text = escaped(text);
        // Writing to a string cannot fail, here and below.
        _ = writeln!(
            self.body,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\" fill=\"{colour}\"{weight}>{text}</text>"
        );
    }

    /// A text that is read from below to above.
    pub(super) fn upward_text(&mut self, (x, y): (f64, f64), text: &str, words: Words) {
        _ = write!(self.body, "<g transform=\"translate({x:.1} {y:.1}) rotate(-90)\">");
        self.text((0.0, 0.0), text, words);
        self.body.push_str("</g>\n");
    }

    pub(super) fn line(&mut self, points: &[(f64, f64)], stroke: Stroke) {
        let Stroke { colour, width, dashes } = stroke;
        let dashes =
            if dashes.is_empty() { String::new() } else { format!(" stroke-dasharray=\"{dashes}\"") };
        let points = coordinates(points);
        _ = writeln!(
            self.body,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" \
             stroke-linejoin=\"round\"{dashes}/>"
        );
    }

    /// A faint surface.
    pub(super) fn surface(&mut self, points: &[(f64, f64)], colour: &str) {
        let points = coordinates(points);
        _ = writeln!(self.body, "<polygon points=\"{points}\" fill=\"{colour}\" fill-opacity=\"0.16\"/>");
    }

    pub(super) fn dot(&mut self, (x, y): (f64, f64), colour: &str) {
        _ = writeln!(
            self.body,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\" stroke=\"#ffffff\"/>"
        );
    }

    /// What `draw` draws, cut off at a rectangle.
    pub(super) fn clipped(
        &mut self,
        (x, y, width, height): (f64, f64, f64, f64),
        draw: impl FnOnce(&mut Self),
    ) {
        let id = self.clips;
        self.clips += 1;
        _ = writeln!(
            self.body,
            "<clipPath id=\"clip{id}\"><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>\
             </clipPath>\n<g clip-path=\"url(#clip{id})\">"
        );
        draw(self);
        self.body.push_str("</g>\n");
    }

    pub(super) fn finish(mut self) -> String {
        self.body.push_str("</svg>\n");
        self.body
    }
}

fn coordinates(points: &[(f64, f64)]) -> String {
    let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    points.join(" ")
}

/// Text as XML allows it; characters that no XML file may hold are left out.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}
