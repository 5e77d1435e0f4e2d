r"""What the section on methods says of these data, phrase by phrase: each is a macro, so that it stays right.

`facts` are plain text; `cited_facts` are LaTeX, because they cite or hold an equation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ptq_eval.laws.base import FitKind
from ptq_eval.laws.turning.significance import SIGNIFICANCE
from ptq_eval.report.common.data import FULL_PRECISION, Study
from ptq_eval.report.common.latex import escape, symbol
from ptq_eval.report.common.numbers import number, short
from ptq_eval.report.common.words import coverage_text, early_text, listed, plural
from ptq_eval.report.paper import works
from ptq_eval.report.run.errors import of_calibration, of_windows
from ptq_eval.report.run.words import early

MOST_NAMED = 3
"""More runs than this are counted, not named."""
_SELECTION = {
    "spread": "drawn at random, two from each of equal stretches of the text",
    "first": "the first of the text",
    "crops": "at random places of the text, which may overlap",
}
_CALIBRATION = {
    "shared": "from the full-precision model",
    "sequential": "from the model whose earlier layers are quantized",
}
_CONVENTION = {
    "non_embedding": "excluding embeddings",
    "non_embedding_with_positions": "excluding token embeddings",
    "total": "all parameters",
}


def facts(study: Study) -> dict[str, str]:
    """The phrases that are plain text, by the name of their macro."""
    errors = [*of_windows(study), *filter(None, [early(study)])]
    no_text = "not recorded" if _calibrated(study) else "none"
    return {
        "Evaluation": "; ".join(_texts(study, "evaluation")) or study.protocols,
        "CalibrationText": "; ".join(_texts(study, "calibration")) or no_text,
        "CalibrationInputs": _calibrations(study),
        "CalibrationDraws": " ".join(of_calibration(study)),
        "EvalWindows": _numbers(study, "evaluation", "windows"),
        "EvalLength": _numbers(study, "evaluation", "length"),
        "CalibWindows": _numbers(study, "calibration", "windows"),
        "CalibLength": _numbers(study, "calibration", "length"),
        "Errors": " ".join(errors),
        "Quantized": " ".join(_quantized(study)),
        "Convention": _convention(study),
        "Intervals": f"Intervals of constants: {'. '.join(found)}." if (found := _intervals(study)) else "",
        "SignificanceLevel": f"{100 * SIGNIFICANCE:g} %",
        "Machine": _machine(study),
        "Versions": _versions(study),
    }


def cited_facts(study: Study) -> dict[str, str]:
    """The phrases that are LaTeX, by the name of their macro."""
    named = [escape(name) + works.cited(works.of_method(name)) for name in works.methods_used(study)]
    formats = [escape(name) + works.cited([works.of_format(name)]) for name in works.formats_used(study)]
    suites = works.suites_used(study)
    cited = escape(listed(suites)) + works.cited(map(works.of_suite, suites)) if suites else ""
    texts = [escape(spec) + works.cited([works.of_text(spec)]) for spec in works.texts_used(study)]
    return {
        "QuantizersCited": listed(named) if named else "no quantizer",
        "FormatsCited": f" Beside integers, these number formats were measured: {listed(formats)}." if formats else "",
        "SuitesCited": f" Checkpoints are of public suites: {cited}." if suites else "",
        "TextsCited": listed(texts) if texts else escape(study.protocols),
        "Laws": " ".join(_laws(study)),
        "Schedule": works.cited([works.of_schedule(study)]),
        "Program": "ptq-eval" + works.cited([works.SELF]),
    }


def _texts(study: Study, role: str) -> list[str]:
    """How the windows of a text were drawn, once for all runs that agree."""
    found = dict.fromkeys(_text(roles[role]) for roles in (study.run.get("texts") or {}).values() if role in roles)
    return list(found)


def _text(text: Mapping[str, Any]) -> str:
    windows, length = text.get("windows"), text.get("length")
    size = f" of {plural(length, 'token')}" if length else ""
    whole = f"{plural(windows, 'window') if windows else 'windows'}{size} of {text.get('spec')}"
    if windows and windows == text.get("available"):
        return f"{whole}, all there are"
    drawn = _SELECTION.get(str(text.get("selection")), "")
    available = f" ({text['available']:,} windows)" if text.get("available") else ""
    return ", ".join(filter(None, [whole, drawn + available]))


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _numbers(study: Study, role: str, name: str) -> str:
    texts = (roles.get(role, {}) for roles in (study.run.get("texts") or {}).values())
    values = sorted({int(text[name]) for text in texts if text.get(name)})
    if not values and (role, name) == ("evaluation", "windows"):
        values = sorted({int(n) for n in study.rows["windows"].dropna()})
    return listed([f"{value:,}" for value in values]) if values else "an unrecorded number of"


def _calibrations(study: Study) -> str:
    """Where the quantizers take the inputs of layers from, in one sentence."""
    rows = study.measured.drop_duplicates("label")
    parts = {str(kind): listed(own["label"]) for kind, own in rows.groupby("calibration", sort=False)}
    said = [f"{_CALIBRATION[kind]} ({names})" for kind, names in parts.items() if kind in _CALIBRATION]
    if not _calibrated(study):
        return "No method used here needs the inputs of a layer."
    return f"The inputs of a layer, for methods that need them, come {listed(said)}." if said else ""


def _calibrated(study: Study) -> bool:
    """Whether a method that was used needs calibration."""
    return not set(study.measured["calibration"].dropna()) <= {""}


def _quantized(study: Study) -> Iterator[str]:
    """Which share of each model was quantized and what was not, once for all models that agree."""
    same: dict[str, list[str]] = {}
    for run, model in (study.run.get("models") or {}).items():
        share = number(model.get("share_quantized"))
        kept = dict.fromkeys(str(one.get("reason", "")).partition(":")[0] for one in model.get("excluded") or ())
        kept.pop("", None)
        size = f"{plural(len(model.get('quantized') or ()), 'matrix', 'matrices')} are quantized"
        part = f", {100 * share:.1f} % of all parameters" if share == share else ""
        what = f"{size}{part}" + (f"; in full precision stay: {listed(kept)}" if kept else "")
        same.setdefault(what, []).append(str(run))
    for what, runs in same.items():
        yield f"In {listed(runs) if len(runs) <= MOST_NAMED else f'{len(runs)} models'}, {what}."


def _convention(study: Study) -> str:
    """How N counts parameters."""
    column = study.rows.get("params_convention", ())
    found = [name for name in dict.fromkeys(column) if isinstance(name, str) and name]
    return listed([_CONVENTION.get(name, name.replace("_", " ")) for name in found]) if found else "as recorded"


def _intervals(study: Study) -> list[str]:
    """What the intervals of the fits cover, once for all of one kind."""
    kinds: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for entry in study.fits:
        if (covers := entry.get("covers")) and entry["status_kind"] != FitKind.NOT_IDENTIFIED:
            kind = tuple(covers[name] for name in ("level", "method", "covers_runs", "noise", "n_windows"))
            kinds.setdefault(kind, []).append(covers)
    ended = {early_text(**entry["early"]) for entry in study.fits if entry.get("early")}
    return [coverage_text(*alike) for alike in kinds.values()] + sorted(ended)


def _machine(study: Study) -> str:
    machine, rows = dict(study.run.get("machine") or {}), study.rows
    machine.pop("host", None)
    parts = [str(machine.pop(name)) for name in ("system", "processor") if machine.get(name)]
    if cores := machine.pop("cores", None):
        parts.append(plural(cores, "core"))
    parts += [f"{name} {value}" for name, value in machine.items() if value not in (None, "")]
    devices = sorted({" ".join(pair) for pair in zip(rows["device"], rows["dtype"])} - {" "})
    seconds = study.run.get("seconds")
    text = f"{', '.join(parts) or 'not recorded'}; models on {listed(devices) if devices else 'an unrecorded device'}"
    return text + (f"; measuring took {number(seconds):,.0f} seconds" if seconds is not None else "")


def _versions(study: Study) -> str:
    versions = study.run.get("versions") or {}
    commit = str((study.run.get("git") or {}).get("commit") or "")[:10]
    text = ", ".join(f"{name} {version}" for name, version in versions.items()) or "not recorded"
    return text + (f"; commit {commit}" if commit else "")


def _laws(study: Study) -> Iterator[str]:
    """The equation of each law that has constants, and how it was fitted."""
    seen = set()
    for entry in study.fits:
        law = str(entry.get("law"))
        if law in seen or entry.get("status_kind") == FitKind.NOT_IDENTIFIED:
            continue
        seen.add(law)
        about = "The loss before quantization" if entry.get("quantizer") == FULL_PRECISION else "The degradation"
        yield f"{about} follows {equation(str(entry.get('equation') or law))}{works.cited([works.of_law(law)])}."
    losses = dict.fromkeys((entry.get("loss"), number(entry.get("huber_delta"))) for entry in study.fits)
    if seen and (bends := [short(bend) for loss, bend in losses if loss == "huber" and bend == bend]):
        yield (
            f"Constants minimize Huber's loss{works.cited(['huber1964'])}, which is linear beyond {listed(bends)} "
            "standard deviations."
        )
    if not seen:
        yield "No law could be fitted to these data (Table~\\ref{tab:fits})."


_WORDS = {"exp": r"\exp ", "log2": r"\log_{2}", "log": r"\log ", "prod": r"\prod", "delta": r"\delta"}


def equation(text: str) -> str:
    """An equation of a law in LaTeX, without the remark behind it."""
    formula = re.split(r"\s{2,}\(", text)[0].replace("prod over x of ", r"\prod_{x} ")
    if "=" not in formula or not re.fullmatch(r"[\w\s=+*/^().,\\{}-]+", formula):
        return escape(text)
    return "$" + "".join(_tokens(formula)) + "$"


def _tokens(formula: str) -> Iterable[str]:
    for token in re.findall(r"\\prod_\{x\} |\^?[A-Za-z][A-Za-z0-9]*(?:_[A-Za-z0-9]+)*|\^?[\d.]+|\S|\s+", formula):
        raised, name = token.startswith("^"), token.removeprefix("^")
        if not re.match(r"[A-Za-z]", name):
            yield r"\,\allowbreak " if token == "*" else token
            continue
        drawn = _WORDS.get(name) or symbol(name).strip("$")
        yield f"^{{{drawn}}}" if raised else drawn
