"""The probes of a user's own layer, in the process that its code runs in."""

from __future__ import annotations

from typing import cast

from torch import nn

from zipfmax_reference.checks import conformance, probes
from zipfmax_reference.contestants import registry


class OwnProbes:
    """Asks a layer what `conformance` asks of the built-in ones.

    Args:
        name: of the layer, as `path/file.py:Class` or `package.module:Class`.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        probes.TORCH_LAYERS[name] = cast(type[nn.Module], registry.users_class(name))

    def probe(self, feature: str) -> tuple[str, str]:
        """Verdict and detail of a feature."""
        found = conformance.probed(conformance.FEATURES[feature], self._name)
        return found.verdict, found.detail
