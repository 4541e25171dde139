"""An image file as an input of shape [..., H, W, C] or [..., C, H, W].

Nothing is guessed: a model's input says where its channels are, and how many; what pixels become is the
caller's affair, because a model that was trained on 0 to 1 answers 0 to 255 as well, wrongly.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import EnvironmentProblem, InputError, UsageError
from ..tensors import DTYPES, Array, TensorSpec

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 64 << 20
FORMATS = ("PNG", "JPEG")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """What becomes of an image: `pixels` is what 0 and 255 become, `resize` scales it to the input's
    size, `bgr` reverses red and blue."""

    pixels: tuple[float, float] | None = None
    resize: bool = False
    bgr: bool = False


def parse_pixels(text: str) -> tuple[float, float] | None:
    """What 0 and 255 become, from text such as 0..1; None for "". Raises UsageError."""
    if not text:
        return None
    low, dots, high = text.partition("..")
    try:
        if dots and len(text) < 40:
            return float(low), float(high)
    except ValueError:
        pass
    raise UsageError("bad --pixels", expected="LOW..HIGH: 0..1, -1..1 or 0..255", found=repr(text[:40]))


def read_image(data: bytes, spec: TensorSpec, where: str, options: ImageOptions) -> Array:
    """One image in the input's dtype and layout; a batch axis of size 1 where the input has one.

    Raises InputError: no image, another size than the input's, an input that no image fits;
    UsageError where it is not said what pixels become; EnvironmentProblem without pillow.
    """
    import numpy as np

    channels_at, channels = _layout(spec, where)
    dims = list((spec.shape or ())[-3:])
    del dims[channels_at]
    low, high = _scale(spec, where, options)
    image = _sized(_open(data, where), dims, where, options)
    pixels = np.asarray(image.convert(MODES[channels]), np.uint8).reshape(image.height, image.width, channels)
    if options.bgr and channels >= 3:
        pixels = pixels[..., [2, 1, 0, *range(3, channels)]]
    kind = DTYPES[spec.dtype].to_numpy()
    if (low, high) == (0, 255):
        array = pixels.astype(kind)
    else:
        array = (pixels.astype(np.float64) * ((high - low) / 255) + low).astype(kind)
    array = array.transpose(2, 0, 1) if channels_at == 0 else array
    return np.ascontiguousarray(array.reshape(*[1] * (len(spec.shape or ()) - 3), *array.shape))


def _layout(spec: TensorSpec, where: str) -> tuple[int, int]:
    """Where the channels stand among the last three axes, 0 or 2, and how many there are."""
    last = (spec.shape or ())[-3:]
    lead = (spec.shape or ())[:-3]
    numbers = spec.dtype not in ("string", "bool") and DTYPES[spec.dtype].bits >= 8
    places = [(at, last[at]) for at in (0, 2) if len(last) == 3 and last[at] in MODES]
    if not numbers or not places or any(isinstance(d, int) and d != 1 for d in lead):
        raise InputError(
            "no image fits this input",
            where=where,
            expected="[.., H, W, C] or [.., C, H, W] with 1, 3 or 4 channels",
            found=str(spec),
            hint="give it as npy or npz",
        )
    if len(places) == 2:  # four channels are rare: rather four pixels
        places = [(at, count) for at, count in places if count != 4] or places
    if len(places) == 2:
        raise InputError(
            "where the channels of this input stand cannot be told",
            where=where,
            found=str(spec),
            hint="give it as npy or npz",
        )
    at, channels = places[0]
    return at, int(channels)


def _scale(spec: TensorSpec, where: str, options: ImageOptions) -> tuple[float, float]:
    if options.pixels is None and "float" in spec.dtype:
        raise UsageError(
            "it is not said what pixels become",
            where=where,
            found=f"the input is {spec}",
            hint="--pixels 0..1, -1..1 or 0..255: what the model was trained on",
        )
    low, high = options.pixels or (0.0, 255.0)
    if "float" not in spec.dtype and (low, high) != (0, 255):
        raise UsageError(
            "pixels of a whole-number input stay as they are",
            where=where,
            found=f"--pixels {low:g}..{high:g}, for {spec}",
            hint="leave --pixels out",
        )
    return low, high


def _open(data: bytes, where: str) -> Image:
    """A decoded image of at most MAX_PIXELS pixels: its header is read before any of them."""
    try:
        from PIL import Image
    except ImportError as error:
        raise EnvironmentProblem(
            "reading images needs pillow", where=where, hint="pip install 'mserve[images]'"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise InputError(
                    "the image is too large",
                    where=where,
                    expected=f"at most {MAX_PIXELS:,} pixels",
                    found=f"{image.width} x {image.height}",
                )
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        found = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError("not a readable image", where=where, expected="PNG or JPEG", found=found) from error
    return image


def _sized(image: Image, dims: list[Any], where: str, options: ImageOptions) -> Image:
    """The image in the height and width that the input fixes."""
    height, width = (
        d if isinstance(d, int) else have for d, have in zip(dims, (image.height, image.width), strict=True)
    )
    if (height, width) == (image.height, image.width):
        return image
    if not options.resize:
        raise InputError(
            "the image has another size than the input",
            where=where,
            expected=f"{width} x {height} pixels",
            found=f"{image.width} x {image.height}",
            hint="--resize scales it",
        )
    return image.convert(MODES[3] if image.mode == "P" else image.mode).resize((width, height))
