//! The tables, in Markdown, and the chart, as SVG.

use crate::measure::{Machine, Results, Row, Target, Unit};
use crate::systems::Kind;
use std::fmt::Write;
use std::io;
use std::path::Path;

/// Rates with their ratios, then CPU time, then memory.
pub fn markdown(results: &Results, systems: &[Kind], started: &Machine) -> String {
    let mut page = String::new();
    let mut line = |text: String| {
        page.push_str(&text);
        page.push('\n');
    };
    line(format!(
        "{}; {} repeats, interleaved; medians, with least and most in brackets. Rates are operations a second, or MiB a second where the unit says so.\n",
        started.told(),
        results.repeats()
    ));
    let names: Vec<String> = systems.iter().map(Kind::to_string).collect();
    line(format!("| row | {} | of gocryptfs | of the ceiling | target |", names.join(" | ")));
    line(format!("| --- |{} --: | --: | --- |", " --: |".repeat(systems.len())));
    for row in &results.rows {
        let unit = if row.unit == Unit::MibPerSecond { ", MiB/s" } else { "" };
        let cells: Vec<String> = systems.iter().map(|kind| rate_cell(results, row, *kind)).collect();
        let ratio = |to| ratio(results, row, to).map_or("–".to_owned(), |ratio| format!("{ratio:.2}"));
        let (peer, ceiling) = (ratio(Kind::Gocryptfs), ratio(Kind::Ceiling));
        line(format!(
            "| {}{unit} | {} | {peer} | {ceiling} | {} |",
            row.name,
            cells.join(" | "),
            verdict(results, row)
        ));
    }
    line("\nCPU µs for each operation (or MiB), client + daemon, medians:\n".to_owned());
    line(format!("| row | {} |", names.join(" | ")));
    line(format!("| --- |{}", " --: |".repeat(systems.len())));
    for row in &results.rows {
        let cells: Vec<String> = systems
            .iter()
            .map(|kind| {
                let cpu = results.cpu(row, *kind);
                cpu.map_or("–".to_owned(), |(client, daemon)| format!("{client:.0} + {daemon:.0}"))
            })
            .collect();
        line(format!("| {} | {} |", row.name, cells.join(" | ")));
    }
    line("\nPeak resident memory of the daemon:\n".to_owned());
    for kind in systems {
        if let Some(bytes) = results.memory(*kind) {
            line(format!("- {kind}: {} MiB", bytes >> 20));
        }
    }
    page
}

/// Puts `page` between the markers of `command` in `file`.
pub fn replace(file: &Path, command: &str, page: &str) -> io::Result<()> {
    let (begin, end) = (format!("<!-- {command}: from here -->"), format!("<!-- {command}: to here -->"));
    let text = std::fs::read_to_string(file)?;
    let parts = text.split_once(&begin).and_then(|(head, rest)| Some((head, rest.split_once(&end)?.1)));
    let Some((head, tail)) = parts else {
        return Err(io::Error::other(format!("{}: no markers ({begin})", file.display())));
    };
    std::fs::write(file, format!("{head}{begin}\n\n{page}\n{end}{tail}"))
}

fn rate_cell(results: &Results, row: &Row, kind: Kind) -> String {
    match (results.rates(row, kind), results.failure(row, kind)) {
        (_, Some(_)) => "fails".to_owned(),
        (Some([median, least, most]), None) => format!("{} [{}–{}]", short(median), short(least), short(most)),
        (None, None) => "–".to_owned(),
    }
}

fn short(rate: f64) -> String {
    if rate >= 10_000.0 { format!("{:.1}k", rate / 1000.0) } else { format!("{rate:.0}") }
}

fn median(results: &Results, row: &Row, kind: Kind) -> Option<f64> {
    results.rates(row, kind).map(|[median, ..]| median)
}

fn ratio(results: &Results, row: &Row, to: Kind) -> Option<f64> {
    Some(median(results, row, Kind::Vaultfs)? / median(results, row, to)?)
}

/// Whether the row meets what the project asks of it, and what that is where it does not.
fn verdict(results: &Results, row: &Row) -> String {
    let [Some(ours), Some(peer), Some(ceiling)] =
        [Kind::Vaultfs, Kind::Gocryptfs, Kind::Ceiling].map(|kind| median(results, row, kind))
    else {
        return "–".to_owned();
    };
    let times = if matches!(row.target, Target::TwicePeer | Target::TwicePeerOnDisk) { 2.0 } else { 1.0 };
    let mut missed = Vec::new();
    if ours < times * peer && !(times == 1.0 && ceiling < 1.1 * peer && ours >= 0.9 * ceiling) {
        missed.push(format!("{times:.1} of gocryptfs"));
    }
    let metadata = matches!(row.target, Target::TwicePeer | Target::Metadata);
    if metadata && ours < 0.8 * ceiling {
        missed.push("0.8 of the ceiling".to_owned());
    }
    let bound = median(results, row, Kind::Disk).map_or(ceiling, |disk| disk.min(ceiling));
    if row.target == Target::Stream && ours < 0.7 * bound {
        missed.push("0.7 of ceiling and disk".to_owned());
    }
    if missed.is_empty() { "met".to_owned() } else { format!("**misses** {}", missed.join(", ")) }
}

/// Bars of each row's ratio to gocryptfs, on a logarithmic scale from a tenth to a hundred times.
pub fn chart(results: &Results, systems: &[Kind]) -> String {
    const LEFT: f64 = 290.0;
    const WIDTH: f64 = 560.0;
    const BAR: f64 = 7.0;
    let place = |ratio: f64| LEFT + WIDTH * (ratio.clamp(0.1, 100.0).log10() + 1.0) / 3.0;
    let shown: Vec<Kind> = systems.iter().copied().filter(|kind| !matches!(kind, Kind::Gocryptfs)).collect();
    let step = BAR * shown.len() as f64 + 10.0;
    let height = 70.0 + step * results.rows.len() as f64;
    let mut svg = String::new();
    let _ = writeln!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 {height:.0}" font-family="sans-serif" font-size="11">
<rect width="900" height="{height:.0}" fill="#fff"/>
<text x="10" y="18" font-size="14">Speed as a multiple of gocryptfs, medians of one run (longer is faster)</text>"##
    );
    for (place_of, kind) in shown.iter().enumerate() {
        let x = 10.0 + 110.0 * place_of as f64;
        let _ = writeln!(
            svg,
            r#"<rect x="{x}" y="28" width="10" height="10" fill="{}"/><text x="{}" y="37">{kind}</text>"#,
            colour(*kind),
            x + 14.0
        );
    }
    for mark in [0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0] {
        let (x, stroke) = (place(mark), if mark == 1.0 { "#333" } else { "#ddd" });
        let _ = writeln!(
            svg,
            r#"<line x1="{x:.1}" y1="56" x2="{x:.1}" y2="{height:.0}" stroke="{stroke}"/><text x="{x:.1}" y="53" text-anchor="middle">{mark}×</text>"#
        );
    }
    for (index, row) in results.rows.iter().enumerate() {
        let top = 62.0 + step * index as f64;
        let _ = writeln!(
            svg,
            r#"<text x="{}" y="{:.1}" text-anchor="end">{}</text>"#,
            LEFT - 8.0,
            top + step / 2.0,
            row.name.replace('&', "&amp;")
        );
        let Some(peer) = median(results, row, Kind::Gocryptfs) else { continue };
        for (bar, kind) in shown.iter().enumerate() {
            let Some(rate) = median(results, row, *kind) else { continue };
            let (from, to) = (place(1.0).min(place(rate / peer)), place(1.0).max(place(rate / peer)));
            let _ = writeln!(
                svg,
                r#"<rect x="{from:.1}" y="{:.1}" width="{:.1}" height="{}" fill="{}"/>"#,
                top + BAR * bar as f64,
                (to - from).max(1.0),
                BAR - 1.0,
                colour(*kind)
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn colour(kind: Kind) -> &'static str {
    match kind {
        Kind::Vaultfs => "#0b6e4f",
        Kind::Ceiling => "#9bc1bc",
        Kind::Disk => "#8d99ae",
        Kind::Cryfs => "#d1495b",
        Kind::Securefs => "#edae49",
        Kind::Encfs => "#66a182",
        Kind::Gocryptfs => "#2e4057",
    }
}
