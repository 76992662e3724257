"""How the targets of a simulation overlap drafting and verifying: as configured, or as its options say."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Mapping

from deployments.config import TargetConfig
from deployments.config_speculation import Mirror
from protocol.errors import ConfigError
from router.modes import Mode
from router.simulate import Overlap
from router.simulate_ahead import Choices
from router.simulate_mirror import MirrorRules

ALL = "all"
CHOSEN = "chosen"  # between those that the target may play
MODES = (*(mode.value for mode in Mode), CHOSEN)


def modes(text: str) -> Mapping[str, str]:
    """As lanes or large:mirror,small:serial; ALL stands for every target."""
    pairs = [part.rpartition(":") for part in text.split(",")]
    found = {name if colon else ALL: mode for name, colon, mode in pairs}
    if unknown := sorted(set(found.values()) - set(MODES)):
        raise ArgumentTypeError(f"{unknown[0]!r} is no mode; there are {', '.join(MODES)}")
    if len(found) < len(pairs) or (ALL in found and len(found) > 1):
        raise ArgumentTypeError(f"{text!r} is neither one mode nor NAME:MODE,... with every name once")
    return found


def choices(text: str) -> Choices:
    """As 0.5,0.3,0.1: what the drafter's second choice corrects, and then the target's first early pick, ..."""
    try:
        second, *early = map(float, text.split(","))
        return Choices(second, tuple(early))
    except (ValueError, ConfigError):
        raise ArgumentTypeError(f"{text!r} is not shares between 0 and 1, as 0.5,0.3,0.1") from None


def check(asked: Mapping[str, str] | None, names: list[str]) -> None:
    """Raises ConfigError for a target that there is not."""
    if unknown := sorted(set(asked or ()) - {ALL, *names}):
        raise ConfigError(f"--mode names {unknown[0]!r}; the targets are {', '.join(names)}")


def overlap_of(target: TargetConfig, asked: Mapping[str, str] | None, choices: Choices) -> Overlap:
    """Raises ConfigError for a mode that the target cannot have."""
    mirror = target.speculation.mirror if target.speculation else None
    mode = (asked or {}).get(target.name, (asked or {}).get(ALL, CHOSEN if mirror else Mode.SERIAL))
    if mode == Mode.SERIAL:
        return None
    if target.speculation is None:
        if target.name in (asked or {}):
            raise ConfigError(f"--mode: target {target.name} does not speculate, so it overlaps nothing; leave it out")
        return None
    played = (mirror or Mirror()).modes if mode == CHOSEN else (Mode(mode),)
    fan_out, kappa = (mirror.fan_out, mirror.kappa) if mirror else (MirrorRules().fan_out, MirrorRules().kappa)
    return MirrorRules(fan_out, kappa, played, choices)
