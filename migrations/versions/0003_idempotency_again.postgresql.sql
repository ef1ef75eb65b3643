CREATE INDEX events_idempotency_again ON events (md5(idempotency_key), model_id) WHERE idempotency_key IS NOT NULL
;
