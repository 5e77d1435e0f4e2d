"""Text sources: where tokens for calibration and evaluation come from.

`read` turns a spec into a `Text`, `make_windows` cuts a text into the token windows that a model sees, and
`ptq_eval.corpora.overlap` counts what two sets of windows share.  Each kind of source is a plug-in (entry point group
`ptq_eval.corpora`), the built-in ones included, and decides itself which specs it claims.
"""

from __future__ import annotations

import difflib
import os

from ptq_eval import plugins
from ptq_eval.corpora.base import Text, TextSource
from ptq_eval.corpora.files import split_spec
from ptq_eval.corpora.windows import Windows, make_windows
from ptq_eval.errors import TextSourceError

__all__ = ["Text", "TextSource", "Windows", "make_windows", "read"]


def read(spec: str, *, max_chars: int | None = None) -> Text:
    """The text that `spec` names, read by the first source (in order of name) that claims it.

    A file that no source claims by its name is read as text.  At most `max_chars` characters are taken, from the
    start.  Raises TextSourceError; for an unknown spec it lists the kinds and suggests the nearest example.
    """
    if spec.lower().startswith(("http://", "https://")):
        what, remedy = "a text on the web is not fetched", "download it, and name the file"
        raise TextSourceError(what, got=repr(spec), remedy=remedy)
    sources: dict[str, type[TextSource]] = plugins.load_all("corpora")
    for source in sources.values():
        if source.claims(spec):
            return _not_blank(source().read(spec, max_chars=max_chars))
    if os.path.isfile(split_spec(spec, lambda name: False)[0]):
        return _not_blank(plugins.get("corpora", "textfile")().read(spec, max_chars=max_chars))
    near = difflib.get_close_matches(spec, [example for s in sources.values() for example in s.examples], n=1)
    raise TextSourceError(
        "unknown kind of text" if not os.path.exists(spec) else "a text is one file, not a folder",
        got=repr(spec),
        allowed="; ".join(source.help for source in sources.values()),
        remedy=f"did you mean {near[0]!r}?" if near else "give a spec of one of these kinds",
    )


def _not_blank(text: Text) -> Text:
    """The text.  Raises TextSourceError where it holds spaces and line ends alone."""
    if text.text and text.text.isspace():
        raise TextSourceError("the text is blank", got=text.spec, remedy="name a file that holds text")
    return text
