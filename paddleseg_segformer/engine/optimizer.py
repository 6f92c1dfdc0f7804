"""What the optimizer does to which parameters."""

import math

from ..errors import InputError
from .log import logger


def log_parameter_groups(config, model):
    """Log a line for each of the optimizer's parameter groups: tensors, learning rate, decay.

    Args:
        config: PaddleSeg's ``Config``; its ``optimizer.custom_cfg`` lists groups by a part of the
            parameters' names, of which the first that matches counts.
        model: As built from it.

    Raises:
        InputError: A group matches no parameter that trains.
    """
    groups = config.optimizer_cfg.get("custom_cfg") or []
    names = [name for name, p in model.named_parameters() if not p.stop_gradient]
    members = {index: [] for index in range(len(groups) + 1)}
    for name in names:
        matches = (i for i, group in enumerate(groups) if group["name"] in name)
        members[next(matches, len(groups))].append(name)
    for index, group in enumerate(groups):
        if not members[index]:
            raise InputError(
                f"optimizer.custom_cfg: the group {group['name']!r} matches no parameter; "
                "correct its name or remove it."
            )
    sizes = {name: math.prod(p.shape) for name, p in model.named_parameters()}
    decay = config.optimizer_cfg.get("weight_decay") or 0.0
    for index, group in enumerate([*groups, {"name": "all others"}]):
        logger.info(
            "Parameters %-12s %4d tensors, %6.2f M, lr x %g, decay %g",
            group["name"],
            len(members[index]),
            sum(sizes[name] for name in members[index]) / 1e6,
            group.get("lr_mult", 1.0),
            decay * group.get("weight_decay_mult", 1.0),
        )
