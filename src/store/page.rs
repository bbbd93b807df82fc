//! Reads rows: a page of rows, or the row of one organization.
//!
//! The size of a page is limited in bytes and in rows. SQL replaces a text that is longer than
//! an envelope may be. So memory use does not depend on the size of the stored texts.
//! `octet_length` reads only the header of a stored text and does not decompress it.

use tokio_postgres::types::Type;

use super::{Row, RowError, Store, StoreError, statement::Statement};

/// Maximum size of the texts in a page, in bytes. Only the last row may exceed it. A row of
/// the largest size is a page of its own.
const PAGE_BYTES: u32 = 5 << 19;

// A subquery reads the version of each returned row. With a join, Postgres would read the
// whole of `tenants` for each page.
macro_rules! version {
    ($row:literal) => {
        concat!(
            "(SELECT t.version FROM tenants t WHERE t.organization_id = ",
            $row,
            ".organization_id)"
        )
    };
}

// 1048576 is `envelope::MAX_TEXT_BYTES`, and the text is `rewrap::OVERSIZED`; a test checks
// both. `$if` is a cheaper condition that is true for every longer text.
macro_rules! text {
    ($row:literal, $if:literal, $column:literal) => {
        concat!(
            "CASE WHEN ",
            $if,
            "octet_length(",
            $row,
            ".",
            $column,
            ") > 1048576 \
             THEN '<more than 1 MiB>' ELSE ",
            $row,
            ".",
            $column,
            " END"
        )
    };
}

macro_rules! texts {
    ($row:literal, $if:literal) => {
        concat!(
            text!($row, $if, "encrypted_signing_key_1"),
            ", ",
            text!($row, $if, "encrypted_signing_key_2"),
            ", ",
            text!($row, $if, "encrypted_auth_method_config")
        )
    };
}

macro_rules! select_row {
    () => {
        concat!(
            "SELECT c.organization_id, ",
            texts!("c", ""),
            ", ",
            version!("c"),
            " FROM tenant_identity_config c "
        )
    };
}
pub(super) use {select_row, text, texts, version};

// Pages follow the index of the primary key, and so its collation. `COLLATE "C"` could not
// use that index: every page would scan and sort the whole table.
//
// The running sum follows the order of the index. float8 counts bytes exactly up to 2^53,
// and its sum is cheaper than that of bigint, which is numeric.
macro_rules! select_page {
    ($name:literal, $where:literal) => {
        concat!(
            "-- ",
            $name,
            "\n",
            "SELECT r.organization_id, ",
            texts!("r", "r.bytes > 1048576 AND "),
            ", ",
            version!("r"),
            " FROM (SELECT p.*, sum(p.bytes) OVER (ROWS UNBOUNDED PRECEDING) AS total \
               FROM (SELECT c.organization_id, c.encrypted_signing_key_1, \
                   c.encrypted_signing_key_2, c.encrypted_auth_method_config, \
                   coalesce(octet_length(c.encrypted_signing_key_1)::float8, 0) \
                     + coalesce(octet_length(c.encrypted_signing_key_2)::float8, 0) \
                     + coalesce(octet_length(c.encrypted_auth_method_config)::float8, 0) \
                     AS bytes \
                 FROM tenant_identity_config c ",
            $where,
            " ORDER BY c.organization_id LIMIT $1 OFFSET $2) AS p) AS r \
             WHERE r.total - r.bytes < $3 ORDER BY r.organization_id"
        )
    };
}

pub(super) const FIRST_PAGE: Statement = Statement {
    text: select_page!("first_page", ""),
    types: &[Type::INT8, Type::INT8, Type::FLOAT8],
};

pub(super) const NEXT_PAGE: Statement = Statement {
    text: select_page!("next_page", "WHERE c.organization_id > $4"),
    types: &[Type::INT8, Type::INT8, Type::FLOAT8, Type::TEXT],
};

pub(super) const READ_ROW: Statement = Statement {
    text: concat!(
        "-- read_row\n",
        select_row!(),
        "WHERE c.organization_id = $1"
    ),
    types: &[Type::TEXT],
};

/// Where a page begins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Position {
    /// The page begins after this organization. `None` stands for the start of the table.
    pub(super) after: Option<String>,
    /// Rows to skip after that: their ids can't be read, so `after` cannot name them.
    pub(super) skip: u32,
}

impl Position {
    pub(super) fn after(organization_id: &str) -> Self {
        Self {
            after: Some(organization_id.to_owned()),
            skip: 0,
        }
    }
}

/// Some rows in the order of the primary key's index.
#[derive(Debug, Default)]
pub struct Page {
    /// Rows that could be read.
    pub rows: Vec<Row>,
    /// Rows that Postgres could not read.
    pub unreadable: Vec<Unreadable>,
    /// Where the next page begins; `None` after the last row.
    pub next: Option<Position>,
    /// The SQLSTATE if a part of the table or its index could not be read. Rows may be
    /// missing in this page.
    pub damage: Option<String>,
}

/// A row that Postgres could not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// The id of the organization as it is stored. It may not be UTF-8.
    pub id: Vec<u8>,
    /// Why Postgres could not read the row.
    pub error: RowError,
}

impl Unreadable {
    /// The id, with a replacement character for each invalid byte.
    #[must_use]
    pub fn organization_id(&self) -> String {
        String::from_utf8_lossy(&self.id).into_owned()
    }
}

impl Page {
    /// Whether texts of `bytes` bytes are enough for one page.
    pub(super) fn is_full(bytes: usize) -> bool {
        bytes >= PAGE_BYTES as usize / 2
    }

    /// Whether more rows may follow a page of `rows`, which could hold `limit` rows. The
    /// server counts bytes in its own encoding, so the page can end a little earlier than
    /// this program would expect.
    pub(super) fn may_go_on(rows: &[Row], limit: u32) -> bool {
        let bytes: usize = rows.iter().map(Row::bytes).sum();
        rows.len() >= limit as usize || rows.iter().any(Row::is_cut) || Self::is_full(bytes)
    }
}

impl Store {
    /// Reads the page of rows that begins at `from`, in a READ ONLY transaction.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`] or [`StoreError::Setup`] when the page can't be read.
    pub async fn page(&self, from: &Position) -> Result<Page, StoreError> {
        let limit = self.options.page_size;
        let (sql, params) = PageParams::new(from, limit).statement();
        let rows = match self.read_raw(sql, &params.params(sql)).await {
            Ok(rows) => rows,
            Err(error) if error.is_of_some_row() => {
                // Rare, and a large future.
                return Box::pin(self.page_in_parts(from)).await;
            }
            Err(error) => return Err(error.into_unavailable()),
        };
        // Convert row by row, so that each row of the answer is freed early.
        let rows = rows.into_iter().map(|row| Row::from_pg(&row));
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        let next = match rows.last() {
            Some(last) if Page::may_go_on(&rows, limit) => {
                Some(Position::after(&last.organization_id))
            }
            _ => None,
        };
        Ok(Page {
            rows,
            next,
            ..Page::default()
        })
    }

    /// Reads the row of one organization, in a READ ONLY transaction.
    ///
    /// # Errors
    ///
    /// [`StoreError::Row`] when this row can't be read; [`StoreError::Unavailable`] or
    /// [`StoreError::Setup`] when no row can be read.
    pub async fn row(&self, organization_id: &str) -> Result<Option<Row>, StoreError> {
        let mut rows = self.read_raw(&READ_ROW, &[&organization_id]).await;
        if rows.as_ref().is_err_and(StoreError::is_of_some_row) {
            rows = self.read_by_index(&READ_ROW, &[&organization_id]).await;
        }
        match rows {
            Ok(rows) => rows.first().map(Row::from_pg).transpose(),
            Err(error) if error.is_of_some_row() => {
                let error = Box::pin(self.why_unreadable(organization_id, &error)).await?;
                Err(error.into())
            }
            Err(error) => Err(error.into_unavailable()),
        }
    }
}

/// The parameters of the statement that reads a page.
pub(super) struct PageParams<'a> {
    limit: i64,
    skip: i64,
    bytes: f64,
    after: Option<&'a str>,
}

impl<'a> PageParams<'a> {
    /// `limit` rows from `from` on.
    pub(super) fn new(from: &'a Position, limit: u32) -> Self {
        Self {
            limit: limit.into(),
            skip: from.skip.into(),
            bytes: PAGE_BYTES.into(),
            after: from.after.as_deref(),
        }
    }

    pub(super) fn statement(self) -> (&'static Statement, Self) {
        (
            match self.after {
                None => &FIRST_PAGE,
                Some(_) => &NEXT_PAGE,
            },
            self,
        )
    }

    pub(super) fn params(
        &self,
        sql: &Statement,
    ) -> Vec<&(dyn tokio_postgres::types::ToSql + Sync)> {
        let mut params: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> =
            vec![&self.limit, &self.skip, &self.bytes, &self.after];
        params.truncate(sql.types.len());
        params
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        envelope::MAX_TEXT_BYTES,
        rewrap::{COLUMNS, OVERSIZED},
    };

    #[test]
    fn statements_cut_texts_at_the_limit_of_an_envelope() {
        for sql in [&FIRST_PAGE, &NEXT_PAGE, &READ_ROW] {
            for column in COLUMNS {
                let cut = format!(".{column}) > {MAX_TEXT_BYTES} THEN '{OVERSIZED}' ELSE ");
                assert!(sql.text.contains(&cut), "{}", sql.text);
            }
        }
    }
}
