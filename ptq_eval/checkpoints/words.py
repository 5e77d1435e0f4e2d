"""Words in the names of checkpoints, and what a number beside each of them counts.

A number counts optimizer steps, checkpoints (`number`), epochs, tokens or stages only beside a word listed for it.
Beside the `other` words it counts something else along the training, and beside the `fixed` ones it says which run it
is.  These two lists cannot be complete and need not be: a number beside a word that is nowhere here is no step either.
"""

from __future__ import annotations

_WORDS = {
    "step": "step steps globalstep globalsteps gstep iter iters iteration iterations it update updates ba checkpoint",
    "number": "ckpt ckpts ckp chkpt chk checkpoints snapshot",
    "epoch": "epoch epochs ep",
    "tokens": "token tokens tok toks ntok ntoks ntoken ntokens numtokens",
    "stage": "stage phase ingredient",
    "other": "sample samples example examples sequence sequences instance instances doc docs document documents row "
    "rows pct percent percentage hour hours hr hrs minute minutes min mins second seconds sec secs day days week weeks "
    "flop flops tflop tflops word words char chars byte bytes kb mb gb tb",
    "fixed": "seed seeds run exp experiment trial version v rank ranks r fold folds lr bs wd ctx seq len layer layers "
    "head heads dim dims d n h l width depth batch size context window vocab hidden expert experts lora alpha bit bits "
    "w a q fp bf nf int float gpu gpus node nodes replica try attempt jan feb mar apr may jun jul aug sep oct nov dec",
}
MEANINGS = {word: meaning for meaning, words in _WORDS.items() for word in words.split()}
"""What a number behind a word counts."""

AFTER = {
    **{word: meaning for word, meaning in MEANINGS.items() if meaning in ("step", "epoch", "tokens", "other")},
    **dict.fromkeys(("h", "s", "d"), "other"),
    **dict.fromkeys(("bit", "bits", "layer", "layers", "head", "heads", "expert", "experts", "dim", "dims"), "fixed"),
    **dict.fromkeys(("gpu", "gpus", "node", "nodes", "seed", "seeds", "lr", "bs", "wd"), "fixed"),
}
"""What a number before a word counts: 10h are hours, but h10 are heads."""

SAVED = frozenset(
    ("model", "models", "save", "saves", "saved", "weight", "weights", "state", "states", "params", "net", "network",
     "pt", "pth", "dump", "train", "trained", "training", "pretrain", "pretrained", "intermediate", "mid")
)  # fmt: skip
"""Words for a checkpoint, beside which a number is the checkpoint's own if siblings differ in it."""
