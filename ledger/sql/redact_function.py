"""PostgreSQL's own redaction: what lets a role that can only append take texts away, and no more.

Lifting a trigger takes the tables' owner, and a server had better not be it. So the owner owns a
function that a server may call: given the key of an event of kind "redacted", it removes what that
event says from beside earlier events of its model, with the triggers of two tables lifted for just
these statements. Without such an event, whole under its own hash, it does nothing; so whoever can
call it can take away what an event of the append-only log says was taken away, and that alone.
"""

from weightledger.ledger.sql.backend import Execute

NAME = "weightledger_redact"
CALL = f"SELECT {NAME}(?)"

# Names of the catalogue come first and those of a session last: nobody can slip in their own.
_PATH = "'search_path=pg_catalog, ' || quote_ident(current_schema()) || ', pg_temp'"

BODY = """
DECLARE
    said json;
    texts text[];
    keys bigint[];
BEGIN
    SELECT convert_from(header, 'UTF8')::json INTO said FROM events
        WHERE event_key = redaction AND kind = 'redacted'
        AND sha256(decode('00', 'hex') || header) = event_hash;
    IF said IS NULL OR said ->> 'kind' <> 'redacted'
            OR (said ->> 'seq')::bigint <> (redaction & 1099511627775) THEN
        RAISE EXCEPTION 'weightledger: no event says that this was redacted';
    END IF;
    texts := ARRAY(SELECT json_array_elements_text(said #> '{body,texts}'));
    keys := ARRAY(
        SELECT ((redaction >> 40) << 40) | seq::bigint
        FROM json_array_elements_text(said #> '{body,events}') AS seq
        WHERE seq::bigint >= 0 AND seq::bigint < (redaction & 1099511627775)
    );
    ALTER TABLE annotations DISABLE TRIGGER annotations_append_only;
    ALTER TABLE touches DISABLE TRIGGER touches_append_only;
    UPDATE annotations SET
        actor = CASE WHEN 'actor' = ANY (texts) THEN NULL ELSE actor END,
        reason = CASE WHEN 'reason' = ANY (texts) THEN NULL ELSE reason END,
        metadata = CASE WHEN 'metadata' = ANY (texts) THEN NULL ELSE metadata END
        WHERE event_key = ANY (keys);
    UPDATE annotations SET salt = ''::bytea WHERE event_key = ANY (keys)
        AND actor IS NULL AND reason IS NULL AND metadata IS NULL;
    IF 'actor' = ANY (texts) THEN
        UPDATE touches SET actor = NULL WHERE event_key = ANY (keys) AND actor IS NOT NULL;
    END IF;
    ALTER TABLE annotations ENABLE ALWAYS TRIGGER annotations_append_only;
    ALTER TABLE touches ENABLE ALWAYS TRIGGER touches_append_only;
END
"""

STATEMENTS = (
    f"DO $do$ BEGIN EXECUTE 'CREATE FUNCTION {NAME}(redaction bigint) RETURNS void LANGUAGE plpgsql"
    " SECURITY DEFINER SET search_path = pg_catalog, ' || quote_ident(current_schema())"
    f" || ', pg_temp AS ' || quote_literal($body${BODY}$body$); END $do$",
    f"REVOKE ALL ON FUNCTION {NAME}(bigint) FROM PUBLIC",
)


def weakness(execute: Execute) -> str | None:
    """What is wrong with the function of this schema, in words; None when all is well."""
    sound = execute(
        "SELECT p.prosrc = ? AND p.prosecdef AND l.lanname = 'plpgsql'"
        f" AND p.proconfig = ARRAY[{_PATH}]"
        " AND NOT has_function_privilege('public', p.oid, 'EXECUTE')"
        " FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang"
        " WHERE p.pronamespace = current_schema()::regnamespace AND p.proname = ?",
        (BODY, NAME),
    ).fetchall()
    return None if sound == [(True,)] else f"function {NAME} is missing or was changed"
