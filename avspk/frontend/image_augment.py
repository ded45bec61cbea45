"""Crop, resize, flip, colour and blur for whole batches of face crops on the training device.

Resizing a box, mirroring and blurring are linear along each axis, so each is a small matrix per image and axis. A batch
is two batched matrix products, with antialiasing, for any boxes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # ITU-R BT.601 luma, the definition torchvision uses
# Smaller taps are set to exp(-80) of the centre. Below exp(-87), float32 is denormal, and a CPU multiplies denormal
# numbers some twenty times more slowly.
LOWEST_EXPONENT = -80.0


def resize_matrices(low: Tensor, high: Tensor, size_in: int, size_out: int) -> Tensor:
    """Resample the unit interval low..high of an axis: (N,), (N,) -> (N, size_out, size_in).

    Output sample i reads at low + (i + 1/2) (high - low) / size_out with a triangle as wide as one input pixel or, when
    shrinking, as one output pixel, which is bilinear interpolation with antialiasing. Taps outside the image are
    left out and the rest sum to 1, as in PIL.
    """
    step = (high - low) / size_out * size_in  # input pixels per output pixel
    centre = low[:, None] * size_in + (torch.arange(size_out, device=low.device) + 0.5) * step[:, None]  # (N, out)
    pixel = torch.arange(size_in, device=low.device) + 0.5
    width = step.abs().clamp_min(1.0)[:, None, None]
    taps = (1 - (pixel - centre[..., None]).abs() / width).clamp_min(0)  # (N, out, in)
    return taps / taps.sum(dim=-1, keepdim=True)


def blur_matrices(sigma: Tensor, size: int) -> Tensor:
    """Gaussian blur of an axis with reflected borders: sigma (N,) in pixels, > 0 -> (N, size, size), rows sum to 1.

    Tap (i, j) collects the kernel at j and at j's mirror images about the first and the last pixel.
    """
    here = torch.arange(size, device=sigma.device, dtype=torch.float32)
    i, j = here[:, None], here[None]
    scale = -0.5 / sigma.square()[:, None, None]

    def kernel(distance: Tensor) -> Tensor:
        return (distance.square() * scale).clamp_min_(LOWEST_EXPONENT).exp_()

    taps = kernel(i - j)
    taps = taps.addcmul_(kernel(i + j), j > 0)
    taps = taps.addcmul_(kernel(2 * (size - 1) - i - j), j < size - 1)
    return taps / taps.sum(dim=-1, keepdim=True)


class ImageAugment(nn.Module):
    """Images uint8 (N, H, W, 3) RGB -> float32 (N, 3, S, S), (x / 255 - 0.5) / 0.5.

    `augmentation` holds one row per image: box float32 (N, 4) x0 y0 x1 y1 in unit coordinates, flip int64 (N,),
    brightness, contrast, saturation float32 (N,) factors (1 = untouched), grey int64 (N,), blur float32 (N,) sigma in
    output pixels (0 = none); applied in this order, the colour operations as torchvision defines them, except that a
    grey image ignores its saturation. None = plain resize. A row's output depends only on that row. Pass the parameters
    as CPU tensors: then choosing the blurred rows needs no synchronisation.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("grey_weights", torch.tensor(GREY_WEIGHTS).view(1, 3, 1, 1), persistent=False)

    grey_weights: Tensor

    @torch.no_grad()
    def forward(self, images: Tensor, augmentation: Mapping[str, Tensor] | None = None) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, 3, S, S) float32 in [-1, 1]. Raises ValueError for another shape or type."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images are {images.dtype} {tuple(images.shape)}; valid: uint8 (N, H, W, 3)")
        with torch.autocast(images.device.type, enabled=False):
            if augmentation is None:
                whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).to(images.device, non_blocking=True)
                return self._resize(images, whole.expand(len(images), 4)).mul_(2).sub_(1)
            numbers = {name: value.to(images.device, non_blocking=True) for name, value in augmentation.items()}
            pixels = self._resize(images, _mirror(numbers["box"], numbers["flip"]))
            pixels = self._recolour(pixels, numbers)
            blurred = torch.nonzero(augmentation["blur"] > 0).flatten().to(images.device, non_blocking=True)
            if len(blurred):
                matrices = blur_matrices(numbers["blur"][blurred], self.size)
                across = _along_last_axis(pixels[blurred], matrices)
                pixels[blurred] = _along_last_axis(across.mT, matrices).mT
            return pixels.mul_(2).sub_(1)

    def _resize(self, images: Tensor, box: Tensor) -> Tensor:
        """(N, H, W, 3) uint8, boxes (N, 4) -> (N, 3, S, S) in [0, 1]; x0 > x1 mirrors."""
        batch, height, width, channels = images.shape
        x0, y0, x1, y1 = box.float().unbind(1)
        rows = images.float().mul_(1 / 255).view(batch, height, width * channels)
        rows = resize_matrices(y0, y1, height, self.size) @ rows  # (N, S, W * 3)
        rows = rows.view(batch, self.size, width, channels).permute(0, 3, 1, 2)  # (N, 3, S, W)
        return _along_last_axis(rows, resize_matrices(x0, x1, width, self.size))

    def _recolour(self, pixels: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
        """Brightness, contrast, saturation, grey on (N, 3, S, S); factors of 1 change nothing."""
        brightness, contrast, saturation = (
            numbers[name].float().view(-1, 1, 1, 1) for name in ("brightness", "contrast", "saturation")
        )
        pixels = pixels.mul_(brightness).clamp_(0, 1)
        mean_grey = self._grey(pixels).mean(dim=(2, 3), keepdim=True)  # (N, 1, 1, 1)
        pixels = pixels.mul_(contrast).add_((1 - contrast) * mean_grey).clamp_(0, 1)
        saturation = saturation * (1 - numbers["grey"].view(-1, 1, 1, 1))
        grey = self._grey(pixels)
        return pixels.mul_(saturation).add_((1 - saturation) * grey).clamp_(0, 1)

    def _grey(self, pixels: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, 1, S, S)."""
        return (pixels * self.grey_weights).sum(dim=1, keepdim=True)


def _along_last_axis(images: Tensor, matrices: Tensor) -> Tensor:
    """Each image's matrix applied to its rows of pixels: (N, 3, H, W), (N, out, W) -> (N, 3, H, out).

    One product an image. Broadcasting over the colours would copy each matrix three times.
    """
    batch, channels, height, width = images.shape
    return (images.reshape(batch, channels * height, width) @ matrices.mT).view(
        batch, channels, height, matrices.shape[1]
    )


def _mirror(box: Tensor, flip: Tensor) -> Tensor:
    """Exchange x0 and x1 of the boxes (N, 4) that are flipped."""
    return torch.where(flip[:, None].bool(), box[:, [2, 1, 0, 3]], box)
