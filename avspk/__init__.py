"""Speaker verification trained from unlabelled talking-head video."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avspk.inference.speaker_model import SpeakerModel, load_model
    from avspk.publish import push_to_hub

__all__ = ["SpeakerModel", "load_model", "push_to_hub"]


def __getattr__(name: str) -> Any:
    # Lazy: the package's parts should not wait for torch unless they use it.
    if name == "push_to_hub":
        from avspk import publish

        return publish.push_to_hub
    if name in __all__:
        from avspk.inference import speaker_model

        return getattr(speaker_model, name)
    raise AttributeError(f"module 'avspk' has no attribute {name!r}")
