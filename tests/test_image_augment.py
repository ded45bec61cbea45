"""ImageAugment against torchvision's definitions; the output of a row depends on that row alone."""

import math

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from avspk.frontend.image_augment import ImageAugment, blur_matrices


def pictures(num_images: int, height: int = 112, width: int = 112) -> torch.Tensor:
    """Smooth colourful pictures with some pixel noise, uint8 (N, H, W, 3)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(num_images, 3, 9, 9, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    noisy = smooth + 0.05 * torch.randn(smooth.shape, generator=generator)
    return (noisy.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def nothing(num_images: int) -> dict[str, torch.Tensor]:
    return {
        "box": torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(num_images, 1),
        "flip": torch.zeros(num_images, dtype=torch.int64),
        "brightness": torch.ones(num_images),
        "contrast": torch.ones(num_images),
        "saturation": torch.ones(num_images),
        "grey": torch.zeros(num_images, dtype=torch.int64),
        "blur": torch.zeros(num_images),
    }


def random_numbers(num_images: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(num_images, generator=generator)

    corner, size = 0.4 * torch.rand(num_images, 2, generator=generator), uniform(0.2, 0.6)[:, None]
    return {
        "box": torch.cat([corner, corner + size], dim=1),
        "flip": torch.randint(0, 2, (num_images,), generator=generator),
        "brightness": uniform(0.6, 1.4),
        "contrast": uniform(0.6, 1.4),
        "saturation": uniform(0.5, 1.5),
        "grey": torch.randint(0, 2, (num_images,), generator=generator),
        "blur": uniform(-1, 2).clamp_min(0),
    }


def unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 (N, H, W, 3) -> float (N, 3, H, W) in [0, 1], for torchvision."""
    return images.permute(0, 3, 1, 2).float() / 255


def augmented(images: torch.Tensor, size: int, **changes: torch.Tensor) -> torch.Tensor:
    """Output in [0, 1] with only the given parameters different from "no change"."""
    return (ImageAugment(size)(images, {**nothing(len(images)), **changes}) + 1) / 2


def test_same_size_without_numbers_is_the_picture_itself() -> None:
    images = pictures(2)
    torch.testing.assert_close(ImageAugment(112)(images), unit(images) * 2 - 1, atol=1e-6, rtol=0)
    torch.testing.assert_close(ImageAugment(112)(images, nothing(2)), unit(images) * 2 - 1, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [48, 64, 112, 160])
@pytest.mark.parametrize("shape", [(112, 112), (90, 130)])
def test_plain_resize_equals_torchvision(size: int, shape: tuple[int, int]) -> None:
    images = pictures(2, *shape)
    expected = reference.resize(unit(images), [size, size], InterpolationMode.BILINEAR, antialias=True)
    torch.testing.assert_close((ImageAugment(size)(images) + 1) / 2, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [32, 64, 112])
def test_box_on_pixel_borders_equals_torchvision_crop_inside(size: int) -> None:
    """torchvision ignores the pixels around the crop, so its outermost taps may differ: compare inside."""
    images = pictures(2, 128, 128)
    top, left, height, width = 24, 40, 64, 72
    box = torch.tensor([[left, top, left + width, top + height]]).repeat(2, 1) / 128
    crop = unit(images)[:, :, top : top + height, left : left + width]
    expected = reference.resize(crop, [size, size], InterpolationMode.BILINEAR, antialias=True)
    edge = math.ceil(size / 64)
    inside = slice(edge, size - edge)
    output = augmented(images, size, box=box)
    torch.testing.assert_close(output[..., inside, inside], expected[..., inside, inside], atol=1e-4, rtol=0)


def test_shrinking_does_not_alias() -> None:
    stripes = torch.zeros(1, 112, 112, 3, dtype=torch.uint8)
    stripes[:, :, ::2] = 255  # the finest pattern: half as many pixels cannot represent it
    assert (augmented(stripes, 56)[..., 2:-2] - 0.5).abs().max() < 0.02


def test_flip_mirrors() -> None:
    images = pictures(2)
    flipped = augmented(images, 64, flip=torch.tensor([1, 0]))
    plain = augmented(images, 64)
    torch.testing.assert_close(flipped[0], plain[0].flip(-1), atol=1e-5, rtol=0)
    assert torch.equal(flipped[1], plain[1])


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.3, 2.0])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colours_equal_torchvision(name: str, factor: float) -> None:
    images = pictures(2)
    expected = getattr(reference, f"adjust_{name}")(unit(images), factor)
    torch.testing.assert_close(augmented(images, 112, **{name: torch.full((2,), factor)}), expected, atol=1e-3, rtol=0)


def test_grey_equals_torchvision() -> None:
    images = pictures(2)
    output = augmented(images, 112, grey=torch.tensor([1, 0]), saturation=torch.tensor([1.4, 1.0]))
    expected = reference.rgb_to_grayscale(unit(images), num_output_channels=3)
    torch.testing.assert_close(output[0], expected[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(output[1], unit(images)[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0, 4.0])
def test_blur_equals_torchvision(sigma: float) -> None:
    images = pictures(2, 64, 64)
    expected = reference.gaussian_blur(unit(images), kernel_size=[41, 41], sigma=[sigma, sigma])
    output = augmented(images, 64, blur=torch.tensor([sigma, 0.0]))
    torch.testing.assert_close(output[0], expected[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(output[1], unit(images)[1], atol=1e-6, rtol=0)


def test_blur_has_no_denormal_taps() -> None:
    """A CPU multiplies denormal numbers some twenty times more slowly: a batch then takes twice the time."""
    taps = blur_matrices(torch.tensor([0.1, 0.5, 2.0]), 64)
    assert taps.min() >= torch.finfo(torch.float32).tiny
    torch.testing.assert_close(taps.sum(-1), torch.ones(3, 64))
    torch.testing.assert_close(taps[0], torch.eye(64), atol=1e-6, rtol=0)  # a tenth of a pixel


def test_a_row_does_not_see_the_batch() -> None:
    images, numbers = pictures(12), random_numbers(12)
    augment = ImageAugment(56)
    alone = [augment(images[k : k + 1], {n: v[k : k + 1] for n, v in numbers.items()}) for k in range(12)]
    together = augment(images, numbers)
    assert together.shape == (12, 3, 56, 56)
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_range_and_precision_under_autocast() -> None:
    images, numbers = pictures(8), random_numbers(8)
    augment = ImageAugment(56)
    output = augment(images, numbers)
    assert output.min() >= -1 - 1e-5
    assert output.max() <= 1 + 1e-5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augment(images, numbers), output)


def test_wrong_images_are_named() -> None:
    with pytest.raises(ValueError, match=r"float32 \(1, 3, 8, 8\); valid: uint8 \(N, H, W, 3\)"):
        ImageAugment(8)(torch.zeros(1, 3, 8, 8))
