from __future__ import annotations

import pytest

SENTENCE = "the quick brown fox jumps over a lazy dog while naïve façade costs 12 € or 5,000 ¥ 漢字 🙂 return self"
WORDS = SENTENCE.split()


def prose(n: int, seed: int = 0) -> str:
    """A text of `n` words, the same in every run, with breaks of several kinds."""
    state, parts = seed * 7919 + 1, []
    for _ in range(n):
        state = (1103515245 * state + 12345) % 2**31
        parts.append(
            WORDS[(state >> 16) % len(WORDS)] + [" ", " ", " ", "\n", "  ", "\n\n", ", ", "\t"][(state >> 8) % 8]
        )
    return "".join(parts)


@pytest.fixture(scope="session")
def text() -> str:
    return prose(6000)


@pytest.fixture(scope="session")
def tokenizer():
    """The byte-level BPE that the package trains; small, so that some characters take several tokens."""
    from ptq_eval.pretrain.data import train_tokenizer

    return train_tokenizer(prose(2000, seed=1).replace("漢字", ""), 320)


def _wrap(backend, **special):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@pytest.fixture(scope="session")
def sentencepiece_like():
    """BPE over the whole text with spaces written as ▁, byte fallback, and a first special token: as Llama 2's."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, processors, trainers

    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(Regex(" "), "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        limit_alphabet=60,
        show_progress=False,
    )
    words = prose(2000, seed=2).split(" ")
    backend.train_from_iterator((" ".join(words[i : i + 5]) for i in range(0, len(words), 5)), trainer)
    backend.decoder = decoders.ByteFallback()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _wrap(backend, bos_token="<s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def wordpiece():
    """Whole words, lower-cased, white space dropped, a special token at both ends: as BERT's."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False)
    backend.train_from_iterator([prose(2000, seed=3)], trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return _wrap(backend, unk_token="[UNK]")
