# SPDX-License-Identifier: Apache-2.0
"""YAML that refuses what the standard reader lets pass: a key given twice, of which it silently takes the last."""

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """`SafeLoader` without doubled keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    "while reading a mapping", node.start_mark, f"the key {key.value!r} is given twice", key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def load_yaml(text: str) -> Any:
    """Parse YAML into plain values.

    Raises:
        yaml.YAMLError: The text is no YAML, or a mapping names a key twice.
    """
    return yaml.load(text, Loader=_Loader)
