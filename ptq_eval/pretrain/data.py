"""The tokenizer of a training run, and its batches in an order determined by a seed.

The order of windows is a pure function of (seed, epoch), so a resumed run sees the same batches as an uninterrupted
one, without any saved state of a data loader.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

from ptq_eval.errors import TextTooShortError

END_OF_TEXT = "<|endoftext|>"
PIECE = 1_000_000
"""Characters that are encoded as one."""
PIECES_AT_ONCE = 8


def train_tokenizer(text: str, vocab: int) -> Any:
    """A byte-level BPE tokenizer with `vocab` entries, trained on `text`; decoding restores any string."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Pieces of bounded length, because the trainer counts words within each.
    tokenizer.train_from_iterator((text[i : i + 100_000] for i in range(0, len(text), 100_000)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, unk_token=END_OF_TEXT
    )


def encode(tokenizer: Any, text: str) -> np.ndarray:
    """Token ids of `text` as a 1-D int32 array, encoded in pieces of `PIECE` characters.

    Pieces go to the tokenizer a few at a time: an encoding takes about a hundred bytes per token.
    """
    if not text:
        raise TextTooShortError("the training text is empty", got="0 characters", remedy="use a longer text")
    ids = []
    for start in range(0, len(text), PIECE * PIECES_AT_ONCE):
        some = text[start : start + PIECE * PIECES_AT_ONCE]
        pieces = [some[i : i + PIECE] for i in range(0, len(some), PIECE)]
        encoded = tokenizer.backend_tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
        ids += [np.asarray(piece.ids, dtype=np.int32) for piece in encoded]
    return np.concatenate(ids)


class Batches:
    """Windows of `context` tokens in shuffled epochs: `batch(step)` is the [batch_size, context] batch of a step."""

    def __init__(self, ids: np.ndarray, *, context: int, batch_size: int, seed: int) -> None:
        count = len(ids) // context
        if count < batch_size:
            raise TextTooShortError(
                "the training text does not fill one batch",
                got=f"{len(ids)} tokens",
                allowed=f"at least {batch_size * context}",
                remedy="use a longer text or a smaller --batch-size",
            )
        # int32 ids are shared with the other runs of a text, not copied, and may be read-only.
        self._windows = np.ascontiguousarray(ids[: count * context], np.int32).reshape(count, context)
        self._batch_size, self._seed = batch_size, seed
        self.digest = hashlib.sha256(np.ascontiguousarray(ids, dtype="<i4").data).hexdigest()
        self.epoch_tokens = count * context
        self._epoch, self._order = -1, torch.empty(0)

    def batch(self, step: int) -> torch.Tensor:
        """The int64 batch of optimizer step `step`; a batch may span the end of an epoch."""
        rows = []
        for position in range(step * self._batch_size, (step + 1) * self._batch_size):
            epoch, offset = divmod(position, len(self._windows))
            if epoch != self._epoch:
                generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
                self._order, self._epoch = torch.randperm(len(self._windows), generator=generator), epoch
            rows.append(int(self._order[offset]))
        return torch.from_numpy(self._windows[rows].astype(np.int64))
