"""A task of lm-evaluation-harness in a folder: which of two lines follows."""

from __future__ import annotations

import json
import random
from pathlib import Path

NAME = "next_line"
_YAML = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {documents}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}\\n"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
target_delimiter: ""
metric_list:
  - metric: acc
    higher_is_better: true
  - metric: acc_norm
    higher_is_better: true
metadata:
  version: 1.0
"""


def documents(text: str, count: int, seed: int = 0) -> list[dict]:
    """Questions made of a text."""
    draw, lines = random.Random(seed), [line for line in text.splitlines() if 20 < len(line.strip()) < 60]
    found = []
    for _ in range(count):
        place, gold = draw.randrange(1, len(lines)), draw.randrange(2)
        choices = [draw.choice(lines)] * 2
        choices[gold] = lines[place]
        found.append({"context": lines[place - 1], "choices": choices, "gold": gold})
    return found


_CONTINUED = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {documents}
test_split: test
output_type: generate_until
doc_to_text: "{{{{context}}}}\n"
doc_to_target: "{{{{choices[gold]}}}}"
generation_kwargs:
  until: ["\n"]
  max_gen_toks: 4
metric_list:
  - metric: exact_match
    higher_is_better: true
metadata:
  version: 1.0
"""


def write(folder: Path, asked: list[dict], name: str = NAME, continued: bool = False) -> Path:
    """The folder with the task's file and its documents; the text of a line is asked for where `continued`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(document) + "\n" for document in asked), encoding="utf-8")
    (folder / f"{name}.yaml").write_text(
        (_CONTINUED if continued else _YAML).format(name=name, documents=path), encoding="utf-8"
    )
    return folder
