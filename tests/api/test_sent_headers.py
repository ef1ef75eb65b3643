"""Headers looked up by name are what the framework finds by going through all of them."""

from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers

from weightledger.api.rest.sent_headers import SentHeaders

names = st.sampled_from([b"host", b"origin", b"if-match", b"authorization", b"x-actor"])
values = st.binary(max_size=6)


@settings(max_examples=200, derandomize=True)
@given(st.lists(st.tuples(names, values), max_size=8), names)
def test_they_are_what_the_framework_finds(raw: list[tuple[bytes, bytes]], name: bytes) -> None:
    sent, framework = SentHeaders(raw), Headers(raw=raw)
    text = name.decode()
    assert (name in sent) == (text in framework)
    assert sent.first(name) == framework.get(text)
    assert sent.all(name) == framework.getlist(text)


def test_a_request_that_somebody_gave_other_headers_has_those() -> None:
    scope = {"type": "http", "headers": [(b"x-actor", b"ana")]}
    sent = SentHeaders.of(scope)
    assert SentHeaders.of(scope) is sent
    changed = {**scope, "headers": [*scope["headers"], (b"x-actor", b"ben")]}
    assert SentHeaders.of(changed).all(b"x-actor") == ["ana", "ben"]
    assert SentHeaders.of(scope).all(b"x-actor") == ["ana"]
