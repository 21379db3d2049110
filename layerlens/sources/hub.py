"""Questions that layerlens asks the model hub itself; other libraries load the files."""

from pathlib import Path


def answers(hub_id: str, filename: str, *, repo_type: str = "model", revision: str | None = None) -> bool:
    """Whether the hub answers at all, within HF_HUB_ETAG_TIMEOUT, which is 10 seconds by default.

    Asking first saves time, because the loaders repeat a call that fails: for 23 seconds where connections are refused,
    and for minutes where they are dropped.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    try:
        get_hf_file_metadata(hf_hub_url(hub_id, filename, repo_type=repo_type, revision=revision))
    except HfHubHTTPError:
        return True
    except Exception:
        return False
    return True


def commit_of(hub_id: str, filename: str, revision: str) -> str | None:
    """The commit that the cached file of a model belongs to; None where it is not cached."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(hub_id, filename, revision=revision)
    return Path(cached).parent.name if isinstance(cached, str) else None
