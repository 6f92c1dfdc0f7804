"""Parameter groups, freezing, the gradient norm, and AdamW in few kernel calls."""

import collections
from functools import lru_cache

import numpy as np
import paddle

from ..errors import InputError, one_line
from ..log import logger

GROUP_KEYS = ("name", "lr_mult", "weight_decay_mult")

# Names of AdamW's state in Paddle, and of values per block of its multi-tensor kernel.
STATE = ("moment1", "moment2", "beta1_pow_acc", "beta2_pow_acc")
CHUNK_SIZE = 1 << 16


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
        flat = [gradient if gradient.ndim == 1 else gradient.flatten() for gradient in gradients]
        gradients = [paddle.concat(flat)]
    squares = [paddle._C_ops.squared_l2_norm(gradient) for gradient in gradients]
    return paddle.add_n(squares).sqrt()


def fuse_updates(optimizer, parameters):
    """Make Paddle's ``AdamW`` on a GPU the one below; other optimizers stay as they are."""
    special = "_lr_ratio", "_apply_decay_param_fun", "_amsgrad"  # options that have no kernel
    if type(optimizer) is paddle.optimizer.AdamW:
        trainable = [p for p in parameters if not p.stop_gradient]
        fits = all(p.dtype == paddle.float32 and not p.place.is_cpu_place() for p in trainable)
        if fits and not any(getattr(optimizer, name, None) for name in special) and _can_fuse():
            optimizer.__class__ = AdamW


class AdamW(paddle.optimizer.AdamW):
    """AdamW that updates all parameters with the same options in one kernel call.

    The state is that of Paddle's class, and so are the results, to rounding; on a CPU exactly. It
    has that class's name, which checkpoints record.
    """

    _members = None  # parameters and options for which _groups was made

    def step(self):
        self._updates = []
        super().step()  # calls _append_optimize_op
        updates = self._updates
        del self._updates  # the gradients need not outlive this step
        members = [(id(parameter), options) for parameter, _, options in updates]
        if members != self._members:
            self._members, self._groups = members, self._make_groups(updates)
        for indices, state, (beta1, beta2, epsilon, decay) in self._groups:
            parameters, gradients = zip(*(updates[i][:2] for i in indices))
            moments, powers = state[:2], state[2:]
            rate = self._create_param_lr((parameters[0], None))
            amsgrad = hasattr(self, "_amsgrad")  # has more arguments since Paddle 3
            with paddle.no_grad():
                paddle._C_ops.fused_adam_(
                    *(parameters, gradients, rate, *moments, *([None] if amsgrad else []), *powers),
                    *(None, None, beta1, beta2, epsilon, CHUNK_SIZE, decay, True, False, False),
                    *([False] if amsgrad else []),
                )

    def _append_optimize_op(self, block, param_and_grad):
        if isinstance(param_and_grad, dict):  # of a group, whose options this call sets
            param_and_grad = self._update_param_group(param_and_grad)
        options = self._beta1, self._beta2, self._epsilon, self._weight_decay
        self._updates.append((*param_and_grad, options))

    def set_state_dict(self, state_dict):
        self._members = None
        super().set_state_dict(state_dict)

    load_state_dict = set_state_dict

    def _make_groups(self, updates):
        groups = collections.defaultdict(list)
        for i, (parameter, _, options) in enumerate(updates):
            state = [self._get_accumulator_master(name, parameter) for name in STATE]
            # The kernel takes the number of updates so far, as powers of the betas, from a group's
            # first parameter; a parameter that had no gradient in a step has had fewer.
            powers = [(power.item(), power.place.is_cpu_place()) for power in state[2:]]
            rate = parameter.optimize_attr["learning_rate"]
            groups[rate, options, tuple(powers)].append((i, state))
        result = []
        for (_, options, _), members in groups.items():
            indices, states = zip(*members)
            result.append((indices, [list(tensors) for tensors in zip(*states)], options))
        return result


@lru_cache(maxsize=1)
def _can_fuse():
    """Whether this version of Paddle, on this device, updates as ``AdamW`` does when fused."""
    rng, results = np.random.default_rng(0), []
    arrays = [rng.standard_normal([2, size]).astype("float32") for size in (3, CHUNK_SIZE + 1)]
    for kind in paddle.optimizer.AdamW, AdamW:
        ones = paddle.nn.initializer.Constant(1.0)
        parameters = [
            paddle.create_parameter([array.shape[1]], "float32", default_initializer=ones)
            for array in arrays
        ]
        optimizer = kind(0.1, parameters=parameters, weight_decay=0.1)
        try:
            for gradient in (1, 0, 1):
                for parameter, array in zip(parameters, arrays):
                    parameter.grad = paddle.to_tensor(array[gradient])
                optimizer.step()
        except Exception as error:
            logger.info(f"AdamW updates each parameter by itself: {one_line(error)}")
            return False
        results.append(np.concatenate([parameter.numpy() for parameter in parameters]))
    return np.allclose(*results, rtol=0, atol=1e-5)
