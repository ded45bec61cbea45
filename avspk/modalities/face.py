"""Face: crops of the video -> image augmentation -> ResNet."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from avspk.common.extras import require
from avspk.common.settings import Count, FirstReader
from avspk.data.augmentation import ImagePolicy
from avspk.data.crop_store import CropStore, CropStoreError
from avspk.data.dataset import ViewSampler
from avspk.data.manifest import Utterances
from avspk.data.views import FaceGroup, FaceViews, GroupedViews
from avspk.frontend.front_end import FaceFrontEnd
from avspk.frontend.image_augment import ImageAugment
from avspk.inference.embed import embed_faces
from avspk.modalities.base import CropCounts, Media, ModalityKit, ModalitySettings
from avspk.models.encoder import Encoder
from avspk.models.registry import FaceEncoderSettings
from avspk.models.resnet import FaceResNetSettings
from avspk.objectives.base import ViewPlan


class FaceViewSettings(CropCounts):
    """Crops of one utterance's faces for stage 1 [C]; sizes in pixels after augmentation."""

    global_size: Count = 112
    global_policy: ImagePolicy = ImagePolicy()
    local_size: Count = 112
    local_policy: ImagePolicy = ImagePolicy(scale=(0.15, 0.4))


class FaceSettings(ModalitySettings):
    """The face modality."""

    encoder: FaceEncoderSettings = FaceResNetSettings()
    views: FaceViewSettings = FaceViewSettings()
    refine_size: Count = 112
    align: bool = Field(False, description="crops are aligned by the landmarks of eyes, nose and mouth [C]")
    refine_policy: Annotated[ImagePolicy, FirstReader.ROUNDS] = ImagePolicy(scale=(0.6, 1.0), grey=0.1, blur=0.2)

    def build(self, name: str, media: Media) -> FaceKit:
        """See `ModalitySettings`."""
        return FaceKit(name, self, media)

    def usable(self, utterances: Utterances) -> np.ndarray:
        """Utterances that have face crops."""
        found: np.ndarray = utterances.table["num_crops"].to_numpy() > 0
        return found

    def require_media(self, utterances: Utterances, crops: Path, share: slice) -> None:
        """Check that the store of face crops exists, and what reads it."""
        if not crops.is_dir():
            raise FileNotFoundError(f"no face crop store at {crops}; run `avspk prepare` or set data.crops")
        require("torchvision.io")
        ends, there = utterances.table[["first_crop", "num_crops"]].sum(axis=1).max(), len(CropStore(crops))
        if ends > there:
            raise CropStoreError(f"{crops} has {there} crops, the manifest names {ends}: they are of two preparations")

    def inputs(self) -> dict[str, Any]:
        """See `ModalitySettings`."""
        return {"aligned": self.align}

    def example_inputs(self, batch_size: int) -> Tensor:
        """Images (B, 3, S, S)."""
        size = self.views.global_size
        return torch.rand(batch_size, 3, size, size)


class FaceKit(ModalityKit):
    """Views are single crops; an utterance's embedding is the mean over its crops."""

    settings: FaceSettings

    def pretrain_views(self, plan: ViewPlan, long_alone: bool = False) -> GroupedViews:
        """See `ModalityKit`."""
        views = self.settings.views
        long, short = views.counts(plan)
        return self._views(
            {
                "global": FaceGroup(long, None if plan.clean_long else views.global_policy, long_alone),
                "local": FaceGroup(short, views.local_policy),
            }
        )

    def refine_views(
        self, seconds: float | None = None, augmented: bool = True, clean_seconds: float | None = None
    ) -> ViewSampler:
        """See `ModalityKit`. A clean view is the whole training crop: there is no longer one."""
        return self._views({"refine": FaceGroup(1, self.settings.refine_policy if augmented else None)})

    def front_end(self, augmented: bool = True) -> nn.Module:
        """See `ModalityKit`."""
        views = self.settings.views
        return FaceFrontEnd(
            {"global": views.global_size, "local": views.local_size, "refine": self.settings.refine_size}
        )

    def embed(self, encoder: Encoder, rows: slice) -> np.ndarray:
        """See `ModalityKit`."""
        table, device = self.media.utterances.table, self.media.device
        resize = ImageAugment(self.settings.refine_size).to(device)
        return embed_faces(
            encoder,
            lambda images: resize(images, None),
            self._store,
            table["first_crop"].to_numpy()[rows],
            table["num_crops"].to_numpy()[rows],
            device,
            self.media.workers,
        )

    def _views(self, groups: dict[str, FaceGroup]) -> FaceViews:
        wanted = {name: group for name, group in groups.items() if group.count}
        return FaceViews(self.media.utterances, self._store, wanted)

    @cached_property
    def _store(self) -> CropStore:
        # Without loader processes this one reads each crop many times. Loader processes would each keep all crops.
        return CropStore(self.media.crops, aligned=self.settings.align, keep=self.media.workers == 0)
