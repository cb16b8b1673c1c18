//! Plain tables as kubectl prints them: upper-case titles, columns padded with three spaces, nothing drawn.

/// Renders `rows` under `titles`.
pub(super) fn render(titles: &[&str], rows: &[Vec<String>]) -> String {
    padded(titles, rows, 3)
}

/// As [`render`], with `padding` spaces after the longest cell of a column.
pub(super) fn padded(titles: &[&str], rows: &[Vec<String>], padding: usize) -> String {
    let mut widths: Vec<usize> = titles.iter().map(|title| title.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = line(&widths, padding, titles.iter().copied());
    for row in rows {
        text.push_str(&line(&widths, padding, row.iter().map(String::as_str)));
    }
    text
}

fn line<'a>(widths: &[usize], padding: usize, cells: impl Iterator<Item = &'a str>) -> String {
    let mut text = String::new();
    for (width, cell) in widths.iter().zip(cells) {
        text.push_str(cell);
        let padding = width.saturating_sub(cell.chars().count()) + padding;
        text.extend(std::iter::repeat_n(' ', padding));
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_line_up_and_lines_do_not_trail() {
        let rows =
            vec![vec!["a".to_owned(), "long-name".to_owned()], vec!["namespace".to_owned(), String::new()]];
        let text = super::render(&["NAMESPACE", "NAME"], &rows);
        assert_eq!(text, "NAMESPACE   NAME\na           long-name\nnamespace\n");
    }
}
