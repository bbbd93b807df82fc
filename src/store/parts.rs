//! Reads a page that Postgres cannot read as a whole. The page is split into smaller parts,
//! down to single rows. So each unreadable row is reported by name, and all other rows are
//! processed.

use deadpool_postgres::Object;
use tokio_postgres::types::Type;

use super::{
    Page, Position, Row, RowError, Store, StoreError, Unreadable,
    page::{FIRST_PAGE, NEXT_PAGE, PageParams, text, version},
    statement::{FOLLOW_THE_INDEX, Statement},
};
use crate::domain::rewrap::COLUMNS;

macro_rules! id_at {
    ($name:literal, $id:literal, $where:literal) => {
        Statement {
            text: concat!(
                "-- ",
                $name,
                "\nSELECT ",
                $id,
                " FROM tenant_identity_config c ",
                $where,
                " ORDER BY c.organization_id LIMIT 1 OFFSET $1"
            ),
            types: &[Type::INT8, Type::TEXT],
        }
    };
}

// The id as text, or its raw bytes in a database with the encoding SQL_ASCII.
const FIRST_ID: Statement = id_at!(
    "first_id",
    "c.organization_id, NULL::bytea",
    "WHERE $2::text IS NULL"
);
const NEXT_ID: Statement = id_at!(
    "next_id",
    "c.organization_id, NULL::bytea",
    "WHERE c.organization_id > $2"
);
const FIRST_ID_BYTES: Statement = id_at!(
    "first_id_bytes",
    "NULL::text, convert_to(c.organization_id, 'SQL_ASCII')",
    "WHERE $2::text IS NULL"
);
const NEXT_ID_BYTES: Statement = id_at!(
    "next_id_bytes",
    "NULL::text, convert_to(c.organization_id, 'SQL_ASCII')",
    "WHERE c.organization_id > $2"
);

macro_rules! read_column {
    ($column:literal) => {
        Statement {
            text: concat!(
                "-- read_column\nSELECT ",
                text!("c", "", $column),
                " FROM tenant_identity_config c WHERE c.organization_id = $1"
            ),
            types: &[Type::TEXT],
        }
    };
}

/// In the order of [`COLUMNS`].
const READ_COLUMN: [Statement; 3] = [
    read_column!("encrypted_signing_key_1"),
    read_column!("encrypted_signing_key_2"),
    read_column!("encrypted_auth_method_config"),
];

const READ_VERSION: Statement = Statement {
    text: concat!(
        "-- read_version\nSELECT ",
        version!("c"),
        " FROM tenant_identity_config c WHERE c.organization_id = $1"
    ),
    types: &[Type::TEXT],
};

/// A part of a page, as far as its rows or their ids can be read.
struct Parts {
    rows: Vec<Row>,
    broken: Vec<(Vec<u8>, StoreError)>,
    /// Where the next page begins.
    next: Position,
}

impl Store {
    /// The page that begins at `from`, with unreadable rows listed apart.
    pub(super) async fn page_in_parts(&self, from: &Position) -> Result<Page, StoreError> {
        let mut attempts = 0;
        let parts = loop {
            let lease = self.client().await?;
            let parts = self.parts(&lease, from).await;
            let parts = self.conclude(lease, parts, &mut attempts).await;
            if let Some(parts) = parts.map_err(StoreError::into_unavailable)? {
                break parts;
            }
        };
        let parts = match parts {
            Ok(parts) => parts,
            Err(error) => return Box::pin(self.page_behind_damage(from, &error)).await,
        };
        let is_empty = parts.rows.is_empty() && parts.broken.is_empty();
        let mut page = Page {
            rows: parts.rows,
            // If this was the last row, the next page is empty, which costs little.
            next: (!is_empty).then_some(parts.next),
            ..Page::default()
        };
        for (id, error) in parts.broken {
            let error = match str::from_utf8(&id) {
                Ok(id) => self.why_unreadable(id, &error).await?,
                Err(_) => unreadable(Vec::new(), &error),
            };
            page.unreadable.push(Unreadable { id, error });
        }
        Ok(page)
    }

    /// Why the row of `organization_id` cannot be read. Each of its columns is read alone.
    pub(super) async fn why_unreadable(
        &self,
        organization_id: &str,
        error: &StoreError,
    ) -> Result<RowError, StoreError> {
        let mut columns = Vec::new();
        let mut last = None;
        for (column, sql) in COLUMNS.into_iter().zip(&READ_COLUMN) {
            match self.read_by_index(sql, &[&organization_id]).await {
                Ok(_) => {}
                Err(error) if error.is_of_some_row() => {
                    columns.push(column);
                    last = Some(error);
                }
                Err(error) => return Err(error.into_unavailable()),
            }
        }
        if columns.is_empty()
            && let Err(error) = self.read_by_index(&READ_VERSION, &[&organization_id]).await
        {
            last = Some(error);
        }
        Ok(unreadable(columns, last.as_ref().unwrap_or(error)))
    }

    /// Reads the rows of one page from `from` on. A part that fails is read again in halves.
    /// If even the id of the first row cannot be read, the inner result is that error.
    async fn parts(
        &self,
        client: &Object,
        from: &Position,
    ) -> Result<Result<Parts, StoreError>, StoreError> {
        // Prepare before the transaction begins: an error while preparing would end it.
        for sql in [&FIRST_PAGE, &NEXT_PAGE] {
            self.within(self.ready(client, sql)).await?;
        }
        let begin = format!(
            "{}{FOLLOW_THE_INDEX}; SAVEPOINT part",
            self.begin_reading(true)
        );
        self.within(client.batch_execute(&begin)).await?;

        let mut parts = Parts {
            rows: Vec::new(),
            broken: Vec::new(),
            next: from.clone(),
        };
        let mut left = self.options.page_size;
        let mut rows = left;
        let mut bytes = 0;
        while left > 0 && !Page::is_full(bytes) {
            rows = rows.min(left);
            match self.part(client, &parts.next, rows).await? {
                Ok(part) => {
                    let read = u32::try_from(part.len()).unwrap_or(rows);
                    bytes += part.iter().map(Row::bytes).sum::<usize>();
                    if let Some(last) = part.last() {
                        parts.next = Position::after(&last.organization_id);
                    }
                    parts.rows.extend(part);
                    // The part ended at the limit of bytes, or at the end of the table.
                    if read < rows {
                        break;
                    }
                    left -= read;
                    rows *= 2;
                }
                Err(_) if rows > 1 => rows /= 2,
                Err(error) => {
                    let id = match self.id_at(client, &parts.next).await? {
                        Ok(id) => id,
                        Err(_) if parts.next != *from => break,
                        Err(error) => {
                            self.within(client.batch_execute("COMMIT")).await?;
                            return Ok(Err(error));
                        }
                    };
                    match str::from_utf8(&id) {
                        Ok(id) => parts.next = Position::after(id),
                        Err(_) => parts.next.skip += 1,
                    }
                    parts.broken.push((id, error));
                    left -= 1;
                }
            }
        }
        self.within(client.batch_execute("COMMIT")).await?;
        Ok(Ok(parts))
    }

    /// Reads a part, or returns the error of one of its rows. The transaction continues
    /// either way.
    async fn part(
        &self,
        client: &Object,
        from: &Position,
        rows: u32,
    ) -> Result<Result<Vec<Row>, StoreError>, StoreError> {
        let (sql, params) = PageParams::new(from, rows).statement();
        match self.query(client, sql, &params.params(sql)).await {
            Ok(rows) => Ok(Ok(rows
                .iter()
                .map(Row::from_pg)
                .collect::<Result<_, _>>()?)),
            Err(error) if error.is_of_some_row() => {
                self.within(client.batch_execute("ROLLBACK TO part"))
                    .await?;
                Ok(Err(error))
            }
            Err(error) => Err(error),
        }
    }

    /// The id of the first row at `from`, as it is stored. The inner result is the error if
    /// it cannot be read.
    async fn id_at(
        &self,
        client: &Object,
        from: &Position,
    ) -> Result<Result<Vec<u8>, StoreError>, StoreError> {
        let skip = i64::from(from.skip);
        let [as_text, as_bytes] = match from.after {
            None => [&FIRST_ID, &FIRST_ID_BYTES],
            Some(_) => [&NEXT_ID, &NEXT_ID_BYTES],
        };
        for sql in [as_text, as_bytes] {
            match self.query(client, sql, &[&skip, &from.after]).await {
                Ok(rows) => {
                    let row = rows.first().ok_or_else(StoreError::no_answer)?;
                    let text: Option<String> = row.try_get(0)?;
                    let bytes: Option<Vec<u8>> = row.try_get(1)?;
                    let id = text.map(String::into_bytes).or(bytes);
                    return Ok(Ok(id.unwrap_or_default()));
                }
                Err(error) if error.is_of_some_row() => {
                    let rollback = client.batch_execute("ROLLBACK TO part");
                    self.within(rollback).await?;
                    if error.is_damage() {
                        return Ok(Err(error));
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::no_answer())
    }
}

pub(super) fn unreadable(columns: Vec<&'static str>, error: &StoreError) -> RowError {
    match error {
        StoreError::Row(RowError::Refused(sqlstate)) => RowError::Unreadable {
            columns,
            sqlstate: sqlstate.clone(),
        },
        StoreError::Row(error) => error.clone(),
        _ => RowError::Unreadable {
            columns,
            sqlstate: "unknown".to_owned(),
        },
    }
}
