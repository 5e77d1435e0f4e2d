"""What is asked of the Hugging Face hub and of its cache: revisions, sizes, files, and the deletion of fetched files.

All of it goes through `huggingface_hub`, which reads HF_ENDPOINT, HF_HUB_CACHE, HF_TOKEN and HF_HUB_OFFLINE, and which
continues a download that broke from its last 10 MB, in the same process.  Only what a model is loaded from is fetched:
safetensors if there are any, pickles otherwise, and nothing from subfolders, which hold copies in other formats.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ptq_eval.errors import HubError, did_you_mean

_SMALL = ("*.json", "*.model", "*.txt", "*.tiktoken", "*.py")
"""Configuration and tokenizer."""
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
"""In order of preference."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NAMED = 8
"""Revisions that an error names."""


def refs(model: str) -> dict[str, str]:
    """{revision: commit} of a repository: its branches and tags; offline, those whose weights are in the cache.

    Raises HubError.
    """
    from huggingface_hub import HfApi

    if offline():
        if not (known := cached(model)):
            remedy = "unset HF_HUB_OFFLINE to ask the hub; HF_HUB_CACHE names another cache"
            raise HubError(f"no weights of {model} are in the cache", got=cache_folder(model), remedy=remedy)
        return known
    try:
        found = HfApi().list_repo_refs(model)
    except Exception as error:  # the hub's own errors, and its HTTP client's, whichever it uses
        raise hub_error(f"the revisions of {model} cannot be listed", error, model) from error
    return {ref.name: ref.target_commit for ref in (*found.branches, *found.tags)}


def commit_of(model: str, revision: str) -> str:
    """The commit that a revision points to; offline, the one in the cache.  Raises HubError."""
    from huggingface_hub import HfApi

    if _COMMIT.fullmatch(revision):
        return revision
    if offline():
        known = cached(model)
        if revision not in known:
            raise _no_such_revision(model, revision, known)
        return known[revision]
    try:
        return str(HfApi().model_info(model, revision=revision).sha)
    except Exception as error:  # as above
        raise hub_error(f"hub:{model}@{revision} cannot be found", error, model, revision) from error


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids asking the hub."""
    from huggingface_hub import is_offline_mode

    return is_offline_mode()


def cache_folder(model: str) -> Path:
    """The folder of a repository in the hub's cache, which need not exist."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}"


def snapshot(model: str, commit: str) -> Path:
    """The folder of a commit in the hub's cache, which need not exist."""
    return cache_folder(model) / "snapshots" / commit


def names_of_commits(folder: Path) -> dict[str, list[str]]:
    """{commit: names that point to it} in the `refs` of a cache folder; a revision's name may hold slashes."""
    names: dict[str, list[str]] = {}
    for ref in sorted((folder / "refs").rglob("*")):
        if ref.is_file():
            names.setdefault(ref.read_text(encoding="utf-8").strip(), []).append(
                ref.relative_to(folder / "refs").as_posix()
            )
    return names


def cached(model: str) -> dict[str, str]:
    """{revision: commit} of the revisions whose weights are in the cache."""
    commits = names_of_commits(cache_folder(model))
    complete = {commit for commit in commits if any(_with_weights(names_in(snapshot(model, commit))))}
    return {name: commit for commit in sorted(complete) for name in commits[commit]}


def names_in(folder: Path) -> set[str]:
    """The files below a folder, by their path relative to it; none where there is no such folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def blobs(model: str, commit: str) -> dict[str, int] | None:
    """{blob: bytes} of the files that are fetched for a commit; None where that is not known, as it is offline.

    Files with the same content, such as the tokenizer of all revisions, are one blob.  Raises HubError.
    """
    from huggingface_hub import HfApi, get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError
    from huggingface_hub.hf_api import RepoFile

    try:
        if offline():
            tree: Iterable[Any] = get_cached_repo_tree(model, revision=commit)
        else:
            tree = HfApi().list_repo_tree(model, revision=commit)
        files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    except CachedRepoTreeNotFoundError:
        return None
    except Exception as error:  # as above
        raise hub_error(f"the files of {model} at {commit[:12]} cannot be listed", error, model) from error
    return {files[name].blob_id: files[name].size for name in wanted(files)}


def wanted(names: Iterable[str]) -> list[str]:
    """Those of a repository's files that a model is loaded from."""
    own = [name for name in names if "/" not in name]
    weights = _with_weights(own)
    return [name for name in own if any(fnmatch(name, pattern) for pattern in _SMALL) or name in weights]


def _with_weights(names: Iterable[str]) -> list[str]:
    own = [name for name in names if "/" not in name]
    found = ([name for name in own if fnmatch(name, pattern)] for pattern in _WEIGHTS)
    return next(filter(None, found), [])


def fetched(model: str, revision: str, *, weights: bool = True) -> Path:
    """The folder in the cache with a revision's files, fetched if need be; without `weights`, with the small ones.

    Raises HubError.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import tqdm

    class OnTerminals(tqdm):  # the hub's own bar of files is drawn into pipes too
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{"disable": None, **options})

    def fetch(*patterns: str) -> Path:
        options: dict[str, Any] = {"allow_patterns": [*_SMALL, *patterns], "ignore_patterns": ["*/*"]}
        return Path(snapshot_download(model, revision=revision, tqdm_class=OnTerminals, **options))

    try:
        if not weights:
            return fetch()
        folder = fetch(_WEIGHTS[0])
        return folder if any(folder.glob(_WEIGHTS[0])) else fetch(_WEIGHTS[1])
    except Exception as error:  # as above
        raise hub_error(f"hub:{model}@{revision} cannot be fetched", error, model, revision) from error


def remove(folder: Path, kept: Iterable[str] = ()) -> None:
    """Delete the files of a snapshot except those `kept`, with the blobs that no other snapshot uses.

    Without any to keep, the revision is deleted as a whole.
    """
    from huggingface_hub import scan_cache_dir

    keeping = set(kept)
    cache = scan_cache_dir(folder.parents[2])
    if not keeping:
        cache.delete_revisions(folder.name).execute()
        return
    added = (
        file
        for repository in cache.repos
        for revision in repository.revisions
        if revision.snapshot_path.resolve() == folder.resolve()
        for file in revision.files
        if file.file_path.relative_to(revision.snapshot_path).as_posix() not in keeping
    )
    cache.delete_files(*added).execute()


def hub_error(what: str, error: Exception, model: str, revision: str = "") -> HubError:
    """What the hub or the way to it refused, in one line."""
    from huggingface_hub import constants, errors

    if isinstance(error, HubError):
        return error
    if isinstance(error, errors.GatedRepoError):
        remedy = f"ask for access at {constants.ENDPOINT}/{model}, then `hf auth login`, or set HF_TOKEN"
        return HubError(what, got="the repository is gated", remedy=remedy)
    if isinstance(error, errors.RepositoryNotFoundError):
        got = "no such repository, or a private one"
        return HubError(what, got=got, remedy="check its name; a private one needs `hf auth login`, or HF_TOKEN")
    if isinstance(error, errors.RevisionNotFoundError):
        try:
            return _no_such_revision(model, revision, refs(model))
        except HubError:
            return HubError(what, got="no such revision", remedy="check its name")
    if offline():
        got, remedy = "it is not in the cache, or not whole", "fetch it with the network: unset HF_HUB_OFFLINE"
        return HubError(what, got=got, remedy=remedy)
    first = (str(error).splitlines() or [""])[0][:160]
    return HubError(
        what,
        got=f"{type(error).__name__}: {first}".rstrip(": "),
        remedy="check the network and HF_ENDPOINT; HF_HUB_OFFLINE=1 takes what is in the cache",
    )


def _no_such_revision(model: str, revision: str, known: Iterable[str]) -> HubError:
    names = sorted(known)
    shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    where = "no such revision in the cache" if offline() else "no such revision"
    return HubError(
        f"hub:{model}@{revision}: {where}",
        allowed=shown or "none",
        remedy=did_you_mean(revision, names) or "choose one of these",
    )
