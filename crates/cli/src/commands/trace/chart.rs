//! Line charts as SVG: panels one below the other with a common x axis in percent, a legend, and a tooltip at every point.
//! Colours follow the reader's light or dark setting.

use std::fmt::Write as _;

/// Colours that a series can have, beside [`INK`].
pub(super) const COLOURS: usize = 6;
/// The colour of text.
pub(super) const INK: usize = COLOURS;

/// One curve.
pub(super) struct Series {
    pub(super) colour: usize,
    pub(super) dashed: bool,
    /// x in percent, y, what the tooltip says.
    pub(super) points: Vec<(f64, f64, String)>,
}

/// One y axis.
pub(super) struct Panel {
    pub(super) title: String,
    pub(super) y_label: String,
    pub(super) series: Vec<Series>,
}

/// The picture.
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) subtitle: String,
    pub(super) x_label: String,
    /// Below 0, 25, 50, 75 and 100 %.
    pub(super) x_notes: Vec<String>,
    /// Names and colours.
    pub(super) legend: Vec<(String, usize)>,
    /// Names of solid and dashed lines.
    pub(super) strokes: Vec<(String, bool)>,
    pub(super) panels: Vec<Panel>,
}

const WIDTH: f64 = 920.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 24.0;
/// Title, subtitle and legend.
const HEAD: f64 = 112.0;
/// Of a panel's curves.
const HEIGHT: f64 = 230.0;
/// Above the curves of a panel: its title. Below them: the axis.
const ABOVE: f64 = 34.0;
const BELOW: f64 = 46.0;
const FOOT: f64 = 26.0;

const STYLE: &str = "
.sb { --ink: #1b1b19; --soft: #66665f; --grid: #e3e3de; --paper: #fcfcfb;
  --c0: #2a78d6; --c1: #d9541a; --c2: #12875a; --c3: #7a53c9; --c4: #b3386f; --c5: #8a6a00; --c6: var(--ink); }
@media (prefers-color-scheme: dark) { .sb { --ink: #ecece8; --soft: #a5a59e; --grid: #383834; --paper: #1a1a19;
  --c0: #5b9dea; --c1: #f0804a; --c2: #37b98a; --c3: #a98bf0; --c4: #e673a4; --c5: #cfa63a; } }
.sb text { font: 13px system-ui, sans-serif; fill: var(--ink); }
.sb .title { font-size: 15px; font-weight: 600; }
.sb .soft { fill: var(--soft); font-size: 12px; }
.sb .grid { stroke: var(--grid); stroke-width: 1; }
.sb .curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
.sb .dashed { stroke-dasharray: 6 5; stroke-width: 1.5; }
";

impl Chart {
    pub(super) fn render(&self) -> String {
        let panel = ABOVE + HEIGHT + BELOW;
        let height = HEAD + panel * self.panels.len() as f64 + FOOT;
        let mut out = format!(
            "<svg class=\"sb\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             width=\"{WIDTH}\" height=\"{height}\" role=\"img\" aria-label=\"{}\">\n<style>{STYLE}</style>\n\
             <rect width=\"100%\" height=\"100%\" fill=\"var(--paper)\"/>\n",
            escape(&self.title)
        );
        text(&mut out, LEFT, 26.0, "title", "start", &self.title);
        text(&mut out, LEFT, 46.0, "soft", "start", &self.subtitle);
        self.key(&mut out);
        for (i, panel_data) in self.panels.iter().enumerate() {
            self.panel(&mut out, panel_data, HEAD + panel * i as f64 + ABOVE);
        }
        text(&mut out, (LEFT + WIDTH - RIGHT) / 2.0, height - 10.0, "soft", "middle", &self.x_label);
        out += "</svg>";
        out
    }

    /// Colours in one row, ways to draw them in the next.
    fn key(&self, out: &mut String) {
        let colours = self.legend.iter().map(|(name, colour)| (name, *colour, false)).collect();
        let strokes: Vec<_> = self.strokes.iter().map(|(name, dashed)| (name, INK, *dashed)).collect();
        let rows: [Vec<(&String, usize, bool)>; 2] = [colours, strokes];
        for (y, row) in [68.0, 88.0].into_iter().zip(rows) {
            let mut x = LEFT;
            for (name, colour, dashed) in row {
                let class = if dashed { "curve dashed" } else { "curve" };
                let _ = writeln!(
                    out,
                    "<path class=\"{class}\" stroke=\"var(--c{colour})\" d=\"M{x:.1} {y}h26\"/>"
                );
                text(out, x + 32.0, y + 4.0, "", "start", name);
                x += 32.0 + 7.4 * name.chars().count() as f64 + 18.0;
            }
        }
    }

    fn panel(&self, out: &mut String, panel: &Panel, top: f64) {
        let points = || panel.series.iter().flat_map(|series| &series.points);
        let (step, y_max) = ticks(points().map(|point| point.1).fold(0.0, f64::max));
        let x_of = |percent: f64| LEFT + percent / 100.0 * (WIDTH - LEFT - RIGHT);
        let y_of = |y: f64| top + HEIGHT * (1.0 - y / y_max);
        text(out, LEFT, top - 12.0, "title", "start", &panel.title);
        text(out, WIDTH - RIGHT, top - 12.0, "soft", "end", &panel.y_label);
        for i in 0..=(y_max / step).round() as u32 {
            let (value, y) = (f64::from(i) * step, y_of(f64::from(i) * step));
            let _ = writeln!(out, "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{}\"/>", WIDTH - RIGHT);
            text(out, LEFT - 8.0, y + 4.0, "soft", "end", &label(value, step));
        }
        for (i, note) in self.x_notes.iter().enumerate() {
            let percent = 100.0 * i as f64 / (self.x_notes.len() - 1).max(1) as f64;
            let (x, below) = (x_of(percent), top + HEIGHT);
            let _ = writeln!(out, "<path class=\"grid\" d=\"M{x:.1} {top:.1}v{HEIGHT}\"/>");
            let anchor = if i + 1 == self.x_notes.len() { "end" } else { "middle" };
            text(out, x, below + 18.0, "soft", anchor, &format!("{percent:.0} %"));
            text(out, x, below + 33.0, "soft", anchor, note);
        }
        for series in &panel.series {
            let class = if series.dashed { "curve dashed" } else { "curve" };
            let at: Vec<String> =
                series.points.iter().map(|(x, y, _)| format!("{:.1} {:.1}", x_of(*x), y_of(*y))).collect();
            let colour = series.colour;
            let _ = writeln!(
                out,
                "<path class=\"{class}\" stroke=\"var(--c{colour})\" d=\"M{}\"/>",
                at.join("L")
            );
            for (x, y, note) in &series.points {
                let radius = if series.dashed { 2.2 } else { 3.0 };
                let _ = writeln!(
                    out,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{radius}\" fill=\"var(--c{colour})\"><title>{}</title></circle>",
                    x_of(*x),
                    y_of(*y),
                    escape(note)
                );
            }
        }
    }
}

fn text(out: &mut String, x: f64, y: f64, class: &str, anchor: &str, text: &str) {
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\" text-anchor=\"{anchor}\">{}</text>",
        escape(text)
    );
}

/// A round step (1, 2 or 5 times a power of ten) of which four to nine cover `max`, and the multiple that does.
fn ticks(max: f64) -> (f64, f64) {
    let max = if max > 0.0 { max } else { 1.0 };
    let magnitude = 10f64.powf((max / 4.0).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * magnitude);
    let step = steps.into_iter().rev().find(|step| max / step >= 4.0).unwrap_or(steps[0]);
    // A hair less, so that a maximum on a line does not need another one.
    (step, (max / step - 1e-9).ceil().max(1.0) * step)
}

/// With as many decimals as the step has.
fn label(value: f64, step: f64) -> String {
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    format!("{value:.decimals$}")
}

/// For text and attributes alike.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers_above_the_data() {
        assert_eq!(ticks(97.3), (20.0, 100.0));
        assert_eq!(ticks(100.0), (20.0, 100.0));
        assert_eq!(ticks(8.0), (2.0, 8.0));
        assert_eq!(ticks(0.0), (0.2, 1.0));
        for i in 1..2000 {
            let max = f64::from(i) * 0.0137;
            let (step, top) = ticks(max);
            let lines = top / step;
            assert!(top >= max * 0.999_999 && (3.5..=10.5).contains(&lines), "{max}: {step}, {top}");
        }
        assert_eq!(label(0.15, 0.05), "0.15");
        assert_eq!(label(40.0, 20.0), "40");
    }

    #[test]
    fn names_cannot_break_out_of_the_picture() {
        let chart = Chart {
            title: "<script>&\"".into(),
            subtitle: String::new(),
            x_label: "x".into(),
            x_notes: vec!["0".into(), "1 MiB".into()],
            legend: vec![("lru".into(), 0)],
            strokes: vec![("global".into(), false)],
            panels: vec![Panel {
                title: "t".into(),
                y_label: "u".into(),
                series: vec![Series { colour: 0, dashed: false, points: vec![(50.0, 1.0, "<b>".into())] }],
            }],
        };
        let svg = chart.render();
        assert!(!svg.contains("<script>") && !svg.contains("<b>"), "{svg}");
        assert!(svg.contains("&lt;script&gt;&amp;&quot;"), "{svg}");
        assert!(svg.contains("cx=\"486.0\""), "half-way between 76 and 896: {svg}");
    }
}
