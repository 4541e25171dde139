"""Devices that models run on: the CPU or CUDA devices, by the names that people give them.

ONNX Runtime goes to the CPU without a word where CUDA cannot be used. Here nothing does: a
device that is asked for by name is tried first, and only `auto` chooses.
"""

from __future__ import annotations

import re
import subprocess
from functools import cache

from ..errors import EnvironmentProblem, UsageError
from .providers import CUDA, engine_facts, try_cuda

CPU, AUTO = "cpu", "auto"
EXPECTED = "auto, cpu, or CUDA devices such as cuda:0 or cuda:0,cuda:1"
_CUDA_NAMES = re.compile(r"cuda:(?:0|[1-9]\d?)(?:,cuda:(?:0|[1-9]\d?))*", re.ASCII)


def checked(text: str) -> str:
    """The text itself. Raises UsageError where it names no devices, or one of them twice."""
    names = text.split(",")
    known = text in (CPU, AUTO) or _CUDA_NAMES.fullmatch(text)
    if not known or len(set(names)) < len(names):
        raise UsageError("no such device", expected=EXPECTED, found=repr(text[:60]))
    return text


def settled(text: str) -> str:
    """The same devices, with what `auto` stands for in this process."""
    return automatic()[0] if text == AUTO else text


def resolve(text: str) -> tuple[int, ...]:
    """The numbers of the CUDA devices that a text names, in its order; () is the CPU.

    Raises UsageError for no such text, EnvironmentProblem where no model can run on one of them.
    """
    text = settled(checked(text))
    if text == CPU:
        return ()
    numbers = tuple(int(name.removeprefix("cuda:")) for name in text.split(","))
    for number in numbers:
        _check(number)
    return numbers


@cache
def automatic() -> tuple[str, str]:
    """What `auto` stands for, which is found out once; where it is the CPU, also why."""
    why = why_not(0)
    return (CPU, why) if why else ("cuda:0", "")


@cache  # a success; an error is not kept, and the next load tries again
def _check(number: int) -> None:
    """Raises EnvironmentProblem where no model can run on a CUDA device."""
    if why := why_not(number):
        raise unusable(number, why)


def unusable(number: int, why: object) -> EnvironmentProblem:
    """What is said when models cannot run on a CUDA device."""
    return EnvironmentProblem(
        "models cannot run on this device",
        where=f"device cuda:{number}",
        expected="a GPU that ONNX Runtime can use by CUDA",
        found=why,
        hint="mserve doctor says what is missing; the device cpu needs none of it",
    )


def why_not(number: int) -> str:
    """What keeps models from running on a CUDA device; "" if one just ran there."""
    if CUDA not in engine_facts().providers:
        return "the installed ONNX Runtime has no CUDA provider"
    try:
        trial = try_cuda(number)
    except (OSError, subprocess.TimeoutExpired) as error:  # of `ldd`
        return str(error)
    return f"{trial.error}: {', '.join(trial.missing)}" if trial.missing else trial.error
