//! The plot mode: CPU time per packet against packet size, one line per target, as an SVG file.
//!
//! The smallest size is the load `udp18` (64 flows of UDP), where nothing arrives in sequence; the
//! others are one TCP download, `bulk1400` with another payload.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use crate::lab::Failure;
use crate::measure::Verdict;
use crate::measure::median;
use crate::report;
use crate::run::Conditions;
use crate::target::Engine;
use crate::workload::Shape;
use crate::workload::Workload;

/// Inner payloads in bytes.
const SIZES: [u16; 8] = [18, 128, 256, 512, 1024, 1400, 4000, 8400];

/// Size of the picture and of the frame in it, in pixels.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 120.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 70.0;

/// Line colours that differ in brightness too, in the order of the targets.
const COLOURS: [&str; 4] = ["#0b5fa5", "#d1661c", "#5a8f29", "#7a4fa3"];

/// One target: its size in bytes and nanoseconds per packet, point by point.
struct Line {
    engine: Engine,
    points: Vec<(f64, f64)>,
}

/// Measures all targets at all sizes, prints the medians, and writes the picture to `file`.
pub(crate) fn draw(
    conditions: &Conditions<'_>,
    engines: &[Engine],
    runs: u16,
    has_checksum: bool,
    file: &Path,
) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    let mut lines: Vec<Line> =
        engines.iter().map(|engine| Line { engine: *engine, points: Vec::new() }).collect();
    writeln!(out, "{:>6}  {:<12}{:>14}  runs", "bytes", "engine", "cpu ns/packet")?;
    for size in SIZES {
        let (workload, shape) = load_of(size, has_checksum);
        let mut costs: Vec<Vec<f64>> = vec![Vec::new(); lines.len()];
        for run in 1..=runs {
            for (line, costs) in lines.iter().zip(&mut costs) {
                let outcome = conditions
                    .run_until_valid(line.engine, &shape, workload.claim(), |_| Ok(()))
                    .map_err(|error| {
                        format!("{size} bytes, run {run} of {}: {error}", line.engine.name())
                    })?;
                if outcome.verdict() != Verdict::Void {
                    costs.push(outcome.cpu_ns_per_packet);
                }
            }
        }
        for (line, costs) in lines.iter_mut().zip(costs) {
            let name = line.engine.name();
            if costs.is_empty() {
                writeln!(out, "{size:>6}  {name:<12}{:>14}  all void", "-")?;
                continue;
            }
            let (count, cost) = (costs.len(), median(costs));
            writeln!(out, "{size:>6}  {name:<12}{cost:>14.0}  {count}")?;
            line.points.push((f64::from(size), cost));
        }
    }
    lines.retain(|line| !line.points.is_empty());
    if lines.is_empty() {
        return Err("all runs shared their core with others: there is nothing to draw".into());
    }
    fs::write(file, svg(&lines, has_checksum)?)?;
    Ok(())
}

/// The load of a size, and the workload of which it is a kind.
fn load_of(size: u16, has_checksum: bool) -> (Workload, Shape) {
    if size == SIZES[0] {
        return (Workload::Udp18, Workload::Udp18.shape(has_checksum));
    }
    // Few large packets fit one send: they can reach less.
    let workload = if size > 1400 { Workload::Bulk8400 } else { Workload::Bulk1400 };
    let shape = Workload::Bulk1400.shape(has_checksum);
    (workload, Shape { payloads: vec![size], ..shape })
}

/// The picture.
fn svg(lines: &[Line], has_checksum: bool) -> Result<String, Failure> {
    let most =
        lines.iter().flat_map(|line| &line.points).map(|(_, cost)| *cost).fold(0.0, f64::max);
    let top = (most / 2000.0).ceil() * 2000.0;
    let (first, last) = (f64::from(SIZES[0]).log2(), f64::from(SIZES[7]).log2());
    let x = |bytes: f64| LEFT + (bytes.log2() - first) / (last - first) * (WIDTH - LEFT - RIGHT);
    let y = |cost: f64| HEIGHT - BOTTOM - cost / top * (HEIGHT - TOP - BOTTOM);
    let mut out = String::new();
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>"
    )?;
    let checksum = if has_checksum { "present" } else { "0" };
    let title = format!("CPU time per packet there and back, one core, outer checksum {checksum}");
    text(&mut out, (LEFT, 24.0), "start", &format!("{title} (ns)"))?;
    text(&mut out, (LEFT, HEIGHT - 12.0), "start", &machine()?)?;
    let middle = f64::midpoint(LEFT, WIDTH - RIGHT);
    let sizes = "inner payload in bytes (18: UDP, 64 flows; others: one TCP download)";
    text(&mut out, (middle, HEIGHT - 34.0), "middle", sizes)?;
    for step in 0..=4 {
        let cost = top * f64::from(step) / 4.0;
        let at = y(cost);
        let right = WIDTH - RIGHT;
        writeln!(out, "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#ccc\" fill=\"none\"/>")?;
        text(&mut out, (LEFT - 8.0, at + 4.0), "end", &format!("{cost:.0}"))?;
    }
    for size in SIZES {
        let at = x(f64::from(size));
        text(&mut out, (at, HEIGHT - BOTTOM + 18.0), "middle", &size.to_string())?;
    }
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let places: Vec<(f64, f64)> =
            line.points.iter().map(|(bytes, cost)| (x(*bytes), y(*cost))).collect();
        let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
        let path = path.join("L");
        writeln!(
            out,
            "<path d=\"M{path}\" stroke=\"{colour}\" stroke-width=\"2\" fill=\"none\"/>"
        )?;
        for (x, y) in &places {
            writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>")?;
        }
    }
    let names = lines.iter().map(|line| (y(line.points[line.points.len() - 1].1), line.engine));
    for (y, engine) in apart(names.collect()) {
        text(&mut out, (WIDTH - RIGHT + 8.0, y + 4.0), "start", engine.name())?;
    }
    out.push_str("</svg>\n");
    Ok(out)
}

/// Names beside the ends of their lines, from the top down, none over another.
fn apart(mut names: Vec<(f64, Engine)>) -> Vec<(f64, Engine)> {
    names.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    let mut above = 0.0;
    for (y, _) in &mut names {
        *y = y.max(above + 14.0);
        above = *y;
    }
    names
}

fn text(out: &mut String, (x, y): (f64, f64), anchor: &str, words: &str) -> Result<(), Failure> {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>")?;
    Ok(())
}

/// The machine in one line.
fn machine() -> Result<String, Failure> {
    let machine = report::machine()?;
    let word = |key: &str| machine[key].as_str().unwrap_or("unknown").to_owned();
    Ok(format!("{}, {} cores, Linux {}", word("cpu"), machine["cores"], word("kernel")))
}
