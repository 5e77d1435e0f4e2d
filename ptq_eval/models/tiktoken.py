"""A pickled `tiktoken.Encoding` as a `tokenizer.json`, without running the pickle.

nanochat stores its tokenizer this way.  Unpickling a file can run any code, so it is read by an unpickler that knows
one class, a stand-in which keeps the four entries of an encoding, and refuses every other name.

tiktoken merges, of all neighbours whose bytes together are a token, those of the lowest rank, and takes a whole piece
that is a token at once.  The tokenizers library does the same where it gets every way in which a token is made of two
others, in order of the token's rank, and `ignore_merges`.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from ptq_eval.errors import MissingTokenizerError


class _Encoding:
    """What a pickle says of an encoding."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Reads an encoding and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("tiktoken.core", "Encoding"):
            return _Encoding
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_encoding(path: Path) -> dict[str, Any]:
    """The entries of a pickled encoding: name, pat_str, mergeable_ranks {bytes: rank}, special_tokens {text: id}.

    Nothing in the file is executed.  Raises MissingTokenizerError for anything else in it.
    """
    remedy = "save it as tokenizer.json, or use token ids (.bin, .npy) as text"
    try:
        with path.open("rb") as stream:
            found = _Unpickler(stream).load()
        state = found.state
        ranks, special = dict(state["mergeable_ranks"]), dict(state["special_tokens"])
        if not isinstance(state["pat_str"], str) or not all(isinstance(token, bytes) for token in ranks):
            raise ValueError("a pattern that is no text, or tokens that are no bytes")
        if not all(isinstance(rank, int) for rank in (*ranks.values(), *special.values())):
            raise ValueError("ranks that are no integers")
        if missing := [value for value in range(256) if bytes([value]) not in ranks]:
            raise ValueError(f"no token for the byte {missing[0]}")
    except Exception as error:  # a damaged pickle can fail in any way
        what = f"{path.name} is not a pickled tiktoken encoding"
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise MissingTokenizerError(what, got=reason, remedy=remedy) from error
    return {"name": str(state.get("name", "")), "pat_str": state["pat_str"], "mergeable_ranks": ranks,
            "special_tokens": special}  # fmt: skip


def tokenizer_files(encoding: dict[str, Any], bos: str = "") -> dict[str, str]:
    """The encoding as `tokenizer.json` and `tokenizer_config.json`; `bos` is the token before a text."""
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    ranks: dict[bytes, int] = encoding["mergeable_ranks"]
    letters = bytes_to_unicode()
    text = lambda token: "".join(letters[value] for value in token)
    vocabulary = {text(token): rank for token, rank in ranks.items()}
    merges = [
        (text(left), text(right))
        for token in sorted(ranks, key=ranks.__getitem__)
        for left, right in sorted(_halves(token, ranks), key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    ]
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(encoding["pat_str"]), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    special = sorted(encoding["special_tokens"].items(), key=lambda entry: entry[1])
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [
        {"id": index, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for name, index in special
    ]  # fmt: skip
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    known = {"bos_token": bos} if bos in encoding["special_tokens"] else {}
    return {
        "tokenizer.json": json.dumps(content, ensure_ascii=False),
        "tokenizer_config.json": json.dumps({**about, **known}),
    }


def _halves(token: bytes, ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The ways in which a token is made of two others."""
    cuts = ((token[:at], token[at:]) for at in range(1, len(token)))
    return [(left, right) for left, right in cuts if left in ranks and right in ranks]
