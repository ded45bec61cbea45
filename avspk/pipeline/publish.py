"""Upload a trained model with its card to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from avspk.common.extras import explained
from avspk.inference.hub import upload


def push_to_hub(
    folder: Path | str, repo: str, license_id: str, training_data: str | None = None, private: bool = False
) -> str:
    """Upload a model folder as `owner/name`, with a card from `model_card`. Returns its address.

    Raises ValueError if the folder holds no audio model, HubError if the hub refuses it or cannot be reached.
    """
    with explained():
        from avspk.evaluation.model_card import model_card
    folder = Path(folder)
    return upload(folder, repo, model_card(folder, repo, license_id, training_data), private)
