"""Nothing that is said holds a password: `mask`, by example and by property."""

from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from weightledger.ledger.errors import InvalidRequest, StorageError
from weightledger.ledger.secrets import _IS_SECRET, mask, secrets_of

SECRET = "hunter2-Zx9"


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://ledger:hunter2-Zx9@db:5432/weights",
        "postgresql+psycopg://:hunter2-Zx9@db/weights",
        "postgresql://ledger@db/weights?password=hunter2-Zx9",
        "postgresql://db/weights?user=a&password=hunter2-Zx9&sslmode=require",
        "postgresql://db/weights?sslpassword=hunter2-Zx9",
        "postgresql://u:p@hunter2-Zx9@db/weights",
        "postgresql://u:a/hunter2-Zx9@db/weights",
        "host=db password=hunter2-Zx9 dbname=weights",
        "host=db password = 'a b\\' hunter2-Zx9' dbname=weights",
        "host=db PASSWORD='hunter2-Zx9'",
        'failed: missing "=" in "x password=hunter2-Zx9"',
        "https://hunter2-Zx9@proxy.example/",
        "s3://bucket/x?X-Amz-Signature=hunter2-Zx9&X-Amz-Credential=hunter2-Zx9",
        "https://acc.blob.core.windows.net/c?sv=1&sig=hunter2-Zx9",
        '{"password": "hunter2-Zx9", "a": 1}',
        "{'api_key': 'hunter2-Zx9'}",
        "AWS_SECRET_ACCESS_KEY=hunter2-Zx9",
        "authorization: Bearer hunter2-Zx9",
        "redis://:hunter2-Zx9@h and postgresql://u:hunter2-Zx9@h/x",
    ],
)
def test_secrets_are_masked(text) -> None:
    assert "hunter2" not in mask(text)
    assert "***" in mask(text)
    assert mask(mask(text)) == mask(text)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://ledger@db:5432/weights",
        "sqlite:////srv/ledger.db",
        "http://127.0.0.1:2242/v1/models",
        "max_tokens=5, prompt_tokens: 7",
        "flag --api-key: an API key is sent in a header",
        "idempotency key 'abc' was used for another request",
        'password authentication failed for user "ledger"',
        "the body holds 3 values, expected 10",
    ],
)
def test_what_is_no_secret_stays(text) -> None:
    assert mask(text) == text


@given(st.text(st.characters(exclude_categories=["Cs", "Zs", "Cc"]), min_size=4, max_size=20))
def test_a_known_secret_is_masked_wherever_it_stands(secret) -> None:
    url = f"postgresql://u:{quote(secret, safe='')}@h/db?password={quote(secret, safe='')}"
    said = f"option {secret} or {quote(secret, safe='')}!"
    assume(secret not in "option  or !" and secret not in "***")
    assert secret not in mask(said, secrets_of(url))


@pytest.mark.parametrize("error", [StorageError, InvalidRequest])
def test_no_error_of_the_ledger_says_a_secret(error) -> None:
    raised = error(f"cannot use postgresql://u:{SECRET}@h/x?password={SECRET}")
    assert SECRET not in str(raised)
    assert "postgresql://u:***@h/x?password=***" in str(raised)


@given(st.from_regex(_IS_SECRET, fullmatch=True))
def test_every_name_of_a_secret_is_noticed(name) -> None:
    assert "hunter2" not in mask(f"{name}={SECRET}")
