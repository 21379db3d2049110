"""Rows of a dataset on the hub, read through the `datasets` library, or from its cache where there is no network."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from layerlens.datasets.source import Release
from layerlens.errors import PromptError, first_sentence, spelled
from layerlens.sources import hub


def read_rows(release: Release, revision: str | None, limit: int | None) -> list[dict[str, object]]:
    """The first `limit` rows of the release's split on the hub; if they cannot be read, a PromptError says why."""
    import datasets

    hub_id = release.hub_id
    online = not datasets.config.HF_HUB_OFFLINE and hub.answers(
        hub_id, "README.md", repo_type="dataset", revision=revision
    )
    try:
        with _offline_unless(online):
            if release.files:
                return _rows_in_files(release, revision, limit)
            table = datasets.load_dataset(hub_id, release.config, split=release.split, revision=revision)
    # Its failures come from four libraries and have no root in common; each of them means that the rows are not here.
    except Exception as error:
        raise _no_rows(release, revision, online, error) from error
    if not online:
        _check_cached_revision(table, hub_id, revision)
    return [dict(row) for row in table.select(range(min(len(table), limit or len(table))))]


def _rows_in_files(release: Release, revision: str | None, limit: int | None) -> list[dict[str, object]]:
    """The first `limit` rows of the release's files."""
    from huggingface_hub import hf_hub_download

    from layerlens.datasets import files

    rows: list[dict[str, object]] = []
    for name in release.files:
        if limit is not None and len(rows) >= limit:
            break
        path = Path(hf_hub_download(release.hub_id, name, repo_type="dataset", revision=revision))
        rows += files.read_rows(files.read_bytes(path), path)
    return rows[:limit]


@contextmanager
def _offline_unless(online: bool) -> Iterator[None]:
    """Inside, `datasets` is in the state that HF_HUB_OFFLINE=1 puts it in, unless the hub is online."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = not online
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _check_cached_revision(table: Any, hub_id: str, revision: str | None) -> None:
    """Raise a PromptError if a revision was asked for and the cache does not hold exactly that commit."""
    # Offline, `datasets` takes the newest copy in its cache, whatever revision it was asked for. Its file lies in a
    # folder that has the commit's name.
    commits = {Path(file["filename"]).parent.name for file in table.cache_files}
    if revision is not None and commits != {revision}:
        raise PromptError(
            f"the hub cannot be reached, and the cached copy of {hub_id} is not known to be revision {revision!r}",
            f"connect to the hub, leave out {spelled('revision')}, or give a local copy as {spelled('data_file')}",
            option="revision",
            given=revision,
        )


def _no_rows(release: Release, revision: str | None, online: bool, error: Exception) -> PromptError:
    hub_id = release.hub_id
    what = hub_id if revision is None else f"{hub_id} at revision {revision!r}"
    access = "access granted on the dataset's hub page and HF_TOKEN set" if release.gated else None
    if online:
        why = f"cannot be loaded from the hub ({first_sentence(error)})"
        advice = "try again" + (f" with {access}" if access else "")
        advice += f", check {spelled('revision')}" if revision else ""
    else:
        why = "is not in the cache and the hub cannot be reached"
        advice = "connect to the hub" + (f", with {access}" if access else "")
    return PromptError(f"{what} {why}", f"{advice}, or give a local copy as {spelled('data_file')}", given=hub_id)
