"""SAEs on the Hugging Face hub: `hf://owner/repo/path@revision`, and SAELens' `release/sae_id`, as local paths.

Downloads and their cache are huggingface_hub's (extra `hf`); what is in the cache already is not asked for again.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from saecodec.errors import InputError
from saecodec.formats.checkpoint import SUFFIXES

SCHEME: Final = "hf://"
_URI: Final = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?P<path>(?:/[^@#]+)?)(?:@(?P<revision>[^#]+))?")
_PATTERNS: Final = tuple(f"*{suffix}" for suffix in (".json", *SUFFIXES))
_RELEASES: Final = "pretrained_saes.yaml"


@dataclass(frozen=True)
class Found:
    """Where an SAE lies, and the scale of its input that its release tells, if any."""

    path: Path
    input_scale: float | None = None


def locate(uri: str) -> Found | None:
    """The local path of `hf://...` or `release/sae_id`, downloaded where the cache lacks it; None when it is neither.

    InputError when the extra is not installed, or the hub has no such thing.
    """
    if uri.startswith(SCHEME):
        match = _URI.fullmatch(uri)
        if not match:
            raise InputError(f"{uri}: expected hf://owner/repo, hf://owner/repo/path, or either with @revision")
        return Found(_fetched(uri, match["repo"], match["path"].strip("/"), match["revision"]))
    release, _, sae_id = uri.partition("/")
    listed = _release(release) if sae_id else None
    if listed is None:
        return None
    saes = {str(sae.get("id")): sae for sae in listed.get("saes", ()) if isinstance(sae, dict)}
    if sae_id not in saes:
        some = ", ".join(list(saes)[:8])
        raise InputError(f"{uri}: SAELens' release {release!r} has no SAE {sae_id!r}; it has {some} ...")
    scale = saes[sae_id].get("norm_scaling_factor")
    path = _fetched(uri, str(listed.get("repo_id")), str(saes[sae_id].get("path")), None)
    return Found(path, float(scale) if isinstance(scale, (int, float)) else None)


def _fetched(uri: str, repo: str, path: str, revision: str | None) -> Path:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InputError(f"{uri}: needs huggingface_hub: pip install 'saecodec[hf]', or download it and give its path")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [path, f"{path}/*"] if path else list(_PATTERNS)
    wanted: dict[str, Any] = {"repo_id": repo, "revision": revision, "allow_patterns": patterns}
    try:
        try:
            here = Path(snapshot_download(**wanted, local_files_only=True)) / path
        except LocalEntryNotFoundError:
            here = None
        if here is None or not here.exists():
            here = Path(snapshot_download(**wanted)) / path
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{uri}: cannot be had from the hub, nor from its cache here: {reason}") from error
    if not here.exists():
        raise InputError(f"{uri}: the repository {repo} has no {path!r}")
    return here


def _release(name: str) -> dict[str, Any] | None:
    """What SAELens, where it is installed, lists under a release; it is not imported."""
    package = importlib.util.find_spec("sae_lens")
    listing = Path(package.origin).parent / _RELEASES if package is not None and package.origin else None
    if listing is None or not listing.is_file():
        return None
    import yaml

    with open(listing, encoding="utf-8") as file:
        # The listing has 45,000 lines: libyaml's loader, where there is one, takes a fifth of the time.
        releases = yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    found = releases.get(name) if isinstance(releases, dict) else None
    return found if isinstance(found, dict) else None
