//! Tables of text.

use comfy_table::{CellAlignment, ContentArrangement, Table, TableStyle};

use super::text::plain;

/// A table with these column heads. The columns `right` are aligned to the right.
pub(crate) fn table(heads: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(TableStyle::new())
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(heads.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|cell| plain(cell).replace('\n', " ")));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        // No padding before the first column, and two spaces between columns.
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [["kv1", "0", "a\nb"], ["kv-long", "1,000", ""]];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec()).to_vec();
        assert_eq!(
            table(&["KEY", "SECRETS", "WHY"], &[1], rows),
            "KEY      SECRETS  WHY\nkv1            0  a b\nkv-long    1,000\n"
        );
    }
}
