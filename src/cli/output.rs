//! What people read: aligned tables and fields; and what programs read: JSON.

use super::exit::Failure;
use serde::Serialize;
use std::io::{self, Write};

/// Rows in columns as wide as their widest cell; headings in capitals. Nothing for no rows.
pub fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let headings = headings.map(str::to_uppercase);
    let widths: Vec<usize> = (0..N)
        .map(|column| rows.iter().chain([&headings]).map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in [&headings].into_iter().chain(rows) {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A name and a value on each line, the values aligned.
pub fn fields(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    pairs.iter().map(|(name, value)| format!("{name:<width$}  {value}\n")).collect()
}

/// A name as it can be shown: what would move the cursor or forge a line is escaped.
pub fn shown(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.into() }).collect()
}

pub fn print(text: &str) -> Result<(), Failure> {
    write(text.as_bytes())
}

pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    print(&(serde_json::to_string_pretty(value).expect("an answer is plain data") + "\n"))
}

/// Raw bytes to standard output. A reader that has seen enough, as `head`, ends the command quietly.
pub fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(1),
        written => written.map_err(|e| Failure::io("standard output", e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_and_fields_are_aligned() {
        let rows = [["1".to_owned(), "wörd".into()], ["long".into(), "x".into()]];
        assert_eq!(table(["id", "name"], &rows), "ID    NAME\n1     wörd\nlong  x\n");
        assert_eq!(table(["id"], &[]), "");
        assert_eq!(fields(&[("id", "a".into()), ("longer", "b".into())]), "id      a\nlonger  b\n");
    }

    #[test]
    fn names_cannot_forge_lines() {
        assert_eq!(shown("a\n\x1b[2Jü"), "a\\n\\u{1b}[2Jü");
    }
}
