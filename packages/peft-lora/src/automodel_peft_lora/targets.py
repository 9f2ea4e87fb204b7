"""Which modules of a model get an adapter: names, wildcards and regular expressions, each checked by itself."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from automodel import InputError
from automodel.notices import notice
from automodel.suggest import did_you_mean
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

ALL_LINEAR = "all-linear"

_LINEAR = (nn.Linear, Conv1D)
_SUPPORTED = (*_LINEAR, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_ONLY_IN_REGEX = re.compile(r"[\\()|\[\]^$+{}]|^\.\*")
_LAYER = re.compile(r"\.(\d+)\.")


def choose_modules(
    module: nn.Module, targets: Sequence[str], exclude: Sequence[str] = (), layers: Collection[int] | None = None
) -> list[str]:
    """The names of the modules that get an adapter, in the order of the model.

    Args:
        module: the model, without adapters.
        targets: `all-linear`, or names, wildcards and regular expressions (see `matches`).
        exclude: the same, for modules that get none.
        layers: only modules in layers of these numbers.

    Raises:
        InputError: an entry matches nothing, or a module that no adapter can be put on; or nothing is left.
    """
    modules = dict(module.named_modules())
    linear = linear_modules(module)
    chosen: set[str] = set()
    for target in targets:
        chosen.update(_all_linear(module, linear) if target.lower() == ALL_LINEAR else _find(target, modules, linear))
    for pattern in exclude:
        excluded = [name for name in modules if matches(pattern, name)]
        if not excluded:
            notice(f"exclude_modules: `{pattern}` matches no module of this model")
        chosen.difference_update(excluded)
    if layers is not None:
        chosen = _in_layers(chosen, layers)
    if not chosen:
        raise InputError(f"nothing is left of target_modules after exclude_modules; {_what_there_is(linear)}")
    return [name for name in modules if name in chosen]


def shortest(chosen: Collection[str], names: Iterable[str]) -> list[str]:
    """The last parts of the chosen names (`q_proj`) where they mean exactly these modules, else the full names."""
    last_parts = {name.rpartition(".")[2] for name in chosen}
    if all(name in chosen for name in names if name.rpartition(".")[2] in last_parts):
        return sorted(last_parts)
    return sorted(chosen)


def linear_modules(module: nn.Module) -> dict[str, nn.Module]:
    """The linear modules by name, quantised ones too."""
    attention = tuple(f"{name}." for name, one in module.named_modules() if isinstance(one, nn.MultiheadAttention))
    return {  # torch's MultiheadAttention reads its projections' weights and never calls them
        name: one
        for name, one in module.named_modules()
        if name and isinstance(one, _LINEAR) and not (attention and name.startswith(attention))
    }


def matches(pattern: str, name: str) -> bool:
    """Whether an entry of `target_modules` means the module of this full name.

    An entry with characters that no module name has, or that begins with `.*`, is a regular expression for the full
    name, as in peft. Else `*` stands for any characters; and the entry means the full name or its end, from a dot on.
    """
    if _ONLY_IN_REGEX.search(pattern):
        try:
            return re.fullmatch(pattern, name) is not None
        except re.error as error:
            raise InputError(f"`{pattern}` is no regular expression: {error}") from error
    wildcard = ".*".join(map(re.escape, pattern.split("*")))
    return re.fullmatch(rf"(?:.*\.)?{wildcard}", name) is not None


def check_modules_to_save(module: nn.Module, names: Sequence[str]) -> None:
    """Check that each entry names a module.

    Raises:
        InputError: one does not.
    """
    ends = {name.rpartition(".")[2]: name for name, _ in module.named_modules() if name}
    for name in names:
        if not any(full == name or full.endswith(f".{name}") for full, _ in module.named_modules()):
            known = [end for end in ends if not end.isdigit()]
            raise InputError(f"modules_to_save: no module is called `{name}`{did_you_mean(name, known)}")


def _all_linear(module: nn.Module, linear: Mapping[str, nn.Module]) -> list[str]:
    """Every linear module but the one that makes the logits."""
    head = module.get_output_embeddings() if isinstance(module, PreTrainedModel) else None
    names = [name for name, one in linear.items() if one is not head]
    if not names:
        raise InputError("target_modules: this model has no linear module that an adapter could be put on")
    return names


def _find(target: str, modules: Mapping[str, nn.Module], linear: Mapping[str, nn.Module]) -> list[str]:
    """The modules that an entry means; a pattern means linear modules only, a name may mean others."""
    is_name = "*" not in target and not _ONLY_IN_REGEX.search(target)
    found = [name for name in modules if name and matches(target, name)]
    usable = [name for name in found if name in linear or (is_name and isinstance(modules[name], _SUPPORTED))]
    if is_name and len(usable) < len(found):
        other = next(name for name in found if name not in usable)
        raise InputError(
            f"target_modules: `{target}` means {other}, a {type(modules[other]).__name__}, and LoRA cannot be put on "
            f"that; {_what_there_is(linear)}"
        )
    if not usable and "*" in target and not _ONLY_IN_REGEX.search(target):
        loose = ".*".join(part.replace(".", "\0") for part in target.split("*")).replace("\0", ".")
        if usable := [name for name in linear if re.fullmatch(loose, name)]:
            groups = ", ".join(sorted({name.rpartition(".")[2] for name in usable}))
            notice(
                f"target_modules: `{target}` matches nothing as it stands; read as in NeMo, where a dot is any "
                f"character, it means {groups}"
            )
    if not usable:
        ends = {name.rpartition(".")[2] for name in linear}
        suggestion = did_you_mean(target.strip("*."), ends) if is_name or "*" in target else ""
        suggestion = suggestion if "did you mean" in suggestion else ""
        raise InputError(f"target_modules: `{target}` matches no linear module{suggestion}; {_what_there_is(linear)}")
    return usable


def _in_layers(names: Iterable[str], layers: Collection[int]) -> set[str]:
    number = {name: int(match[1]) for name in names if (match := _LAYER.search(name))}
    if missing := sorted(set(layers) - set(number.values())):
        there = sorted(set(number.values()))
        span = f"layers {there[0]} to {there[-1]}" if there else "no numbered layers"
        raise InputError(f"layers_to_transform: there is no layer {missing[0]}; the chosen modules lie in {span}")
    return {name for name, layer in number.items() if layer in layers}


def _what_there_is(linear: Iterable[str], most: int = 20) -> str:
    groups = Counter(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in linear)
    listed = [f"{name} x {count}" if count > 1 else name for name, count in groups.items()]
    more = f", and {len(listed) - most} more kinds" if len(listed) > most else ""
    return f"the linear modules are {', '.join(listed[:most])}{more}" if listed else "it has no linear modules"
