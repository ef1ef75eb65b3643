DO $do$
BEGIN
    EXECUTE 'CREATE FUNCTION weightledger_redact(redaction bigint) RETURNS void LANGUAGE plpgsql'
        ' SECURITY DEFINER SET search_path = pg_catalog, ' || quote_ident(current_schema())
        || ', pg_temp AS ' || quote_literal($body$
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
$body$);
END
$do$
;
REVOKE ALL ON FUNCTION weightledger_redact(bigint) FROM PUBLIC
;
