"""Reading YAML configs as data: nothing of such a file is run while it is read.

Detectron2's ``LazyConfig.load`` reads YAML with PyYAML's unsafe loader, by which a file may call
any function; and what a file names as ``_target_`` is called when the config is instantiated. Here
the tags are those that ``LazyConfig.save`` writes, and the names those of :mod:`.allowed_names`.
"""

import re
from collections.abc import Collection, Hashable
from functools import partial
from typing import Any

import yaml
from detectron2.layers import ShapeSpec
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .allowed_names import find_allowed
from .errors import UserError
from .variants import Variant

_MAX_BYTES = 4 * 2**20
# A config of this project has about 1,000. Aliases count as often as they are used.
_MAX_NODES = 100_000
_MAX_DEPTH = 100

# Arguments by which what is allowed would run code: Detectron2's loaders read a pickle of
# proposals, also by a yacs config; Hugging Face's data sets may come with a script.
_REFUSED_KEYS = ("proposal_files", "trust_remote_code")
_REFUSED_IN_CALLS = ("cfg",)


def read_yaml_config(file: str, trust: Collection[str] = ()) -> DictConfig:
    """Reads a YAML config.

    Args:
        file: its path.
        trust: names that the config may call beside those of :mod:`.allowed_names`.

    Raises:
        UserError: the file is no YAML, no config, or asks to run what it may not.
    """
    try:
        with open(file, "rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise UserError(f"it is longer than {_MAX_BYTES} bytes")
        return _parse(content, trust)
    except OSError as error:
        raise UserError(f"cannot read config file {file!r}: {error.strerror}") from error
    except UserError as error:
        raise UserError(f"config file {file!r}: {error}") from error
    # YAML has dates and numbers that Python has not, and keys that OmegaConf has not.
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"config file {file!r} is no YAML config: {reason}") from error
    except (RecursionError, OverflowError) as error:
        raise UserError(f"config file {file!r} is no config: {error}") from error


def _parse(content: bytes, trust: Collection[str]) -> DictConfig:
    loader = _Loader(content)
    loader.trust = trust
    try:
        node = loader.get_single_node()
        if node is not None:
            _check_size(node, {}, 0)
        data = loader.construct_document(node) if node is not None else None
    finally:
        loader.dispose()
    if not isinstance(data, dict):
        raise UserError(f"it holds no keys and values, but {type(data).__name__}")
    _check_calls(data, trust)
    return OmegaConf.create(data, flags={"allow_objects": True})


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with the tags that ``LazyConfig.save`` writes."""

    trust: Collection[str] = ()

    def python_name(self, suffix: str, node: yaml.Node) -> Any:
        return find_allowed(suffix, self.trust)

    def python_tuple(self, node: yaml.Node) -> tuple[Any, ...]:
        return tuple(self.construct_sequence(node, deep=True))

    def python_partial(self, node: yaml.Node) -> partial[Any]:
        state = self.construct_mapping(node, deep=True).get("state")
        function, args, keywords, _ = state if isinstance(state, tuple) else (None,) * 4
        # A string is no function yet: only python/name has checked what it names.
        if not callable(function) or not isinstance(keywords, dict):
            raise UserError("it has a functools.partial that LazyConfig.save has not written")
        return partial(function, *args, **keywords)

    def python_object(self, suffix: str, node: yaml.Node) -> Any:
        known = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in (ShapeSpec, Variant)}
        if suffix not in known:
            raise UserError(f"it was refused because it wants to make {suffix}")
        return known[suffix](**self.construct_mapping(node, deep=True))

    def refuse(self, suffix: str, node: yaml.Node) -> None:
        raise UserError(f"it was refused because it wants to run {suffix or node.tag}")


_PYTHON = "tag:yaml.org,2002:python/"
_Loader.add_constructor(f"{_PYTHON}tuple", _Loader.python_tuple)
_Loader.add_constructor(f"{_PYTHON}object/apply:functools.partial", _Loader.python_partial)
# The longest prefix is not preferred by PyYAML, but the one that was added first.
_Loader.add_multi_constructor(f"{_PYTHON}name:", _Loader.python_name)
_Loader.add_multi_constructor(f"{_PYTHON}object:", _Loader.python_object)
_Loader.add_multi_constructor(f"{_PYTHON}object/apply:", _Loader.refuse)
_Loader.add_multi_constructor(_PYTHON, _Loader.refuse)


def _check_size(node: yaml.Node, sizes: dict[int, int], depth: int) -> int:
    """Counts a node and all below it, and refuses aliases that multiply or enclose themselves."""
    if depth > _MAX_DEPTH or sizes.get(id(node)) == 0:
        raise UserError("its values are nested without end, or too deep for a config")
    if id(node) not in sizes:
        sizes[id(node)] = 0  # is being counted
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        sizes[id(node)] = 1 + sum(_check_size(child, sizes, depth + 1) for child in children)
    if sizes[id(node)] > _MAX_NODES:
        raise UserError(f"it holds more than {_MAX_NODES} values: its aliases multiply them")
    return sizes[id(node)]


def _check_calls(value: Any, trust: Collection[str]) -> None:
    """Checks all that a config may make be called."""
    if isinstance(value, str):
        # Resolvers such as oc.create would make further calls of text; plain references do not.
        if re.search(r"\$\{(?![\w.\[\]-]+\})", value):
            raise UserError(f"it was refused because {value!r} is more than a reference to a key")
    elif isinstance(value, list | tuple):
        for item in value:
            _check_calls(item, trust)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_entry(key, item, value, trust)
            _check_calls(item, trust)


def _check_entry(
    key: Hashable, item: Any, siblings: dict[Any, Any], trust: Collection[str]
) -> None:
    # What python/name has found is checked already.
    is_name = key in ("_target_", "prepare") and not (callable(item) or item is None)
    if is_name and item != "":
        find_allowed(item, trust)
    refused = _REFUSED_KEYS + (_REFUSED_IN_CALLS if "_target_" in siblings else ())
    if key in refused and item:
        raise UserError(f"it was refused because of {key!r}, which would run code")
