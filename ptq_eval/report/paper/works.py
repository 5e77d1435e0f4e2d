r"""Which works a paper cites: those of the methods, number formats, laws, texts, suites and tests it used, no others.

`works.bib` holds them all; `bibliography` copies those that are cited.  A method of somebody else's plug-in has no
entry here, and neither has a suite without a paper: their citation is the author's to add.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ptq_eval.checkpoints.suites import find
from ptq_eval.laws.base import FitKind
from ptq_eval.laws.findings import Caution
from ptq_eval.report.common.data import FULL_PRECISION, Study, formats_of

SELF, ROUNDING = "ptq-eval", "rtn"
_LAWS = {
    "chen": "chen2025",
    "chinchilla": "hoffmann2022",
    "chinchilla_d": "hoffmann2022",
    "kumar_phase": "kumar2024",
    "kumar_ptq": "kumar2024",
    "kumar_ptq_ratio": "kumar2024",
    "n_eff": "kumar2024",
    "outer": "kaplan2020",
    "ouyang": "ouyang2024",
    "phase": "catalan2025",
    "sun": "sun2025",
    "unified": "kumar2024",
    "unified_delta": "kumar2024",
}
_METHODS = {
    "awq": "lin2023",
    "gptaq": "li2025",
    "gptq": "frantar2022",
    "gptq-noclip": "chen2025babai",
    "hadamard-gptaq": "ashkboos2024",
    "hadamard-gptq": "ashkboos2024",
    "hadamard-gptq-noclip": "ashkboos2024",
    "hadamard-hqq": "ashkboos2024",
    "hadamard-qronos": "ashkboos2024",
    "hadamard-rtn": "ashkboos2024",
    "hadamard-signround": "ashkboos2024",
    "hqq": "badri2023",
    "qronos": "zhang2025",
    "signround": "cheng2023",
    "smoothquant": "xiao2022",
}
_PACKAGES = (
    "auto-gptq", "auto-round", "autoawq", "bitsandbytes", "gguf", "gptqmodel", "hqq", "llmcompressor", "modelopt",
    "neural-compressor", "optimum-quanto", "torchao",
)  # fmt: skip
"""The backends that come with this program."""
_FORMATS = (
    (r"mxfp.*|mxint.*", "ocp2023"),
    (r"nvfp4(_46)?", "nvidia2025"),
    (r"nf4", "dettmers2023"),
    (r"q\d_.*", "llamacpp"),
)
_TEXTS = ((r"wikitext.*", "merity2016"), (r"c4.*|hf:.*\bc4\b.*", "raffel2019"))
_SUITES = (
    ("Pythia", "biderman2023"),
    ("PolyPythia", "vanderwal2025"),
    ("OLMo 2", "olmo2"),
    ("OLMo 3", "olmo3"),
    ("OLMo", "groeneveld2024"),
    ("Apertus", "apertus2025"),
    ("DataDecide", "magnusson2025"),
    ("SmolLM2", "allal2025"),
    ("Amber", "liu2023"),
    ("open-sci-ref", "nezhurina2025"),
    ("TinyLlama", "zhang2024"),
    ("BLOOM", "bloom2022"),
    ("Gemstones", "mcleish2025"),
    ("FineWeb", "penedo2024"),
    ("Ettin", "weller2025"),
)
"""The beginning of a suite's name, the longer ones of the same family first."""


def of_method(quantizer: str) -> list[str]:
    """The keys of a method; of a backend's (`gptqmodel:gptq`), also that of the package."""
    package, _, method = quantizer.rpartition(":")
    keys = [_METHODS.get(method, "") or of_format(method) if package else _METHODS.get(method, "")]
    return [key for key in dict.fromkeys([*keys, _of_package(package)]) if key]


def _of_package(name: str) -> str:
    return "llamacpp" if name == "gguf" else f"package-{name}" if name in _PACKAGES else ""


def of_law(law: str) -> str:
    """The key of a law; "" where none is known."""
    return _LAWS.get(law, "")


def methods_used(study: Study) -> list[str]:
    """The quantizers that were measured, in order."""
    quantized = study.rows.loc[study.rows["quantizer"] != FULL_PRECISION, "quantizer"]
    return list(dict.fromkeys(quantized))


def formats_used(study: Study) -> list[str]:
    """The families of number formats beside plain integers, in order."""
    return [name for name in dict.fromkeys(formats_of(study.measured)) if name != "int"]


def laws_used(study: Study) -> list[str]:
    """The laws that have constants, in order."""
    usable = (entry for entry in study.fits if entry.get("status_kind") != FitKind.NOT_IDENTIFIED)
    return list(dict.fromkeys(str(entry.get("law")) for entry in usable))


def suites_used(study: Study) -> list[str]:
    """The names of the public suites that the measured checkpoints are of, in order."""
    measured = set(study.baseline["run"])
    found = []
    for checkpoint in study.run.get("checkpoints") or ():
        if checkpoint.get("run") in measured and checkpoint.get("format") != "hf_trainer":
            suite = find(str(checkpoint.get("run")), str(checkpoint.get("revision") or ""))
            found += [suite.name] if suite else []
    return list(dict.fromkeys(found))


def of_suite(name: str) -> str:
    """The key of a suite; "" where none is known."""
    return next((key for start, key in _SUITES if name.startswith(start)), "")


def of_format(name: str) -> str:
    """The key of a number format; "" where none is known."""
    return next((key for pattern, key in _FORMATS if re.fullmatch(pattern, name)), "")


def texts_used(study: Study) -> list[str]:
    """The texts of evaluation and calibration, in order."""
    texts = (study.run.get("texts") or {}).values()
    return list(dict.fromkeys(str(one.get("spec")) for roles in texts for one in roles.values()))


def of_text(spec: str) -> str:
    """The key of a text; "" where none is known."""
    return next((key for pattern, key in _TEXTS if re.fullmatch(pattern, spec)), "")


def of_schedule(study: Study) -> str:
    """The key of the work on the confounding learning rate, where it matters to these data."""
    cautions = {one.get("kind") for one in study.fit.get("cautions") or ()}
    return "catalan2025" if cautions & {Caution.SCHEDULE, Caution.MIXED_PHASES} else ""


def cited(keys: Iterable[str]) -> str:
    r"""` \citep{…}` of the keys that are known, with the space before it; "" for none."""
    known = [key for key in dict.fromkeys(keys) if key]
    return rf"~\citep{{{','.join(known)}}}" if known else ""


def unknown(study: Study) -> list[str]:
    """The methods, laws and suites that were used and have no entry, to be cited by hand."""
    own = [name for name in methods_used(study) if name != ROUNDING and not of_method(name)]
    laws = [name for name in laws_used(study) if not of_law(name)]
    return own + laws + [name for name in suites_used(study) if not of_suite(name)]


def bibliography(texts: Iterable[str], more: Iterable[Path] = ()) -> str:
    r"""The entries of `works.bib`, and of more such files, that some LaTeX cites with \citep, in their order."""
    wanted = {key for text in texts for found in re.findall(r"\\citep\{([^}]*)\}", text) for key in found.split(",")}
    files = [Path(__file__).with_name("works.bib"), *more]
    entries = [entry for file in files for entry in file.read_text(encoding="utf-8").split("\n\n")]
    kept = [entry.strip() for entry in entries if _key(entry) in wanted]
    return "% Written by the program, and written anew each time.\n\n" + "\n\n".join(kept) + "\n"


def _key(entry: str) -> str:
    found: Any = re.match(r"\s*@\w+\{([^,]+),", entry)
    return found[1] if found else ""


KEYS: Mapping[str, Iterable[str]] = {
    "laws": _LAWS.values(),
    "methods": _METHODS.values(),
    "packages": [_of_package(name) for name in _PACKAGES],
    "formats": [key for _, key in _FORMATS],
    "texts": [key for _, key in _TEXTS],
    "suites": [key for _, key in _SUITES],
}
