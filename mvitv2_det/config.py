"""Finding, loading and overriding LazyConfigs."""

import inspect
from collections.abc import Collection
from pathlib import Path

from detectron2.config import LazyConfig
from detectron2.utils.registry import locate
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .errors import UserError
from .suggestions import did_you_mean
from .yaml_config import read_yaml_config

_PACKAGE = Path(__file__).parent


def config_folder() -> Path:
    """Returns the folder of the configs: inside an installed package, beside it in a checkout."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def config_files() -> dict[str, Path]:
    """Lists the files of all configs that can be trained, by name, as ``mask_rcnn_mvitv2_t_3x``."""
    common = config_folder() / "common"
    files = sorted(config_folder().rglob("*.py"))
    return {file.stem: file for file in files if common not in file.parents}


def get_config(name: str) -> DictConfig:
    """Loads a config of this project by its name.

    Args:
        name: file name without ``.py``, such as ``cascade_mask_rcnn_mvitv2_b_3x``.

    Raises:
        UserError: there is no config of this name; the message suggests a similar name.
    """
    files = config_files()
    if name not in files:
        raise UserError(f"there is no config {name!r}{did_you_mean(name, files)}")
    return load_config(str(files[name]))


def load_config(file: str, trust: Collection[str] = ()) -> DictConfig:
    """Loads a LazyConfig from a ``.py`` file, or from a ``.yaml`` file that a run has saved.

    A ``.py`` file is a program, which is run. A YAML file is data, of which nothing is run, and it
    may only name what :mod:`mvitv2_det.allowed_names` knows.

    Args:
        file: its path.
        trust: further functions and classes that a YAML file may name.

    Raises:
        UserError: the file is missing, is not a config, or names what it may not.
    """
    if not Path(file).is_file():
        raise UserError(f"there is no config file {file!r}")
    if Path(file).suffix not in (".py", ".yaml", ".yml"):
        raise UserError(f"config file {file!r} must end in .py, .yaml or .yml")
    if Path(file).suffix != ".py":
        return read_yaml_config(str(file), trust)
    try:
        return LazyConfig.load(str(file))
    except SyntaxError as error:
        raise UserError(f"config file {file!r} is no Python: {error}") from error
    except ImportError as error:
        raise UserError(f"config file {file!r} cannot be loaded: {error}") from error


def apply_overrides(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """Applies ``key=value`` overrides in place, in Hydra's syntax.

    A key must exist in the config, or be an argument of the function or class that the config
    calls there (``model.backbone.bottom_up.use_act_checkpoint=true``). ``+key=value`` adds any
    other key.

    Returns:
        ``cfg``.

    Raises:
        UserError: an override is malformed, its key does not exist, or its value is of another
            kind than the number or truth value that it replaces.
    """
    for text in overrides:
        _check_override(cfg, text)
        try:
            LazyConfig.apply_overrides(cfg, [text])
        except (OmegaConfBaseException, KeyError) as error:
            raise UserError(f"override {text!r} does not fit the config: {error}") from error
    return cfg


def _check_override(cfg: DictConfig, text: str) -> None:
    try:
        (override,) = OverridesParser.create().parse_overrides([text])
    except HydraException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"override {text!r} is not of the form key=value: {reason}") from error
    if override.is_delete():
        raise UserError(f"override {text!r} deletes a key; set it to null instead")
    if override.is_add():
        return
    key = override.key_or_group
    parent_key, _, leaf = key.rpartition(".")
    parent = OmegaConf.select(cfg, parent_key) if parent_key else cfg
    if isinstance(parent, ListConfig) and leaf.isdigit() and int(leaf) < len(parent):
        _check_kind(text, parent[int(leaf)], override.value())
    elif isinstance(parent, DictConfig) and leaf in parent:
        _check_kind(text, parent[leaf], override.value())
    elif not (isinstance(parent, DictConfig) and leaf in _arguments(parent)):
        raise UserError(
            f"override {text!r} names no key of the config{did_you_mean(key, _keys(cfg))}; "
            f"+{text} would add it"
        )


def _check_kind(text: str, old: object, new: object) -> None:
    """Checks that a number is replaced by a number, and a truth value by a truth value."""
    if not isinstance(old, (bool, int, float)) or not isinstance(new, (bool, int, float, str)):
        return
    is_boolean = isinstance(old, bool)
    if isinstance(new, str) or isinstance(new, bool) != is_boolean:
        expected = "true or false" if is_boolean else "a number"
        raise UserError(f"override {text!r}: expected {expected}, such as {old}")


def _arguments(call: DictConfig) -> set[str]:
    """Returns the argument names of the function or class that a LazyCall calls."""
    if "_target_" not in call:
        return set()
    target = locate(call._target_) if isinstance(call._target_, str) else call._target_
    return set(inspect.signature(target).parameters)


def _keys(node: DictConfig | ListConfig, prefix: str = "") -> list[str]:
    """Lists all keys of a config, with dots between their levels."""
    names = range(len(node)) if isinstance(node, ListConfig) else list(node)
    keys = []
    for name in names:
        keys.append(f"{prefix}{name}")
        child = node._get_node(name)
        if not isinstance(child, DictConfig | ListConfig):
            continue
        if not child._is_none() and not child._is_interpolation():
            keys += _keys(child, f"{prefix}{name}.")
    return keys
