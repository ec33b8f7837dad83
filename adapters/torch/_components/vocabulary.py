"""The tokens of a tokenizer: how many there are, and the text of each."""

from collections.abc import Callable
from typing import Any, NamedTuple

from rmtspec.errors import InvalidTypeError, InvalidValueError

#: Tables of embeddings are padded to round numbers of rows: by up to this share, and this number.
_PADDED_SHARE, _PADDED = 0.1, 128
_REPLACED = "\N{REPLACEMENT CHARACTER}"
#: How SentencePiece writes a space before a word.
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


class Vocabulary(NamedTuple):
    """The number of tokens, and the text of each by its number."""

    size: int
    text: Callable[[int], str]

    def check_table(self, rows: int, what: str) -> None:
        """Raise unless a table of so many rows can be one of these tokens."""
        if self.size <= rows <= self.size * (1.0 + _PADDED_SHARE) + _PADDED:
            return
        raise InvalidValueError(
            f"`tokenizer` has {self.size:,} tokens, and {what} has {rows:,} rows; expected one row "
            "for each token, and perhaps a few unused ones. Pass the tokenizer that the model was "
            "trained with."
        )


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """Return the vocabulary of a tokenizer of transformers or tokenizers, or a list of texts."""
    if isinstance(tokenizer, list | tuple) and tokenizer:
        if all(isinstance(token, str) for token in tokenizer):
            return _vocabulary(len(tokenizer), lambda index: str(tokenizer[index]))
    elif callable(getattr(tokenizer, "decode", None)):
        if callable(getattr(tokenizer, "convert_ids_to_tokens", None)):
            return _vocabulary(len(tokenizer), _text(tokenizer, tokenizer.convert_ids_to_tokens))
        if callable(getattr(tokenizer, "id_to_token", None)):
            return _vocabulary(tokenizer.get_vocab_size(), _text(tokenizer, tokenizer.id_to_token))
    hint = ""
    if hasattr(tokenizer, "tokenizer"):
        hint = " Pass its `tokenizer`."
    elif isinstance(tokenizer, str):
        hint = " Load it: transformers.AutoTokenizer.from_pretrained(...)."
    raise InvalidTypeError(
        f"`tokenizer` is a {type(tokenizer).__name__}; expected a tokenizer of transformers or "
        f"tokenizers, or the list of the texts of all tokens, in order.{hint}"
    )


def _vocabulary(size: int, text: Callable[[int], str]) -> Vocabulary:
    return Vocabulary(size, lambda index: text(index) if index < size else f"<row {index}>")


def _text(tokenizer: Any, piece_of: Callable[[int], str | None]) -> Callable[[int], str]:
    def text(index: int) -> str:
        piece = piece_of(index)
        if piece is not None and piece.startswith(_SPACE):  # decoding would drop the space
            return piece.replace(_SPACE, " ")
        decoded = str(tokenizer.decode([index], skip_special_tokens=False))
        if decoded and _REPLACED not in decoded:
            return decoded
        return f"<row {index}>" if piece is None else piece  # a part of a character

    return text
