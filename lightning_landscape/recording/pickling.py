"""Find objects whose class defines its own pickling, because recording must not call user code."""

from __future__ import annotations

import functools
import sys
import types

_METHODS = (
    *("__reduce__", "__reduce_ex__", "__getstate__"),
    *("__getnewargs__", "__getnewargs_ex__"),
)
_BUILT_IN = (types.MethodDescriptorType, types.WrapperDescriptorType, types.BuiltinFunctionType)
_LIBRARIES = frozenset({"torch", "numpy", "lightning", "torchmetrics"})


def has_own_pickling(value: object) -> bool:
    """Return whether pickling a value would call code outside Python and the known libraries.

    Example:
        >>> class Counted(float):
        ...     def __getstate__(self):
        ...         return None
        >>> has_own_pickling(1.0), has_own_pickling(Counted(1.0))
        (False, True)
    """
    return _class_has_own_pickling(type(value))  # type: ignore[arg-type]  # mypy


@functools.cache
def _class_has_own_pickling(kind: type) -> bool:
    for name in _METHODS:
        method = getattr(kind, name, None)
        if method is None or isinstance(method, _BUILT_IN):
            continue
        package = str(getattr(method, "__module__", "")).partition(".")[0]
        if package not in _LIBRARIES and package not in sys.stdlib_module_names:
            return True
    return False
