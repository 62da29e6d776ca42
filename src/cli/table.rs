//! Tables for people.

use comfy_table::{ContentArrangement, Table, presets};

/// A table without lines, its columns aligned.
pub(super) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| clean(cell)));
    }
    let mut text = String::new();
    for line in table.lines() {
        // One space of padding on the left of every line, and some on the right.
        let line = line.strip_prefix(' ').unwrap_or(&line);
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// What other peers say of themselves does not get to steer this terminal.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_control_characters_harmless() {
        let rows = [vec!["a".to_owned(), "b\u{1b}[2J".to_owned()], vec!["longer".into(), "c".into()]];
        let text = table(&["ONE", "TWO"], rows);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(!text.contains('\u{1b}'));
        let column = lines[0].find("TWO").expect("a header");
        assert_eq!(lines[2].find('c'), Some(column), "{text}");
    }
}
