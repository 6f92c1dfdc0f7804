"""Parameter groups, freezing and the gradient norm."""

import paddle

from ..errors import InputError
from ..log import logger

GROUP_KEYS = ("name", "lr_mult", "weight_decay_mult")


def configure_parameters(config, model, freeze_backbone=False):
    """Check and log the optimizer's parameter groups; freeze the backbone if requested.

    A frozen parameter has no gradient, so the optimizer skips it.

    Args:
        config: PaddleSeg's ``Config``. A parameter belongs to the first group in its
            ``optimizer.custom_cfg`` whose ``name`` is a substring of the parameter's name.
        model: The model built from it.
        freeze_backbone: Whether to freeze the parameters of ``model.backbone``.

    Raises:
        InputError: A group matches no trainable parameter or has an unknown key, or there is no
            backbone to freeze.
    """
    groups = config.optimizer_cfg.get("custom_cfg") or []
    for group in groups:
        for key in group.keys() - GROUP_KEYS:
            raise InputError(
                f"optimizer.custom_cfg: {key} is no key of a group; use {', '.join(GROUP_KEYS)}."
            )
    groups = [*groups, {"name": ""}]  # the last one matches every name
    members = [[] for _ in groups]
    for name, parameter in model.named_parameters():
        if not parameter.stop_gradient:
            index = next(i for i, group in enumerate(groups) if group["name"] in name)
            members[index].append(parameter)
    for group, parameters in zip(groups[:-1], members):
        if not parameters:
            raise InputError(
                f"optimizer.custom_cfg: the group {group['name']!r} matches no parameter; "
                "correct its name or remove it."
            )
    if freeze_backbone:
        _freeze_backbone(config, model)
    decay = config.optimizer_cfg.get("weight_decay") or 0.0
    for group, parameters in zip(groups, members):
        trainable = [parameter for parameter in parameters if not parameter.stop_gradient]
        millions = sum(parameter.size for parameter in trainable) / 1e6
        logger.info(
            f"Parameters {group['name'] or 'all others':12} {len(trainable):4} tensors, "
            f"{millions:6.2f} M, lr x {group.get('lr_mult', 1.0):g}, "
            f"decay {decay * group.get('weight_decay_mult', 1.0):g}"
        )


def _freeze_backbone(config, model):
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, paddle.nn.Layer):
        raise InputError(
            f"--freeze_backbone: {type(model).__name__} has no backbone; leave the option out."
        )
    for parameter in backbone.parameters():
        parameter.stop_gradient = True
    frozen = sum(parameter.size for parameter in backbone.parameters())
    logger.info("Frozen: the backbone, %.2f M parameters", frozen / 1e6)
    options = config.model_cfg
    if not (options.get("pretrained") or options.get("backbone", {}).get("pretrained")):
        logger.warning(
            "--freeze_backbone: neither model.pretrained nor model.backbone.pretrained is set; "
            "unless this run is resumed, the backbone keeps random weights"
        )


def group_learning_rates(config, rate):
    """The learning rate of each parameter group by name, and the ``base`` rate."""
    groups = config.optimizer_cfg.get("custom_cfg") or []
    return {"base": rate, **{g["name"]: rate * g.get("lr_mult", 1.0) for g in groups}}


def gradient_norm(parameters):
    """The global L2 norm of the gradients, a scalar tensor; NaN or inf if a gradient has one."""
    gradients = [parameter.grad for parameter in parameters]
    gradients = [gradient for gradient in gradients if gradient is not None]
    if not gradients:
        return paddle.zeros([])
    if not gradients[0].place.is_cpu_place():
        # Copying all gradients takes less time than launching several hundred kernels.
        gradients = [paddle.concat([gradient.flatten() for gradient in gradients])]
    squares = [paddle._C_ops.squared_l2_norm(gradient) for gradient in gradients]
    return paddle.add_n(squares).sqrt()
