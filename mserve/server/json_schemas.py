"""What a model takes, as JSON Schema: the request bodies of both REST protocols, from a signature.

Source: https://json-schema.org/draft/2020-12.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..sparse import Sparse
from ..tensors import Signature, TensorSpec
from ..wire.oip import DATATYPES, RAW_ONLY, datatype_name

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
# A line of LIBSVM's or libFM's text.
LINE = r"^(\S+ )?([0-9]{1,19}:\S+ ?)*$"
COUNT: Schema = {"type": "integer", "minimum": 0}
ANY: Schema = {}


def array_of(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def object_of(required: str = "", **properties: Schema) -> Schema:
    """An object with those properties, of which the ones named are always there."""
    names = required.split()
    return {"type": "object", "properties": properties} | ({"required": names} if names else {})


PARAMETERS: Schema = {
    "type": ["object", "null"],
    "additionalProperties": {"type": ["string", "number", "boolean"]},
}
PORT = object_of("name datatype shape", name=TEXT, datatype=TEXT, shape=array_of({"type": "integer"}))
TENSOR = {
    **PORT,
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "datatype": {"enum": list(DATATYPES)},
        "shape": array_of(COUNT),
        "data": array_of(ANY),
        "parameters": PARAMETERS,
    },
}
WANTED = object_of("name", name={"type": "string", "minLength": 1}, parameters=PARAMETERS)


def predict_body(signature: Signature, name: str, *, needed: bool) -> Schema:
    """A :predict body for a signature; `needed` tells whether it must be named."""
    ports = signature.ports()
    rows = {a: _row(s) for a, s in ports.items()}
    columns = {
        a: array_of(_row(s)) if isinstance(s, Sparse) else _nested(_leaf(s), s.shape)
        for a, s in ports.items()
    }
    lone = len(rows) == 1
    by_name = [_named(signature, ports) for ports in (rows, columns)]
    row, column = (
        {"anyOf": [named, next(iter(ports.values()))]} if lone else named
        for named, ports in zip(by_name, (rows, columns), strict=True)
    )
    schema = object_of(
        "signature_name" if needed else "",
        signature_name={"const": name} if needed else {"enum": [name, ""]},
        instances=array_of(row),
        inputs=column,
        outputs=array_of({"enum": list(signature.outputs)}, minItems=1, uniqueItems=True),
    )
    return schema | {"oneOf": [{"required": ["instances"]}, {"required": ["inputs"]}]}


def _row(port: TensorSpec | Sparse) -> Schema:
    """One row of an input."""
    if not isinstance(port, Sparse):
        return _nested(_leaf(port), None if port.shape is None else port.shape[1:])
    entry = _nested(_value(port.dtype), port.shape[2:])
    if port.kind == "ragged":
        return array_of(entry)
    most = port.size - 1 if port.size else 2**63 - 1
    ids = array_of(COUNT | {"minimum": port.first_id, "maximum": most})
    row = object_of("ids", ids=ids, **({"values": array_of(entry)} if port.has_values else {}))
    line = {"type": "string", "pattern": LINE}
    told = {"description": port.doc} if port.doc else {}  # such as what its ids count from
    return {"anyOf": [row | {"additionalProperties": False}, line], **told}


def _named(signature: Signature, ports: Mapping[str, Schema]) -> Schema:
    required = [alias for alias, spec in signature.ports().items() if not spec.optional]
    schema = object_of("", **ports) | {"additionalProperties": False}
    return schema | ({"required": required} if required else {})


def infer_body(signature: Signature, name: str, *, needed: bool) -> Schema:
    """An /infer body for a signature; `needed` tells whether it must be named."""
    required = [alias for alias, spec in signature.inputs.items() if not spec.optional]
    parameters = {
        **PARAMETERS,
        "properties": {"signature_name": {"enum": [name, *([] if needed else [""])]}},
    }
    if needed:
        parameters |= {"type": "object", "required": ["signature_name"]}
    inputs = array_of(
        {"anyOf": [_tensor(alias, spec) for alias, spec in signature.inputs.items()]},
        minItems=len(required),
        maxItems=len(signature.inputs),
    )
    outputs = {
        "type": ["array", "null"],
        "items": {
            **WANTED,
            "properties": {**WANTED["properties"], "name": {"enum": list(signature.outputs)}},
        },
    }
    return object_of(
        "inputs parameters" if needed else "inputs",
        id={"type": ["string", "null"]},
        inputs=inputs,
        outputs=outputs,
        parameters=parameters,
    )


def _tensor(alias: str, spec: TensorSpec) -> Schema:
    """An input of the Open Inference Protocol: flat or nested values, or raw bytes behind the JSON."""
    datatype = datatype_name(spec.dtype)
    sizes = [COUNT if isinstance(size, str) else {"const": size} for size in spec.shape or ()]
    rank = {} if spec.shape is None else {"minItems": len(sizes), "maxItems": len(sizes)}
    leaf = _leaf(spec)
    schema = object_of(
        "name datatype shape",
        name={"const": alias},
        datatype={"const": datatype},
        shape=array_of(COUNT, **({"prefixItems": sizes} if sizes else {}), **rank),
        data={"anyOf": [array_of(leaf), _nested(leaf, spec.shape)]},
        parameters=PARAMETERS,
    )
    if datatype in RAW_ONLY:
        del schema["properties"]["data"]
    return schema


def _nested(leaf: Schema, shape: tuple[int | str, ...] | None) -> Schema:
    """Lists of lists of a shape's sizes; anything for an unknown rank."""
    if shape is None:
        return {"anyOf": [leaf, array_of(ANY)]}
    schema = leaf
    for size in reversed(shape):
        schema = array_of(schema, **({} if isinstance(size, str) else {"minItems": size, "maxItems": size}))
    return schema


def _leaf(spec: TensorSpec) -> Schema:
    """One value of a tensor as JSON."""
    return _value(spec.dtype)


def _value(dtype: str) -> Schema:
    """One value of a dtype as JSON; `{"b64": "..."}` stands for the bytes of a text."""
    if dtype == "string":
        return {"anyOf": [TEXT, object_of("b64", b64={"type": "string", "contentEncoding": "base64"})]}
    if dtype == "bool":
        return FLAG
    if dtype.startswith(("int", "uint")):
        bits = int(dtype.lstrip("uint"))
        low, high = (0, 2**bits - 1) if dtype.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return {"type": "integer", "minimum": low, "maximum": high}
    return {"type": "number"}
