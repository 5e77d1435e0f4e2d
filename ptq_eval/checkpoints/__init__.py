"""Training trajectories: find checkpoints, place them on the axis of tokens, and check what is in them.

`discover` reads names and small JSON files, `verify_all` reads every weight once, `inspection_rows` shows
both.  Importing this package imports no torch.

D is what the user says (`overrides`), else what the format reads from the trainer's files (one file each: `hf_trainer`,
`litgpt`, `neox`, …), else what the name means: under the rule of a public suite (`suites`, a row each), or as a count
of tokens (`labels`); at last what `total_flos` of the Trainer implies.  A new format is a file with a
`CheckpointFormat` (`base`), named in pyproject.toml among the entry points `ptq_eval.checkpoints`.
"""

from ptq_eval.checkpoints.base import CheckpointFormat, Position, local_path, small_path
from ptq_eval.checkpoints.discover import discover
from ptq_eval.checkpoints.overrides import Overrides
from ptq_eval.checkpoints.problems import error_for, faults, foremost, gravest, inspection_rows, warnings
from ptq_eval.checkpoints.verify import verify, verify_all
from ptq_eval.models.parameters import ParameterCounts, count_parameters

__all__ = [
    "CheckpointFormat",
    "Overrides",
    "ParameterCounts",
    "Position",
    "count_parameters",
    "discover",
    "error_for",
    "faults",
    "foremost",
    "gravest",
    "inspection_rows",
    "local_path",
    "small_path",
    "verify",
    "verify_all",
    "warnings",
]
