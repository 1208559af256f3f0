//! Curves as a picture.

use plotters::prelude::*;

/// One curve: its name and its points.
pub type Series = (String, Vec<(f64, f64)>);

/// Up to where axes have marks that differ.
const LARGEST: f64 = 1e15;

/// The most points of a curve that are marked.
const MOST_DOTS: usize = 40;

const SIZE: (u32, u32) = (760, 420);
const COLOURS: [RGBColor; 8] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 90, 20),
    RGBColor(44, 140, 60),
    RGBColor(190, 40, 50),
    RGBColor(120, 90, 170),
    RGBColor(120, 80, 65),
    RGBColor(200, 90, 170),
    RGBColor(90, 95, 100),
];

/// Curves over one pair of axes as an SVG; `x` on a logarithmic scale where `is_log`.
///
/// # Errors
/// There is nothing to draw; what plotters reports.
pub fn plot(
    title: &str,
    [x_name, y_name]: [&str; 2],
    is_log: bool,
    series: &[Series],
) -> Result<String, String> {
    let points = || series.iter().flat_map(|(_, points)| points.iter().copied());
    let points =
        || points().filter(|(x, y)| x.is_finite() && y.is_finite() && (!is_log || *x > 0.0));
    let (x, y) = (bounds(points().map(|p| p.0)), bounds(points().map(|p| p.1)));
    let (Some(x), Some(y)) = (x, y) else {
        return Err("the plot has no points to draw".to_owned());
    };
    let is_drawable = |(low, high): (f64, f64)| low.abs().max(high.abs()) < LARGEST;
    if !(is_drawable(x) && is_drawable(y)) {
        return Err(format!("a point is beyond {LARGEST:e}"));
    }
    let margin = ((y.1 - y.0) * 0.06).max(1e-9);
    let mut y = (y.0 - margin, y.1 + margin);
    // The legend stands above all curves.
    if series.len() > 1 {
        y.1 += 0.07 * series.len() as f64 * (y.1 - y.0);
    }
    let at = move |value: f64| if is_log { value.log10() } else { value };
    let mut x = (at(x.0), at(x.1));
    if x.0 == x.1 {
        x = (x.0 - 0.5, x.1 + 0.5);
    }
    let mut svg = String::new();
    let failed = |e: &dyn std::fmt::Display| format!("the plot cannot be drawn: {e}");
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(|e| failed(&e))?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(64)
            .build_cartesian_2d(x.0..x.1, y.0..y.1)
            .map_err(|e| failed(&e))?;
        let label = |value: &f64| match is_log {
            true => short(10f64.powf(*value)),
            false => short(*value),
        };
        chart
            .configure_mesh()
            .x_desc(x_name)
            .y_desc(y_name)
            .x_label_formatter(&label)
            .y_label_formatter(&|value| short(*value))
            .max_light_lines(0)
            .bold_line_style(RGBColor(222, 226, 230))
            .draw()
            .map_err(|e| failed(&e))?;
        for (number, (name, points)) in series.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let drawn: Vec<(f64, f64)> = points.iter().map(|(x, y)| (at(*x), *y)).collect();
            let style = colour.stroke_width(2);
            chart
                .draw_series(LineSeries::new(drawn.clone(), style))
                .map_err(|e| failed(&e))?
                .label(name)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], style));
            // Dots of a long curve would hide it.
            let dots = drawn.iter().filter(|_| drawn.len() <= MOST_DOTS);
            let dots = dots.map(|point| Circle::new(*point, 3, colour.filled()));
            chart.draw_series(dots).map_err(|e| failed(&e))?;
        }
        // The title names a single curve.
        if series.len() > 1 {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperRight)
                .background_style(WHITE.mix(0.85))
                .border_style(RGBColor(200, 205, 210))
                .draw()
                .map_err(|e| failed(&e))?;
        }
        area.present().map_err(|e| failed(&e))?;
    }
    Ok(svg)
}

fn bounds(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |bounds, value| {
        let (low, high) = bounds.unwrap_or((value, value));
        Some((low.min(value), high.max(value)))
    })
}

fn short(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(0.01..1e5).contains(&size) {
        let text = format!("{value:.1e}");
        return text.replace(".0e", "e");
    }
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
