//! Checks that the tables and columns of nico-api that this program uses exist.

use deadpool_postgres::Object;
use thiserror::Error;
use tokio_postgres::{Row as PgRow, types::Type};

use super::{Store, StoreError, statement::Statement};

/// The schema is wrong, or it could not be checked.
#[derive(Debug, Error)]
pub enum SchemaError {
    /// These tables or columns are missing.
    #[error(
        "the database lacks {}: database_url must name nico-api's database, and nico-api's \
         migrations must have run",
        .0.join(", ")
    )]
    Missing(Vec<String>),
    /// The database did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What differs between the schemas of sites.
pub(super) struct Found {
    /// `tenant_identity_config.encryption_key_id` exists.
    pub(super) has_key_id_column: bool,
}

/// Every table and column that this program reads or writes.
const NEEDED: [(&str, &[&str]); 2] = [
    ("tenants", &["organization_id", "version"]),
    (
        CONFIG_TABLE,
        &[
            "organization_id",
            "encrypted_signing_key_1",
            "encrypted_signing_key_2",
            "encrypted_auth_method_config",
            "updated_at",
        ],
    ),
];

const CONFIG_TABLE: &str = "tenant_identity_config";
const KEY_ID_COLUMN: &str = "encryption_key_id";

/// `to_regclass` finds the table along the search path, as every other statement does.
const COLUMNS_OF_TABLE: Statement = Statement {
    text: "-- columns_of_table\n\
           SELECT a.attname::text, y.typcategory = 'S', format_type(a.atttypid, a.atttypmod) \
           FROM pg_attribute a JOIN pg_type y ON y.oid = a.atttypid \
           WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped",
    types: &[Type::TEXT],
};

// Postgres silently skips a schema of the search path on which the role lacks USAGE.
const WHERE_ELSE: Statement = Statement {
    text: "-- where_else\n\
           SELECT n.nspname::text, has_schema_privilege(n.oid, 'USAGE') FROM pg_class c \
           JOIN pg_namespace n ON n.oid = c.relnamespace \
           WHERE c.relname = $1 AND c.relkind IN ('r', 'p') ORDER BY 2, 1 LIMIT 1",
    types: &[Type::TEXT],
};

const UPDATED_AT: &str = "updated_at";

pub(super) async fn check(store: &Store, client: &Object) -> Result<Found, SchemaError> {
    let mut missing = Vec::new();
    let mut has_key_id_column = false;
    for (table, needed) in NEEDED {
        let rows = store.query(client, &COLUMNS_OF_TABLE, &[&table]).await?;
        let columns = names(&rows)?;
        if columns.is_empty() {
            missing.push(missing_table(store, client, table).await?);
            continue;
        }
        for row in &rows {
            let name: String = row.try_get(0).map_err(StoreError::from)?;
            let is_text: bool = row.try_get(1).map_err(StoreError::from)?;
            if !is_text && name != UPDATED_AT && needed.contains(&name.as_str()) {
                let type_: String = row.try_get(2).map_err(StoreError::from)?;
                missing.push(format!(
                    "column {table}.{name} of type text (its type is {type_})"
                ));
            }
        }
        has_key_id_column |= table == CONFIG_TABLE && columns.iter().any(|c| c == KEY_ID_COLUMN);
        missing.extend(
            needed
                .iter()
                .filter(|column| !columns.iter().any(|found| found == *column))
                .map(|column| format!("column {table}.{column}")),
        );
    }
    if missing.is_empty() {
        Ok(Found { has_key_id_column })
    } else {
        Err(SchemaError::Missing(missing))
    }
}

/// Describes a missing table, and where a table of that name exists.
async fn missing_table(store: &Store, client: &Object, table: &str) -> Result<String, StoreError> {
    let rows = store.query(client, &WHERE_ELSE, &[&table]).await?;
    let Some(row) = rows.first() else {
        return Ok(format!("table {table}"));
    };
    let (schema, usable): (String, bool) = (row.try_get(0)?, row.try_get(1)?);
    Ok(if usable {
        format!("table {table} (there is one in schema {schema}, which is not in the search_path)")
    } else {
        format!("table {table} (there is one in schema {schema}, on which the role lacks USAGE)")
    })
}

/// Whether the column exists now. A migration of nico-api drops it.
pub(super) async fn has_key_id_column(store: &Store, client: &Object) -> Result<bool, StoreError> {
    let columns = store.query_behind_rows(client, &COLUMNS_OF_TABLE, &[&CONFIG_TABLE]);
    let columns = names(&columns.await?)?;
    Ok(columns.iter().any(|column| column == KEY_ID_COLUMN))
}

fn names(rows: &[PgRow]) -> Result<Vec<String>, StoreError> {
    let names: Result<_, _> = rows.iter().map(|row| row.try_get(0)).collect();
    Ok(names?)
}
