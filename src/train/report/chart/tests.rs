//! Charts read as a person reads them: by the numbers written beside the axes.

use proptest::prelude::*;

use super::*;

fn dots(label: &str, points: &[(f64, f64)]) -> Line {
    let points = points.iter().map(|&(x, y)| Point { x, y, low: y, high: y }).collect();
    Line { label: label.into(), form: Form::Dots, points }
}

/// An attribute's number.
fn attribute(element: &str, name: &str) -> f64 {
    let (_, rest) = element.split_once(&format!(" {name}=\"")).unwrap();
    rest.split('"').next().unwrap().parse().unwrap()
}

/// The ticks that stand so: their places along the axis and the numbers written there.
fn ticks(svg: &str, anchor: &str, coordinate: &str) -> Vec<(f64, f64)> {
    let texts = svg.lines().filter(|line| line.contains(anchor) && line.contains("font-size=\"11\""));
    let number = |line: &str| {
        let text = line.split('>').nth(1)?.strip_suffix("</text")?;
        let (text, unit) = match text.strip_suffix('K') {
            Some(text) => (text, 1e3),
            None => text.strip_suffix('M').map_or((text, 1.0), |text| (text, 1e6)),
        };
        // The dots' own numbers are in their colour.
        let tick = line.contains(INK);
        tick.then(|| text.parse::<f64>().ok()).flatten().map(|number| number * unit)
    };
    // A text beside a tick stands on a line a little below it.
    let below = if coordinate == "y" { 4.0 } else { 0.0 };
    texts.filter_map(|line| Some((attribute(line, coordinate) - below, number(line)?))).collect()
}

/// What a place on an axis means, by two ticks.
fn read(ticks: &[(f64, f64)], place: f64, logarithmic: bool) -> f64 {
    let ((p0, n0), (p1, n1)) = (ticks[0], ticks[ticks.len() - 1]);
    let share = (place - p0) / (p1 - p0);
    if logarithmic { n0 * (n1 / n0).powf(share) } else { n0 + share * (n1 - n0) }
}

#[test]
fn points_lie_where_the_axes_say() {
    for (xs, logarithmic) in [([1e4, 3e4, 1e6], true), ([2.0, 4.0, 6.0], false)] {
        let points = [(xs[0], 31.5), (xs[1], 30.25), (xs[2], 28.0)];
        let plot = Plot {
            title: "a plot".into(),
            x: Axis::fitting("x", xs),
            y: Axis::linear("y", points.map(|point| point.1)),
            lines: vec![dots("one", &points)],
        };
        let svg = single(plot);
        let (across, upward) = (ticks(&svg, "\"middle\"", "x"), ticks(&svg, "\"end\"", "y"));
        assert!(across.len() >= 3 && upward.len() >= 3, "{across:?} {upward:?}");
        assert!(across.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1), "to the right is more: {across:?}");
        assert!(upward.is_sorted_by(|a, b| a.0 > b.0 && a.1 < b.1), "up is more: {upward:?}");
        let circles: Vec<&str> = svg.lines().filter(|line| line.starts_with("<circle")).collect();
        assert_eq!(circles.len(), 3);
        for (circle, (x, y)) in circles.iter().zip(points) {
            let found = read(&across, attribute(circle, "cx"), logarithmic);
            assert!((found / x - 1.0).abs() < 0.01, "{found} instead of {x}");
            let found = read(&upward, attribute(circle, "cy"), false);
            assert!((found / y - 1.0).abs() < 0.001, "{found} instead of {y}");
        }
    }
}

/// Every element that is opened is closed, in order, and no name of a run becomes one.
#[test]
fn a_picture_is_well_formed_whatever_names_say() {
    let lines = vec![dots("a<b>&\"c\"\u{1}", &[(1.0, 2.0), (2.0, f64::NAN)]), dots("", &[])];
    let plot =
        Plot { title: "</svg>".into(), x: Axis::linear("<", [1.0, 2.0]), y: Axis::linear("&", [2.0]), lines };
    let svg = single(plot);
    let mut open = Vec::new();
    for element in svg.split('<').skip(1) {
        let (tag, text) = element.split_once('>').unwrap();
        let name = tag.split_whitespace().next().unwrap();
        match name.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name)),
            None if !tag.ends_with('/') => open.push(name),
            None => {}
        }
        let entities = ["&amp;", "&lt;", "&gt;", "&quot;"];
        let rest = entities.iter().fold(text.to_owned(), |text, entity| text.replace(entity, ""));
        assert!(!rest.contains('&') && !rest.contains('\u{1}'), "{text}");
    }
    assert!(open.is_empty(), "{open:?}");
    assert!(svg.contains("a&lt;b&gt;&amp;&quot;c&quot;"));
}

proptest! {
    #[test]
    fn labels_never_touch(mut wanted in prop::collection::vec(0.0..300.0f64, 0..20)) {
        wanted.sort_by(f64::total_cmp);
        let found = spread(&wanted, 15.0, 300.0);
        prop_assert!(found.windows(2).all(|pair| pair[1] - pair[0] >= 15.0 - 1e-9));
        prop_assert!(found.last().is_none_or(|last| *last <= 300.0));
        if wanted.windows(2).all(|pair| pair[1] - pair[0] >= 15.0) {
            prop_assert_eq!(found, wanted);
        }
    }
}
