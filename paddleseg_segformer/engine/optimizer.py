"""What the optimizer does to which parameters."""

import math

import paddle

from ..errors import InputError
from ..log import logger

GROUP_KEYS = ("name", "lr_mult", "weight_decay_mult")


def configure_parameters(config, model, freeze_backbone=False):
    """Freeze what is not to train; log the optimizer's groups: tensors, learning rate, decay.

    A frozen parameter has no gradient, so that the optimizer leaves it out.

    Args:
        config: PaddleSeg's ``Config``; its ``optimizer.custom_cfg`` lists groups by a part of the
            parameters' names, of which the first that matches counts.
        model: As built from it.
        freeze_backbone: Whether to freeze the parameters of ``model.backbone``.

    Raises:
        InputError: A group matches no parameter that could train, or has a key that nothing reads;
            or there is no backbone to freeze.
    """
    groups = config.optimizer_cfg.get("custom_cfg") or []
    for group in groups:
        for key in group.keys() - GROUP_KEYS:
            raise InputError(
                f"optimizer.custom_cfg: {key} is no key of a group; known are "
                f"{', '.join(GROUP_KEYS)}."
            )
    members = {index: [] for index in range(len(groups) + 1)}
    for name, parameter in model.named_parameters():
        if not parameter.stop_gradient:
            matches = (i for i, group in enumerate(groups) if group["name"] in name)
            members[next(matches, len(groups))].append(parameter)
    for index, group in enumerate(groups):
        if not members[index]:
            raise InputError(
                f"optimizer.custom_cfg: the group {group['name']!r} matches no parameter; "
                "correct its name or remove it."
            )
    if freeze_backbone:
        _freeze_backbone(config, model)
    decay = config.optimizer_cfg.get("weight_decay") or 0.0
    for index, group in enumerate([*groups, {"name": "all others"}]):
        training = [parameter for parameter in members[index] if not parameter.stop_gradient]
        logger.info(
            "Parameters %-12s %4d tensors, %6.2f M, lr x %g, decay %g",
            group["name"],
            len(training),
            sum(math.prod(parameter.shape) for parameter in training) / 1e6,
            group.get("lr_mult", 1.0),
            decay * group.get("weight_decay_mult", 1.0),
        )


def _freeze_backbone(config, model):
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, paddle.nn.Layer):
        raise InputError(
            f"--freeze_backbone: {type(model).__name__} has no backbone; leave the option out."
        )
    for parameter in backbone.parameters():
        parameter.stop_gradient = True
    frozen = sum(math.prod(parameter.shape) for parameter in backbone.parameters())
    logger.info("Frozen: the backbone, %.2f M", frozen / 1e6)
    options = config.model_cfg
    if not (options.get("pretrained") or options.get("backbone", {}).get("pretrained")):
        logger.warning(
            "--freeze_backbone: neither model.pretrained nor model.backbone.pretrained is set; "
            "unless this run is resumed, the backbone keeps random weights"
        )


def group_learning_rates(config, rate):
    """The learning rate of each parameter group by its name, at a base rate."""
    groups = config.optimizer_cfg.get("custom_cfg") or []
    return {"base": rate, **{g["name"]: rate * g.get("lr_mult", 1.0) for g in groups}}


def gradient_norm(parameters):
    """The Euclidean norm of all parameters' gradients together, a float; NaN or inf if one is."""
    gradients = [parameter.grad for parameter in parameters]
    # One operator a parameter: a GPU waits for the hundreds of them, not for what they do.
    squares = [paddle._C_ops.squared_l2_norm(g) for g in gradients if g is not None]
    return math.sqrt(paddle.add_n(squares).item()) if squares else 0.0
