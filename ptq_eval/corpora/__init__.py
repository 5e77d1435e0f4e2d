"""Text sources: where tokens for calibration and evaluation come from.

`read` turns a spec into a `Text`, `make_windows` a text into the token windows that a model sees, and
`ptq_eval.corpora.overlap` tells what two sets of windows share.  Each kind of source is a plug-in (entry
point group `ptq_eval.corpora`), the built-in ones included, and says itself which specs it claims.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from ptq_eval import plugins
from ptq_eval.corpora.base import Text, TextSource
from ptq_eval.corpora.windows import Windows, make_windows
from ptq_eval.errors import TextSourceError

__all__ = ["Text", "TextSource", "Windows", "default_specs", "make_windows", "read"]


def read(spec: str, *, max_chars: int | None = None) -> Text:
    """The text that `spec` names, read by the first source (in order of name) that claims it.

    At most `max_chars` characters are taken, from the start.  Raises TextSourceError, for an unknown spec
    with the kinds there are and the nearest one.
    """
    sources: dict[str, type[TextSource]] = plugins.load_all("corpora")
    for source in sources.values():
        if source.claims(spec):
            return source().read(spec, max_chars=max_chars)
    near = difflib.get_close_matches(spec, [example for s in sources.values() for example in s.examples], n=1)
    raise TextSourceError(
        "unknown kind of text" if not Path(spec).exists() else "a file or folder of no known kind of text",
        got=repr(spec),
        allowed="; ".join(source.help for source in sources.values()),
        remedy=f"did you mean {near[0]!r}?" if near else "give a spec of one of these kinds",
    )


def default_specs() -> tuple[str, str]:
    """The texts used where none is named: (evaluation, calibration), two parts of the embedded text."""
    return "stdlib:evaluation", "stdlib:calibration"
