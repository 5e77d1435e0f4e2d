"""`ptq-eval backends`: foreign packages as quantizers: list, install, check, remove."""

from __future__ import annotations

import click

from ptq_eval.cli import options as cli_options
from ptq_eval.cli.console import console
from ptq_eval.config.commands import InstallConfig
from ptq_eval.errors import BackendError

EXAMPLES = """\b
Examples:
  ptq-eval backends list
  ptq-eval backends install gptqmodel
  ptq-eval backends check hqq
  ptq-eval run runs/my-model -o out --quantizers gptq,gptqmodel:gptq
"""


@click.group(epilog=EXAMPLES, short_help="Quantizers of other packages: list, install, check.")
def backends() -> None:
    """Quantizers of other packages, such as GPTQModel or bitsandbytes, each in an environment of its own.

    Name their methods after --quantizers as BACKEND:METHOD.  Environments are below $PTQ_EVAL_BACKENDS, by default
    ~/.cache/ptq-eval/backends.
    """


@backends.command("list", short_help="Every backend with its version, status and methods.")
def list_() -> None:
    """List every backend with its version, whether it can be used, why not, and its methods."""
    from rich.table import Table

    from ptq_eval.backends.environments import distrusted, statuses

    table = Table("backend", "version", "status", "methods", "why not, and what to know")
    for status in statuses():
        backend = status.backend
        wrong = distrusted(backend, status.version)
        checked = "" if wrong is None else ", checked"
        faults = [f"{method}: {found.finding}" for method, found in (wrong or {}).items()]
        unloaded = backend.no_reload and f"not saved and loaded by its check: {backend.no_reload}"
        known = "; ".join(part for part in (status.why_not, *faults, backend.remarks, unloaded) if part)
        table.add_row(backend.name, status.version, f"{status.state}{checked}", ", ".join(backend.methods), known)
    console().print(table)


@backends.command(short_help="Install a backend in an environment of its own.")
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
@cli_options.options_of(InstallConfig)
def install(names: tuple[str, ...], check: bool) -> None:
    """Install each backend NAME in an environment of its own, on top of this one, and try its methods."""
    from ptq_eval.backends.environments import backend_of
    from ptq_eval.backends.environments import install as build

    for name in names:
        backend_of(name)
    for name in names:
        status = build(name)
        click.echo(f"{name} {status.version}: {status.state}" + (f" ({status.why_not})" if status.why_not else ""))
        if check and status.usable:
            _check(name)


@backends.command(short_help="Try the methods of a backend on a tiny model.")
@click.argument("names", nargs=-1, metavar="[NAME…]")
def check(names: tuple[str, ...]) -> None:
    """Try every method of each backend NAME, or of all that can be used, on a tiny model; about a minute each."""
    from ptq_eval.backends.environments import statuses

    for name in names or [status.backend.name for status in statuses() if status.usable]:
        _check(name)


@backends.command(short_help="Delete the environment of a backend.")
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
def remove(names: tuple[str, ...]) -> None:
    """Delete the environment of each backend NAME."""
    from ptq_eval.backends.environments import remove as delete

    for name in names:
        click.echo(f"{name}: {'removed' if delete(name) else 'has no environment of its own'}")


def _check(name: str) -> None:
    """Print the conformance run of a backend.  Raises BackendError if a method fails."""
    from rich.table import Table

    from ptq_eval.measure.foreign.conformance import check as try_all

    found = try_all(name)
    table = Table("method", "scheme", "error / rounding error", "seconds", "finding")
    for one in found:
        ratio, seconds = (f"{value:.3g}" if value is not None else "" for value in (one.ratio, one.seconds))
        finding = f"{one.finding}: {one.message}" if one.finding else "passed"
        size = one.scheme.group_size or "row"
        table.add_row(f"{name}:{one.method}", f"{one.scheme.name}, {size}", ratio, seconds, finding)
    console().print(table)
    wrong = [one for one in found if one.finding]
    if wrong:
        raise BackendError(
            f"{len(wrong)} of {len(found)} methods of {name} failed their conformance run",
            got=f"{wrong[0].method}: {wrong[0].message}",
            remedy="they are not measured until they pass",
        )
