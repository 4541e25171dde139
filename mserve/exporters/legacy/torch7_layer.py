"""One layer of a Torch7 network as it lies in the file: its fields, read and checked one by one."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import InputError
from ...tensors import Array
from . import networks
from .networks import Window
from .torch7_file import Storage, Thing, View


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of a file, whose fields are read and checked one by one."""

    thing: Thing
    where: str

    def number(self, key: str, default: float | None = None) -> float:
        value = self.thing.fields.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, "a number")
        return networks.parameter(float(value), f"{self.where}.{key}")

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.number(key, default)
        if not value.is_integer() or abs(value) > networks.MAX_SIDE << 8:
            raise self.wrong(key, "a whole number")
        return int(value)

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.thing.fields.get(key)
        return default if value is None else bool(value)

    def array(self, key: str) -> Array:
        """Weights, float32. Raises InputError where there are none, or one is no number."""
        value = self.thing.fields.get(key)
        if not isinstance(value, View):
            raise self.wrong(key, "a tensor")
        place = f"{self.where}.{key}"
        return networks.finite(value.array(place), place)

    def maybe(self, key: str) -> Array | None:
        found = self.array(key) if self.thing.fields.get(key) is not None else None
        return found if found is not None and found.size else None

    def shaped(self, key: str, shape: tuple[int, ...]) -> Array:
        """Weights in a shape that other fields tell. Raises InputError where they do not fill it."""
        found, size = self.array(key), 1
        for side in shape:
            size *= side
        if found.size != size or min(shape) < 1:
            raise self.wrong(key, f"{list(shape)} numbers", list(found.shape))
        return found.reshape(shape)

    def sizes(self, key: str) -> list[int]:
        value = self.thing.fields.get(key)
        whole = isinstance(value, Storage) and value.values.dtype.kind in "iu"
        if not isinstance(value, Storage) or not whole or not 0 < len(value.values) < 32:
            raise self.wrong(key, "sizes")
        return [int(size) for size in value.values]

    def window(self, names: str = "kW kH dW dH padW padH") -> Window:
        kw, kh, dw, dh, pw, ph = (
            self.integer(name, None if i < 2 else int(i < 4)) for i, name in enumerate(names.split())
        )
        dilation = (self.integer("dilationH", 1), self.integer("dilationW", 1))
        return Window((kh, kw), (dh, dw), (ph, pw), dilation).check(self.where)

    def parts(self) -> list[Layer]:
        """The layers inside, in their order."""
        table = self.thing.fields.get("modules")
        if not isinstance(table, dict) or list(table) != list(range(1, len(table) + 1)):
            raise self.wrong("modules", "layers numbered from 1")
        found = []
        for number, one in table.items():
            if not isinstance(one, Thing):
                raise self.wrong(f"modules[{number}]", "a layer")
            found.append(Layer(one, f"{self.where}.{plain(one.name)}[{number}]"))
        return found

    def wrong(self, key: str, expected: str, found: object = None) -> InputError:
        value = self.thing.fields.get(key) if found is None else found
        text = repr(value)[:60] if isinstance(value, str | int | float | list) else type(value).__name__
        return InputError(
            "a layer is not what it must be", where=f"{self.where}.{key}", expected=expected, found=text
        )


def plain(name: str) -> str:
    """A class's name; cudnn's layers are called and stored as nn's."""
    return f"nn.{name[6:]}" if name.startswith("cudnn.") else name
