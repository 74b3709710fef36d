"""A folder for the Hugging Face hub: that of sentence-transformers, with a model card. It can be uploaded."""

from pathlib import Path

from dream.export.base import Job
from dream.export.model_card import model_card
from dream.export.sentence_transformers import SentenceTransformersFormat
from dream.utils.errors import ConfigError


class HubFormat(SentenceTransformersFormat):
    """to=hub"""

    def write(self, job: Job, folder: Path) -> None:
        super().write(job, folder)
        model_card(job).save(folder / "README.md")


def push(folder: Path, repository: str, private: bool) -> str:
    """Upload the folder to a repository, which is created if it does not exist. Returns its address.

    Raises:
        ConfigError: the hub refused it, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    api = HfApi()
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repository, commit_message="Upload by dream-export")
    except (HTTPError, OSError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ConfigError("push", repository, f"not uploaded ({reason}); the export is complete in {folder}: log in "
                          "with hf auth login, then rerun with overwrite=true") from error  # fmt: skip
    return str(url)
