CREATE TABLE api_key_changes (
	name TEXT NOT NULL, 
	number BIGINT NOT NULL, 
	action TEXT NOT NULL, 
	recorded_at BIGINT NOT NULL, 
	actor TEXT, 
	digest BLOB, 
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
CREATE TRIGGER api_key_changes_no_update BEFORE UPDATE ON api_key_changes BEGIN SELECT RAISE(ABORT, 'weightledger: append-only, rows are never changed or removed'); END
;
CREATE TRIGGER api_key_changes_no_delete BEFORE DELETE ON api_key_changes BEGIN SELECT RAISE(ABORT, 'weightledger: append-only, rows are never changed or removed'); END
;
CREATE TRIGGER api_key_changes_no_replace BEFORE INSERT ON api_key_changes BEGIN SELECT RAISE(ABORT, 'weightledger: this change of a key exists') WHERE EXISTS (SELECT 1 FROM api_key_changes WHERE name = NEW.name AND number = NEW.number); END
;
