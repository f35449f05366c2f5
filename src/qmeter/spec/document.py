"""A study file as plain data that remembers its lines: safe YAML, duplicate keys refused, every fault kept.

YAML 1.1's traps are closed: keys are always text (``on:`` is no boolean), dates and ``1:30`` stay text, tags that
would build objects are refused, aliases cannot grow without bound.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

YamlPath = tuple[str | int, ...]

MAX_CHARACTERS = 1_000_000
MAX_NODES = 100_000
_PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq")}


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a study: where (path and line, 0 where there is none) and what, in words for a person."""

    path: YamlPath
    message: str
    line: int = 0

    def as_pair(self) -> tuple[str, str]:
        """``(path, message)`` as :class:`~qmeter.errors.SpecError` carries it, the line in the message."""
        where = f" (line {self.line})" if self.line else ""
        return show(self.path), f"{self.message}{where}"


@dataclass
class Document:
    """Plain data, the line of every value in it, and the faults met on the way."""

    name: str
    data: Any = None
    lines: dict[YamlPath, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def line(self, path: YamlPath) -> int:
        """The line of ``path``, or of the nearest thing around it that the file has; 0 if none."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 0)


def show(path: YamlPath) -> str:
    """``("workloads", 0, "arrivals")`` → ``workloads[0].arrivals``; the root is ``(the file)``."""
    text = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path)
    return text.removeprefix(".") or "(the file)"


class _Loader(yaml.SafeLoader):
    """SafeLoader whose dates stay text; keys and values are taken from nodes by :class:`_Walk`."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in rows if tag in _PLAIN or tag == "tag:yaml.org,2002:merge"]
    for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_document(text: str, name: str) -> Document:
    """Parse one YAML document. Never raises for what is in ``text``: see ``faults``."""
    document = Document(name)
    if len(text) > MAX_CHARACTERS:
        document.faults.append(Fault((), f"the file has {len(text)} characters; a study has at most {MAX_CHARACTERS}"))
        return document
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            document.faults.append(Fault((), "the file is empty: start with 'qmeter: 1', or run: qmeter init"))
        else:
            document.data = _Walk(loader, document).value(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(p for p in (error.context, error.problem) if p)
        document.faults.append(Fault((), f"not valid YAML: {what}", mark.line + 1 if mark else 0))
    except yaml.YAMLError as error:
        document.faults.append(Fault((), f"not valid YAML: {' '.join(str(error).split())}"))
    except RecursionError:
        document.faults.append(Fault((), "nested too deep, or an alias that contains itself"))
    if not document.faults and not isinstance(document.data, dict):
        document.faults.append(Fault((), "a study is a mapping of keys, starting with 'qmeter: 1'", 1))
    return document


class _Walk:
    """Builds plain data from nodes, notes lines, refuses duplicates and tags."""

    def __init__(self, loader: _Loader, document: Document):
        self._loader, self._document, self._nodes = loader, document, 0
        self._flat: set[int] = set()

    def value(self, node: yaml.Node, path: YamlPath) -> Any:
        """The plain value of ``node``, found at ``path``."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise yaml.YAMLError(f"more than {MAX_NODES} values (aliases expand)")
        self._document.lines.setdefault(path, node.start_mark.line + 1)
        if node.tag not in _PLAIN:
            self._fault(path, f"the YAML tag {node.tag.removeprefix('tag:yaml.org,2002:')!r} is not allowed here", node)
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*path, i)) for i, child in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: YamlPath) -> dict[str, Any]:
        if id(node) not in self._flat:
            self._flat.add(id(node))
            self._refuse_duplicates(node, path)
            self._loader.flatten_mapping(node)
        data: dict[str, Any] = {}
        for key, child in node.value:
            if isinstance(key, yaml.ScalarNode):
                self._document.lines[(*path, key.value)] = key.start_mark.line + 1
                data[key.value] = self.value(child, (*path, key.value))
            else:
                self._fault(path, "a key must be plain text", key)
        return data

    def _refuse_duplicates(self, node: yaml.MappingNode, path: YamlPath) -> None:
        first: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value in first and key.value != "<<":
                self._fault((*path, key.value), f"the key stands twice; the first is on line {first[key.value]}", key)
            elif isinstance(key, yaml.ScalarNode):
                first[key.value] = line

    def _scalar(self, node: yaml.Node, path: YamlPath) -> Any:
        if ":" in node.value and node.tag.endswith((":int", ":float")):
            return node.value
        try:
            return self._loader.construct_object(node)
        except ValueError as error:
            self._fault(path, f"cannot be read as a number: {error}", node)
            return None

    def _fault(self, path: YamlPath, message: str, node: yaml.Node) -> None:
        self._document.faults.append(Fault(path, message, node.start_mark.line + 1))
