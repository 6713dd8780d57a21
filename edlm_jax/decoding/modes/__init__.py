"""The modes by name. A new one is a file beside this and a line here."""

import argparse
from dataclasses import Field, fields
from typing import Any

from edlm_jax.decoding.modes.autoregressive import Autoregressive
from edlm_jax.decoding.modes.diffusion import Diffusion
from edlm_jax.decoding.modes.dmax import DMax
from edlm_jax.decoding.modes.edit import Edit
from edlm_jax.decoding.modes.mars import Mars
from edlm_jax.decoding.modes.mode import Mode, read_switch
from edlm_jax.decoding.modes.multi_block import MultiBlock
from edlm_jax.decoding.modes.prompt_lookup import PromptLookup
from edlm_jax.decoding.modes.psd import PSD
from edlm_jax.decoding.modes.quadratic_speculation import QuadraticSpeculation
from edlm_jax.decoding.modes.self_speculation import SelfSpeculation
from edlm_jax.diffusion import Layout
from edlm_jax.errors import InputError
from edlm_jax.models import ModelSpec

_MODES: tuple[type[Mode], ...] = (Diffusion, Autoregressive, SelfSpeculation, QuadraticSpeculation, PromptLookup)
_MODES += (PSD, MultiBlock, Edit, DMax, Mars)
MODES = {mode.name: mode for mode in _MODES}
_WANTED = {int: "a whole number", float: "a number", read_switch: "yes or no"}


def default_mode(spec: ModelSpec) -> Mode:
    """AR where a model was never converted, self-speculation where it only drafts, else what its layout trained."""
    if spec.conversion is None:
        return Autoregressive()
    return trained_mode(spec.conversion.layout)() if spec.diffuses else SelfSpeculation()


def trained_mode(layout: Layout) -> type[Diffusion | Mars]:
    """Diffusion; a model whose blocks are causal inside never learned to read them both ways, MARS is its mode."""
    return Mars if layout.noisy == "causal" else Diffusion


def options_of(name: str) -> dict[str, Field]:
    """A mode's options by their names."""
    if name not in MODES:
        raise InputError(f"mode {name!r} is unknown; choose one of {', '.join(MODES)}")
    return {field.name: field for field in fields(MODES[name])}


def make_mode(name: str, **options: Any) -> Mode:
    """The mode of that name; an option may be a text. InputError names an option that the mode does not have."""
    own = options_of(name)
    for option, value in options.items():
        if option not in own:
            takes = f"its options are {', '.join(own)}" if own else "it has none"
            raise InputError(f"{option}={value} means nothing to {name}; {takes}")
        if isinstance(value, str):
            read = own[option].metadata["read"]
            try:
                options[option] = read(value)
            except InputError:  # a ValueError, too, which says more than the next line would
                raise
            except ValueError:
                raise InputError(f"{option} of {name} must be {_WANTED[read]}, not {value!r}") from None
    return MODES[name](**options)


def parse_mode(text: str) -> Mode:
    """A mode from "name" or "name:option=value,option=value", as `str` writes it: psd:depth=3."""
    return _chosen(*_split(text))


def _split(text: str) -> tuple[str, dict[str, str]]:
    name, _, rest = text.partition(":")
    options = {}
    for part in filter(None, rest.split(",")):
        option, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"mode {text!r}: {part!r} has no value; write {name}:{part}=VALUE")
        options[option] = value
    return name, options


def _chosen(name: str, options: dict[str, str]) -> Mode:
    if {"threshold", "rule"} <= set(options):
        raise InputError("threshold is a rule itself: give it or rule, not both")
    return make_mode(name, **options)


def add_mode_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares --mode and, for each option that some mode has, an argument of its own."""
    names = "{" + ",".join(MODES) + "}"
    own = "diffusion; mars where blocks are causal inside; self_speculation where adapters draft; else ar"
    what = f"or with options, as in psd:depth=3 (default: {own})"
    parser.add_argument("--mode", metavar=names, help=what)
    for option in dict.fromkeys(option for name in MODES for option in options_of(name)):
        takers = [name for name in MODES if option in options_of(name)]
        metadata = options_of(takers[0])[option].metadata
        flags = [f"--{option.replace('_', '-')}", *filter(None, [metadata["flag"]])]
        what = f"{metadata['help']} ({', '.join(takers)})"
        takes: dict[str, Any] = dict(metavar="VALUE")
        if metadata["read"] is read_switch:
            takes = dict(action="store_const", const="yes")
        parser.add_argument(*flags, dest=f"mode_{option}", help=what, **takes)


def mode_of(args: argparse.Namespace, spec: ModelSpec) -> Mode:
    """What `add_mode_arguments` declared, read."""
    given = {name.removeprefix("mode_"): value for name, value in vars(args).items() if name.startswith("mode_")}
    given = {name: value for name, value in given.items() if value is not None}
    name, options = _split(args.mode) if args.mode else (default_mode(spec).name, {})
    return _chosen(name, options | given)
