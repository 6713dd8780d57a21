"""Config files: find one, load it, apply the overrides of the command line, say in one line what is wrong with them."""

import difflib
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edlm_jax.errors import InputError


def recorded_configs() -> dict[str, Path]:
    """name -> file of the configs that come along: a checkout's configs/, or the wheel's copy of it."""
    package = Path(__file__).parents[1]
    folder = next(f for f in (package / "configs", package.parent / "configs") if f.is_dir())
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in sorted(folder.rglob("*.py"))}


def load_config(path: str, overrides: Sequence[str] = ()):
    """The locked ConfigDict of NAME, FILE or either with :ARGUMENT, with each override, --config.a.b=value, applied."""
    file, _, argument = path.partition(":")
    return _apply(_read(file, *filter(None, [argument]))[1], overrides)


def load_run(path: str, overrides: Sequence[str] = ()):
    """The `Run` of a config."""
    from edlm_jax.training.run import Run

    return Run.of(load_config(path, overrides))


def load_study(path: str, overrides: Sequence[str] = ()):
    """(name, docstring, locked ConfigDict, sweep) of a study; its sweep(add) calls add(arm, changes) for each arm."""
    namespace, config = _read(path)
    if "sweep" not in namespace:
        raise InputError(f"{path} is not a study: it has no sweep(add), see configs/studies/")
    return Path(path).stem, namespace["__doc__"] or "", _apply(config, overrides), namespace["sweep"]


def _read(path: str, *arguments: str) -> tuple[dict[str, Any], Any]:
    """(what a config file defines, what its get_config() returns)."""
    file = Path(path) if Path(path).is_file() else recorded_configs().get(path)
    if file is None:
        raise InputError(f"no config {path}: it is neither a file nor one of {', '.join(recorded_configs())}")
    try:
        namespace = runpy.run_path(str(file))
        if "get_config" not in namespace:
            raise NameError("it has no get_config()")
        return namespace, namespace["get_config"](*arguments)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"config file {path} does not load: {reason}") from error


def _apply(config, overrides: Sequence[str]):
    from absl import flags
    from ml_collections import config_flags

    argv = ["edlm", *(override for override in overrides if not _set_none(config, override))]
    values = flags.FlagValues()  # our own: the process-wide one belongs to whoever calls us
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
    except (flags.Error, IndexError) as error:  # the latter: of a tuple only the whole can be set
        raise InputError(" ".join(str(error).removeprefix("flag --").split())) from error
    return values.config


def _set_none(config, override: str) -> bool:
    """Sets a number to None, as config_flags cannot, if that is asked for; refuses a field that the config does not
    have, naming the nearest one."""
    from flax.traverse_util import flatten_dict
    from ml_collections import config_dict
    from ml_collections.config_flags import config_path

    name, equals, value = override.removeprefix("--config.").partition("=")
    if not equals:
        raise InputError(f"{override} has no value: write {override}=VALUE")
    try:
        field_type = config_path.get_type(name, config)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        near = difflib.get_close_matches(name, flatten_dict(config.to_dict(), sep="."), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"unknown config key {name}{hint}") from None
    if (field_type, value) != (float, "None"):
        return False
    config_path.set_value(name, config, config_dict.placeholder(float))  # `Run.of` knows which of them may be None
    return True
