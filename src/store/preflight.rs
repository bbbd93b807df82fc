//! Checks, before and after each run, that the database allows the run to do its work.

use std::sync::atomic::Ordering;

use deadpool_postgres::Object;
use tokio_postgres::Row as PgRow;

use super::{Hidden, Moment, PoolMode, SetupError, Store, StoreError, statement::Statement};

// Returns one row. Every list in it is NULL if all is well. A missing column is not listed
// as a missing privilege: the schema check reports it.
//
// Since PostgreSQL 17, pg_logical_emit_message has a fourth argument with a default, so its
// signature is not the same everywhere.
//
// Row-level security is harmless if the role can see and write every row. That is so with
// an unconditional policy for the role and no restrictive policy with a condition.
//
// A late trigger runs after the UPDATE of a row, at the end of the statement or at COMMIT. A
// trigger on our tables can write to another table, whose deferrable triggers can then run
// late: a trigger that is not deferred from the start becomes so by SET CONSTRAINTS.
// A foreign key that follows a change of our columns starts the triggers of its own table.
macro_rules! preflight {
    ($name:literal, $last:literal) => {
        concat!(
            $name,
            "\n\
WITH RECURSIVE tables (name, oid) AS (VALUES \
  ('tenants', to_regclass('tenants')), \
  ('tenant_identity_config', to_regclass('tenant_identity_config'))), \
needed (name, col, reads, writes) AS (VALUES \
  ('tenants', 'organization_id', true, false), \
  ('tenants', 'version', true, true), \
  ('tenant_identity_config', 'organization_id', true, false), \
  ('tenant_identity_config', 'encrypted_signing_key_1', true, true), \
  ('tenant_identity_config', 'encrypted_signing_key_2', true, true), \
  ('tenant_identity_config', 'encrypted_auth_method_config', true, true), \
  ('tenant_identity_config', 'updated_at', false, true), \
  ('tenant_identity_config', 'encryption_key_id', false, true)), \
columns AS ( \
  SELECT n.name || '.' || n.col AS name, n.reads, n.writes, t.oid, a.attnum, \
    a.attgenerated <> '' AS generated, y.typcategory = 'S' AS is_text \
  FROM needed n JOIN tables t ON t.name = n.name \
  JOIN pg_attribute a ON a.attrelid = t.oid AND a.attname = n.col AND NOT a.attisdropped \
  JOIN pg_type y ON y.oid = a.atttypid), \
partitions (oid, root) AS ( \
  SELECT oid::oid, oid::oid FROM tables WHERE oid IS NOT NULL \
  UNION SELECT i.inhrelid, p.root FROM partitions p JOIN pg_inherits i ON i.inhparent = p.oid), \
firing (states) AS (VALUES ( \
  CASE current_setting('session_replication_role') WHEN 'replica' THEN 'RA' ELSE 'OA' END)), \
triggers AS ( \
  SELECT format('the trigger %s on %s', t.tgname, t.tgrelid::regclass) AS name, \
    t.tgtype & 66 = 0 AS is_late, p.root IS NOT NULL AND t.tgtype & 16 <> 0 AND ( \
      p.oid <> p.root OR cardinality(t.tgattr::int2[]) = 0 OR EXISTS ( \
        SELECT FROM columns c WHERE c.oid = p.oid AND c.writes \
          AND c.attnum = ANY (t.tgattr::int2[]))) AS fires, \
    t.tgdeferrable AS is_deferrable \
  FROM pg_trigger t LEFT JOIN partitions p ON p.oid = t.tgrelid \
  WHERE NOT t.tgisinternal \
    AND position(t.tgenabled::text IN (SELECT states FROM firing)) > 0), \
late (name) AS ( \
  SELECT name FROM triggers WHERE fires AND is_late \
  UNION SELECT name FROM triggers WHERE is_deferrable \
    AND EXISTS (SELECT FROM triggers WHERE fires) \
  UNION SELECT format('the foreign key %s on %s', k.conname, k.conrelid::regclass) \
  FROM pg_constraint k JOIN columns c ON c.oid = k.confrelid AND c.attnum = ANY (k.confkey) \
  WHERE c.writes AND k.contype = 'f' AND k.confupdtype IN ('c', 'n', 'd') \
  UNION SELECT format('the rule %s on %s', r.rulename, r.ev_class::regclass) \
  FROM pg_rewrite r JOIN partitions p ON p.oid = r.ev_class \
  WHERE r.ev_type = '2' AND position(r.ev_enabled::text IN (SELECT states FROM firing)) > 0) \
SELECT \
  (SELECT string_agg(name, ' and ') FROM tables WHERE oid IS NULL), \
  (SELECT string_agg(t.name, ' and ') FROM tables t JOIN pg_class c ON c.oid = t.oid \
   WHERE c.relkind NOT IN ('r', 'p')), \
  (SELECT string_agg(t.name, ' and ') FROM tables t WHERE row_security_active(t.oid) AND ( \
    EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = t.oid AND NOT p.polpermissive \
      AND EXISTS (SELECT FROM unnest(p.polroles) r WHERE r = 0 OR pg_has_role(r, 'USAGE')) \
      AND p.polcmd IN ('r', 'w', '*') \
      AND (coalesce(pg_get_expr(p.polqual, p.polrelid), 'true') <> 'true' \
        OR coalesce(pg_get_expr(p.polwithcheck, p.polrelid), 'true') <> 'true')) \
    OR 2 > (SELECT count(DISTINCT c.cmd) FROM pg_policy p \
      JOIN (VALUES ('r'), ('w')) c (cmd) ON p.polcmd::text IN (c.cmd, '*') \
      WHERE p.polrelid = t.oid AND p.polpermissive \
      AND EXISTS (SELECT FROM unnest(p.polroles) r WHERE r = 0 OR pg_has_role(r, 'USAGE')) \
      AND pg_get_expr(p.polqual, p.polrelid) = 'true' \
      AND coalesce(pg_get_expr(p.polwithcheck, p.polrelid), 'true') = 'true'))), \
  EXISTS (SELECT FROM tables WHERE row_security_active(oid)), \
  (SELECT string_agg(name, ', ') FROM columns \
   WHERE reads AND NOT has_column_privilege(oid, attnum, 'SELECT')), \
  (SELECT string_agg(name, ', ') FROM columns \
   WHERE writes AND NOT has_column_privilege(oid, attnum, 'UPDATE')), \
  (SELECT bool_and(has_function_privilege(p.oid, 'EXECUTE')) FROM pg_proc p \
   WHERE p.proname = 'pg_logical_emit_message' AND p.proargtypes[2] = 'text'::regtype \
     AND p.pronamespace = 'pg_catalog'::regnamespace), \
  (SELECT string_agg(name, ', ') FROM columns WHERE writes AND generated), \
  (SELECT string_agg(t.name, ' and ') FROM tables t JOIN pg_class c ON c.oid = t.oid \
   WHERE c.relkind = 'r' AND CASE c.relreplident WHEN 'f' THEN false WHEN 'n' THEN true \
     ELSE NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid \
       AND CASE c.relreplident WHEN 'd' THEN i.indisprimary ELSE i.indisreplident END) END \
   AND EXISTS (SELECT FROM pg_publication p JOIN pg_publication_tables pt USING (pubname) \
     WHERE p.pubupdate AND pt.tablename = c.relname \
       AND pt.schemaname = (SELECT nspname FROM pg_namespace WHERE oid = c.relnamespace))), \
  current_setting('default_transaction_read_only')::boolean, \
  pg_is_in_recovery(), \
  current_user::text, \
  pg_snapshot_xmin(pg_current_snapshot())::text::bigint, \
  current_setting('server_version_num')::int, \
  (SELECT string_agg(n.name || '.' || n.col, ', ') FROM needed n \
   WHERE n.col <> 'encryption_key_id' AND NOT EXISTS ( \
     SELECT FROM columns c WHERE c.name = n.name || '.' || n.col)), \
  (SELECT string_agg(name, ', ') FROM columns WHERE reads AND NOT is_text), \
  (SELECT string_agg(name, ', ' ORDER BY name) FROM late)",
            $last
        )
    };
}

const PREFLIGHT: Statement = Statement {
    text: preflight!("-- preflight", ""),
    types: &[],
};

/// The same check for a ping. The last column makes it another statement for
/// `pg_stat_statements`, which ignores comments.
const PING: Statement = Statement {
    text: preflight!("-- ping", ", true"),
    types: &[],
};

// The collation of the ids: its version when the index was built, and its version now.
macro_rules! collation {
    ($recorded:literal, $actual:literal) => {
        concat!(
            "-- collation\n\
             SELECT c.collname::text, ",
            $recorded,
            ", ",
            $actual,
            " FROM pg_attribute a JOIN pg_collation c ON c.oid = a.attcollation \
             CROSS JOIN pg_database d \
             WHERE a.attrelid = to_regclass('tenant_identity_config') \
               AND a.attname = 'organization_id' AND d.datname = current_database()"
        )
    };
}

/// Before version 15, Postgres does not record the version of a database's default
/// collation.
const COLLATION: Statement = Statement {
    text: collation!(
        "c.collversion",
        "CASE WHEN c.collversion IS NOT NULL THEN pg_collation_actual_version(c.oid) END"
    ),
    types: &[],
};

const COLLATION_15: Statement = Statement {
    text: collation!(
        "CASE c.collprovider WHEN 'd' THEN d.datcollversion ELSE c.collversion END",
        "CASE WHEN c.collprovider <> 'd' THEN pg_collation_actual_version(c.oid) \
         WHEN d.datcollversion IS NOT NULL THEN pg_database_collation_actual_version(d.oid) END"
    ),
    types: &[],
};

/// The result of the check before a run.
#[derive(Debug)]
pub struct Preflight {
    /// When the check was made.
    pub moment: Moment,
    /// Why the run could miss rows or could not be made durable. No run may begin.
    pub unfit: Option<SetupError>,
    /// Why no row can be written. A dry run may begin, an apply may not.
    pub unwritable: Option<SetupError>,
    /// Triggers and rules that can change a row after the statement that writes it.
    pub late_triggers: Option<String>,
    /// The server is a standby, which cannot write.
    pub is_standby: bool,
    server_version: i32,
}

impl Preflight {
    fn from_pg(row: &PgRow) -> Result<(Self, bool), StoreError> {
        let list = |column: usize| row.try_get::<_, Option<String>>(column);
        let role: String = row.try_get(11)?;
        let mut unfit = None;
        if let Some(tables) = list(0)? {
            let what = format!(
                "the table {tables} is missing, not in the search_path, or in a schema on which the \
                 role lacks USAGE"
            );
            unfit = Some(SetupError::Schema(what));
        } else if let Some(tables) = list(1)? {
            unfit = Some(Hidden::NotATable(tables).into());
        } else if let Some(columns) = list(14)? {
            unfit = Some(SetupError::Schema(format!(
                "the column {columns} is missing"
            )));
        } else if let Some(columns) = list(15)? {
            let what = format!("the column {columns} is not of type text");
            unfit = Some(SetupError::Schema(what));
        } else if let Some(columns) = list(4)? {
            unfit = Some(SetupError::Privilege(format!("SELECT on {columns}")));
        } else if let Some(tables) = list(2)? {
            unfit = Some(Hidden::ByPolicy { tables, role }.into());
        } else if !row.try_get::<_, bool>(6)? {
            let what = "EXECUTE on the function pg_logical_emit_message";
            unfit = Some(SetupError::Privilege(what.to_owned()));
        }
        let mut unwritable = None;
        if let Some(columns) = list(5)? {
            unwritable = Some(SetupError::Privilege(format!("UPDATE on {columns}")));
        } else if let Some(columns) = list(7)? {
            let what = format!(
                "the columns {columns} are generated, so no UPDATE can write them: \
                 drop the expressions"
            );
            unwritable = Some(SetupError::Update(what));
        } else if let Some(tables) = list(8)? {
            let what = format!(
                "a publication includes updates of {tables} without a replica identity: \
                 set one (ALTER TABLE ... REPLICA IDENTITY)"
            );
            unwritable = Some(SetupError::Update(what));
        } else if row.try_get(9)? {
            unwritable = Some(SetupError::ReadOnly);
        }
        let preflight = Self {
            moment: Moment(row.try_get(12)?),
            unfit,
            unwritable,
            late_triggers: list(16)?,
            is_standby: row.try_get(10)?,
            server_version: row.try_get(13)?,
        };
        Ok((preflight, row.try_get(3)?))
    }
}

impl Store {
    /// Checks what a run needs.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`] or [`StoreError::Setup`] when the database can't be asked.
    pub async fn preflight(&self) -> Result<Preflight, StoreError> {
        let rows = self.read(&PREFLIGHT, &[]).await?;
        let row = rows.first().ok_or_else(StoreError::no_answer)?;
        let (preflight, policies_apply) = Preflight::from_pg(row)?;
        // Policies that allow every row do so only while row_security is on.
        self.policies_apply.store(policies_apply, Ordering::Relaxed);
        Ok(preflight)
    }

    /// Checks on this connection, for a ping, what a run needs.
    pub(super) async fn preflight_on(&self, client: &Object) -> Result<Preflight, StoreError> {
        let rows = self.query(client, &PING, &[]).await?;
        let row = rows.first().ok_or_else(StoreError::no_answer)?;
        Ok(Preflight::from_pg(row)?.0)
    }

    /// Warns if the collation of the ids has another version than when the index was built.
    ///
    /// # Errors
    ///
    /// As [`Store::preflight`].
    pub async fn check_collation(&self, preflight: &Preflight) -> Result<(), StoreError> {
        let sql = match preflight.server_version {
            150_000.. => &COLLATION_15,
            _ => &COLLATION,
        };
        let rows = self.read(sql, &[]).await?;
        let Some(row) = rows.first() else {
            return Ok(());
        };
        let recorded: Option<String> = row.try_get(1)?;
        let actual: Option<String> = row.try_get(2)?;
        if recorded != actual {
            tracing::warn!(
                collation = row.try_get::<_, String>(0)?,
                recorded_version = recorded.unwrap_or_default(),
                actual_version = actual.unwrap_or_default(),
                remedy = "REINDEX TABLE tenants and tenant_identity_config, then ALTER DATABASE or \
                          ALTER COLLATION ... REFRESH COLLATION VERSION",
                "the collation of the organization ids has changed since their index was built"
            );
        }
        Ok(())
    }

    /// The statement that begins a reading transaction in which no policy can hide a row.
    pub(super) fn begin_reading(&self, one_snapshot: bool) -> String {
        let isolation = if one_snapshot {
            "ISOLATION LEVEL REPEATABLE READ "
        } else {
            ""
        };
        // When off, Postgres raises an error where a policy could hide a row.
        let row_security = if self.policies_apply.load(Ordering::Relaxed) {
            "on"
        } else {
            "off"
        };
        let limits = match self.options.pool_mode {
            // The session has these settings already.
            PoolMode::Session => String::new(),
            PoolMode::Transaction => format!(
                "; SET LOCAL lock_timeout = {}; SET LOCAL statement_timeout = {}",
                self.options.lock_timeout.as_millis(),
                self.options.statement_timeout.as_millis()
            ),
        };
        format!(
            "START TRANSACTION {isolation}READ ONLY; SET LOCAL row_security = {row_security}{limits}"
        )
    }
}

/// Checks the database as a run does, and logs every problem.
pub(super) async fn warn(store: &Store) -> Result<(), StoreError> {
    let preflight = store.preflight().await?;
    for problem in preflight.unfit.iter().chain(&preflight.unwritable) {
        tracing::error!(
            reason = problem.reason(),
            %problem,
            "no run can do its work before the database or the role is changed"
        );
    }
    store.check_collation(&preflight).await
}
