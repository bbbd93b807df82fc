//! Reads a page that Postgres cannot read as a whole. The page is split into smaller parts,
//! down to single rows. So each unreadable row is reported by name, and all other rows are
//! processed.

use deadpool_postgres::Object;
use tokio_postgres::types::{ToSql, Type};

use super::{
    Page, Position, Row, RowError, Store, StoreError, Unreadable,
    page::{PageParams, text, version},
    statement::{Runnable, Statement},
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

/// One row of the page.
enum Part {
    Row(Row),
    Broken { id: Vec<u8>, error: StoreError },
}

impl Store {
    /// The page that begins at `from`, with unreadable rows listed apart.
    pub(super) async fn page_in_parts(&self, from: &Position) -> Result<Page, StoreError> {
        let mut attempt = 0;
        let (parts, next) = loop {
            attempt += 1;
            let lease = self.client().await?;
            match self.parts(&lease, from).await {
                Ok(found) => {
                    lease.release();
                    break found;
                }
                Err(error) => {
                    // The transaction on this connection is still open.
                    drop(lease);
                    self.retry(error, attempt)
                        .await
                        .map_err(StoreError::into_unavailable)?;
                }
            }
        };
        let mut page = Page {
            next,
            ..Page::default()
        };
        for part in parts {
            match part {
                Part::Row(row) => page.rows.push(row),
                Part::Broken { id, error } => {
                    let error = match str::from_utf8(&id) {
                        Ok(id) => self.why_unreadable(id, &error).await?,
                        Err(_) => unreadable(Vec::new(), &error),
                    };
                    page.unreadable.push(Unreadable { id, error });
                }
            }
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
            match self.read_raw(sql, &[&organization_id]).await {
                Ok(_) => {}
                Err(error) if error.is_of_some_row() => {
                    columns.push(column);
                    last = Some(error);
                }
                Err(error) => return Err(error.into_unavailable()),
            }
        }
        if columns.is_empty()
            && let Err(error) = self.read_raw(&READ_VERSION, &[&organization_id]).await
        {
            last = Some(error);
        }
        Ok(unreadable(columns, last.as_ref().unwrap_or(error)))
    }

    /// Reads the rows of one page from `from` on. A part that fails is split in halves.
    async fn parts(
        &self,
        client: &Object,
        from: &Position,
    ) -> Result<(Vec<Part>, Option<Position>), StoreError> {
        let limit = self.options.page_size;
        let (sql, _) = PageParams::new(from, 0, limit).statement();
        // Prepare before the transaction begins: an error while preparing would end it.
        let page = self.within(self.ready(client, sql)).await?;
        let begin = format!("{}; SAVEPOINT part", self.begin_reading(true));
        self.within(client.batch_execute(&begin)).await?;

        let mut found = Vec::new();
        let mut next = from.clone();
        // A stack of parts, the first part on top: the offset from `from`, and the number
        // of rows.
        let mut to_do = vec![(0, limit)];
        let mut read = 0;
        while let Some((further, rows)) = to_do.pop() {
            let params = PageParams::new(from, further, rows);
            let part = self.part(client, &page, sql, &params).await?;
            match part {
                Ok(part) => {
                    let goes_on = part.len() == rows as usize;
                    read += part.iter().map(Row::bytes).sum::<usize>();
                    for row in part {
                        next = Position {
                            after: Some(row.organization_id.clone()),
                            skip: 0,
                        };
                        found.push(Part::Row(row));
                    }
                    // The part ended at the limit of bytes, or at the end of the table.
                    if !goes_on || Page::is_full(read) {
                        break;
                    }
                }
                Err(_) if rows > 1 => {
                    let half = rows / 2;
                    to_do.push((further + half, rows - half));
                    to_do.push((further, half));
                }
                Err(error) => {
                    let id = self.id_at(client, from, further).await?;
                    match str::from_utf8(&id) {
                        Ok(id) => {
                            next = Position {
                                after: Some(id.to_owned()),
                                skip: 0,
                            }
                        }
                        Err(_) => next.skip += 1,
                    }
                    found.push(Part::Broken { id, error });
                }
            }
        }
        self.within(client.batch_execute("COMMIT")).await?;
        // If this was the last row, the next page is empty, which costs little.
        let next = (!found.is_empty()).then_some(next);
        Ok((found, next))
    }

    /// Reads a part, or returns the error of one of its rows. The transaction continues
    /// either way.
    async fn part(
        &self,
        client: &Object,
        page: &Runnable,
        sql: &'static Statement,
        params: &PageParams<'_>,
    ) -> Result<Result<Vec<Row>, StoreError>, StoreError> {
        let rows = self.within(page.query(client, &params.params(sql))).await;
        match rows {
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

    /// The id of one row, as it is stored.
    async fn id_at(
        &self,
        client: &Object,
        from: &Position,
        further: u32,
    ) -> Result<Vec<u8>, StoreError> {
        let offset = i64::from(from.skip) + i64::from(further);
        let [as_text, as_bytes] = match from.after {
            None => [&FIRST_ID, &FIRST_ID_BYTES],
            Some(_) => [&NEXT_ID, &NEXT_ID_BYTES],
        };
        let params: [&(dyn ToSql + Sync); 2] = [&offset, &from.after];
        let rows = match self.query(client, as_text, &params).await {
            Err(error) if error.is_of_some_row() => {
                self.within(client.batch_execute("ROLLBACK TO part"))
                    .await?;
                self.query(client, as_bytes, &params).await?
            }
            rows => rows?,
        };
        let row = rows.first().ok_or_else(StoreError::no_answer)?;
        let text: Option<String> = row.try_get(0)?;
        let bytes: Option<Vec<u8>> = row.try_get(1)?;
        Ok(text.map(String::into_bytes).or(bytes).unwrap_or_default())
    }
}

fn unreadable(columns: Vec<&'static str>, error: &StoreError) -> RowError {
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
