"""To the Hugging Face hub, through huggingface_hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from ullme.export.directory import ADAPTER_FOLDER


def require_uploadable(name: str, keep_adapter: bool) -> None:
    """Pass if such an export can go to a repository of this name; nothing is asked of the hub.

    Raises:
        ValueError: it cannot.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"push_to_hub: {name!r} is no repository name ({error}); give OWNER/NAME") from error
    if keep_adapter:
        raise ValueError(
            "push_to_hub: an adapter that is kept apart is found beside its base in a local directory only; on the hub "
            "Transformers takes the base from the name in the adapter's config; export without keep_adapter"
        )


def push_to_hub(folder: str | Path, name: str, *, private: bool = True) -> str:
    """Upload an exported directory as a model repository in one commit, and return its address.

    The repository is made if there is none; a new one is private unless asked otherwise.

    Raises:
        ValueError: no such directory, no right to write there, or the hub cannot be reached.
    """
    folder = Path(folder)
    require_uploadable(name, (folder / ADAPTER_FOLDER).is_dir())
    if not (folder / "modules.json").is_file():
        raise ValueError(f"push_to_hub: {str(folder)!r} is no exported directory; export first")
    api = HfApi()
    try:
        api.create_repo(name, repo_type="model", private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name, folder_path=folder, repo_type="model", commit_message="Export by ullme"
        )
    except (HfHubHTTPError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ValueError(
            f"push_to_hub: {name!r} cannot be written ({reason}); log in with `hf auth login`, or check the name; the "
            f"directory is complete in {str(folder)!r}"
        ) from error
    return str(commit.repo_url)
