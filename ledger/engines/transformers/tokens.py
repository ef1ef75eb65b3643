"""Text to token ids and back, within what the model takes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from weightledger.ledger.engines.text import Prompt
from weightledger.ledger.errors import ContextTooLong, InvalidRequest

# Tokenizers without a limit say so with a huge number.
_NO_LIMIT = 1 << 30

_BROKEN = "\ufffd"
"""What stands for bytes that are no whole character."""

UNLIMITED = 32768
"""Tokens of a text where neither the model nor its tokenizer has a limit: requests need one."""


class Tokens:
    """A tokenizer with the limits of its model: `max_tokens`, and ids below `vocabulary`.

    `max_tokens` is the least of what the folder says, what the model's positions were measured to
    reach, and what its config and its tokenizer say; UNLIMITED where none of them says anything.
    """

    def __init__(
        self, tokenizer: Any, model: Any, max_tokens: int | None, measured: int | None = None
    ) -> None:
        self._tokenizer = tokenizer
        # Files may set these; changing them at each call is not safe between threads.
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:
            backend.no_truncation()
            backend.no_padding()
        self.vocabulary = int(model.get_input_embeddings().weight.shape[0])
        text = model.config.get_text_config()
        limits = (max_tokens, measured, _positions(text), tokenizer.model_max_length)
        known = [int(limit) for limit in limits if limit is not None and 0 < limit < _NO_LIMIT]
        self.max_tokens = min(known, default=UNLIMITED)
        pad = tokenizer.pad_token_id
        self.pad = pad if pad is not None and pad < self.vocabulary else 0

    def of(self, prompt: Prompt, param: str | None) -> list[int]:
        """The ids of a text with the special tokens that belong around it, or the ids as given."""
        if isinstance(prompt, str):
            return self._checked(self._ids(prompt, special=True), param)
        return self._checked(list(prompt), param)

    def of_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The ids of a conversation, by the tokenizer's chat template."""
        if not self._tokenizer.chat_template:
            raise InvalidRequest(
                "the model's tokenizer has no chat template; use /v1/completions", param="messages"
            )
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # noqa: BLE001  (a template may trip over what it was not made for)
            raise InvalidRequest(
                f"the chat template refused the messages: {error}", param="messages"
            ) from None
        return self._checked(self._ids(text, special=False), "messages")

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these tokens, without the special ones."""
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _ids(self, text: str, *, special: bool) -> list[int]:
        made = self._tokenizer(
            text, add_special_tokens=special, truncation=False, padding=False, verbose=False
        )
        return list(made["input_ids"])

    def _checked(self, ids: list[int], param: str | None) -> list[int]:
        if not ids:
            raise InvalidRequest("the text is empty; expected at least one token", param=param)
        # Tokens of a text too: a tokenizer may have more of them than the model.
        wrong = [t for t in ids if not 0 <= t < self.vocabulary]
        if wrong:
            raise InvalidRequest(
                f"token ids must be from 0 to {self.vocabulary - 1}, got {wrong[0]}", param=param
            )
        if len(ids) > self.max_tokens:
            raise ContextTooLong(
                f"This model's maximum context length is {self.max_tokens} tokens, but the text "
                f"has {len(ids)}. Please shorten it.",
                param=param,
            )
        return ids


class Decoder:
    """Tokens to text as they come, giving out a character once all its bytes are there.

    The text is what follows the prompt's in the text of both: some tokenizers write no space
    before the first of all words. Only the tokens since the last text was given out are decoded
    again, after those of the text before, the way of Hugging Face's text generation server.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int] = ()) -> None:
        self._decode = decode
        self._tokens = list(prompt)
        self._context = 0
        self._given = len(self._tokens)

    def add(self, token: int) -> str:
        """The text that this token completes; often empty."""
        self._tokens.append(token)
        text = self._new()
        if not text or text.endswith(_BROKEN):
            return ""
        self._context, self._given = self._given, len(self._tokens)
        return text

    def finish(self) -> str:
        """What is left at the end: a character whose bytes never all came."""
        text = self._new()
        self._context = self._given = len(self._tokens)
        return text

    def _new(self) -> str:
        known = self._decode(self._tokens[self._context : self._given])
        whole = self._decode(self._tokens[self._context :])
        # A prompt may end inside of a character, which only now gets its last bytes.
        return whole[len(known if whole.startswith(known) else known.rstrip(_BROKEN)) :]


def _positions(config: Any) -> int | None:
    """What a config says about positions, under the names that families have for it."""
    for name in ("max_position_embeddings", "max_seq_len", "n_positions", "seq_length"):
        limit = getattr(config, name, None)
        if isinstance(limit, int):
            return limit
    return None
