"""What tells a function from another one: its code and the values that it holds on to.

The digest of a function covers its bytecode, constants and names, the defaults of its arguments, and the values of the
variables that it closes over or reads from its module: numbers, strings, bytes, arrays, and containers of these.
Functions of its own module that it calls are looked into likewise; whatever it imports counts by its name. Bytecode
differs between versions of Python, and so do digests.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import sys
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

_PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray, type(...), range, slice)


def function_fingerprint(function: Any) -> str:
    """Return a text that is the same for the same function in every process of a Python version.

    Raises:
        ValueError: if the function holds on to something whose value cannot be told, such as a model.
    """
    digest = _Digest().value(function, _described(function))
    return f"python{sys.version_info.major}.{sys.version_info.minor}:{digest.hex()}"


def _described(function: Any) -> str:
    return str(getattr(function, "__qualname__", None) or type(function).__name__)


class _Digest:
    """Digests of values; of a function that calls itself, once."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}
        # Those of the functions that are looked into.
        self._modules: set[str] = set()

    def value(self, value: Any, where: str) -> bytes:
        """Return the digest of a value; `where` is how messages call it."""
        if isinstance(value, _PLAIN):
            return _hash(type(value).__name__, repr(value))
        if isinstance(value, list | tuple):
            return _hash(type(value).__name__, *(self.value(item, where) for item in value))
        if isinstance(value, set | frozenset):
            return _hash(type(value).__name__, *sorted(self.value(item, where) for item in value))
        if isinstance(value, Mapping) and type(value).__module__ in ("builtins", "collections", "types"):
            return _hash("dict", *(self.value(item, where) for pair in value.items() for item in pair))
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind != "O":
            array = np.asarray(value)
            return _hash("array", str(array.dtype), str(array.shape), _bytes(array))
        if isinstance(value, np.dtype | PurePath):
            return _hash(type(value).__name__, str(value))
        if isinstance(value, CodeType):
            return self._code(value, where)
        return self._callable(value, where)

    def _callable(self, value: Any, where: str) -> bytes:
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, functools.partial):
            return _hash("partial", self.value((value.func, value.args, value.keywords), where))
        if isinstance(value, ModuleType):
            return _hash("module", value.__name__)
        wrapped = getattr(value, "__wrapped__", None)  # of functools.cache and of decorators that say so
        if isinstance(wrapped, FunctionType):
            return _hash("wrapped", type(value).__qualname__, self._function(wrapped))
        owner = getattr(value, "__self__", None)
        if isinstance(owner, type) and isinstance(getattr(value, "__func__", None), FunctionType):
            return _hash("classmethod", owner.__qualname__, self._function(value.__func__))
        if isinstance(value, type) and value.__module__ in self._modules:
            return self._class(value)
        # What has a name by which it can be imported; bound methods have one, too, but their object may be anything.
        has_name = isinstance(value, type | np.ufunc | BuiltinFunctionType) or _is_importable(value)
        if has_name and (owner is None or isinstance(owner, ModuleType | type)):
            return _hash("name", str(getattr(value, "__module__", "")), _described(value), str(value.__name__))
        if owner is not None and isinstance(getattr(value, "__func__", None), FunctionType):
            return _hash("method", self._function(value.__func__), self.value(owner, where))
        raise ValueError(
            f"{where} is a {type(value).__qualname__}, whose value tells nothing from another one: say what the "
            'function is, with fingerprint="..." (a name and a version, say), and change that when the results change'
        )

    def _class(self, value: type) -> bytes:
        """Return the digest of a class of the function's own module: of its methods and constants."""
        if id(value) in self._seen:
            return _hash("seen", str(self._seen[id(value)]))
        self._seen[id(value)] = len(self._seen)
        parts = [_hash("name", base.__module__, base.__qualname__) for base in value.__bases__]
        for key, member in sorted(vars(value).items()):
            if isinstance(member, staticmethod | classmethod):
                member = member.__func__
            if isinstance(member, property):
                member = tuple(part for part in (member.fget, member.fset, member.fdel) if part is not None)
            if isinstance(member, FunctionType | tuple) or (isinstance(member, _PLAIN) and not key.startswith("__")):
                parts += [_hash(key), self.value(member, f"{key!r} of {value.__qualname__}")]
        return _hash("class", value.__qualname__, *parts)

    def _function(self, function: FunctionType) -> bytes:
        self._modules.add(function.__module__)
        if id(function) in self._seen:
            return _hash("seen", str(self._seen[id(function)]))
        self._seen[id(function)] = len(self._seen)
        name = function.__qualname__
        parts = [self._code(function.__code__, name)]
        parts += [self.value(value, f"a default of {name}") for value in function.__defaults__ or ()]
        for key, value in sorted((function.__kwdefaults__ or {}).items()):
            parts += [_hash(key), self.value(value, f"the default of {key!r} in {name}")]
        for key, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # not set yet
                continue
            parts += [_hash(key), self.value(value, f"{key!r}, which {name} closes over,")]
        for key in sorted(set(_global_names(function.__code__))):
            if key in function.__globals__:
                parts += [_hash(key), self._global(function, key)]
        return _hash("function", *parts)

    def _global(self, function: FunctionType, name: str) -> bytes:
        value = function.__globals__[name]
        if isinstance(value, FunctionType) and value.__module__ != function.__module__:
            return _hash("name", str(value.__module__), value.__qualname__)
        return self.value(value, f"{name!r}, which {function.__qualname__} reads,")

    def _code(self, code: CodeType, where: str) -> bytes:
        numbers = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        constants = [self.value(constant, where) for constant in code.co_consts]
        return _hash("code", repr(numbers), code.co_code, repr(names), *constants, code.co_exceptiontable)


def _global_names(code: CodeType) -> Iterable[str]:
    """Yield the names that code reads from its module, that of inner functions included."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)


def _is_importable(value: Any) -> bool:
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    name = getattr(value, "__name__", None)
    return callable(value) and isinstance(name, str) and getattr(module, name, None) is value


def _bytes(array: np.ndarray[Any, Any]) -> bytes:
    return repr(array.tolist()).encode() if array.dtype.kind == "T" else array.tobytes()


def _hash(*parts: str | bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()
