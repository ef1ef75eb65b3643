CREATE TABLE api_key_changes (
	name TEXT NOT NULL, 
	number BIGINT NOT NULL, 
	action TEXT NOT NULL, 
	recorded_at BIGINT NOT NULL, 
	actor TEXT, 
	digest BYTEA, 
	scope TEXT, 
	expires_at BIGINT, 
	requests_per_minute BIGINT, 
	old_until BIGINT, 
	PRIMARY KEY (name, number)
)
;
CREATE TABLE api_key_uses (
	name TEXT NOT NULL, 
	used_at BIGINT NOT NULL, 
	PRIMARY KEY (name)
)
;
CREATE TRIGGER api_key_changes_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON api_key_changes FOR EACH STATEMENT EXECUTE FUNCTION weightledger_refuse()
;
ALTER TABLE api_key_changes ENABLE ALWAYS TRIGGER api_key_changes_append_only
;
