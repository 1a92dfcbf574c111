"""What of torch is used that is not public, so that torch may change it without a word.

All of it is looked for when the core is loaded: a torch that lacks something is refused then, by
name, and not by an AttributeError in the midst of a backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch

#: The oldest and the newest torch that the tests were run with.
TESTED = ("2.10.0", "2.14.1")

#: Names within torch.
NAMES = (
    "Tensor.__dlpack_c_exchange_api__",  # how the core reads and makes tensors; new in 2.10
    "Tensor._backward_hooks",
    "Tensor._is_zerotensor",
    "Tensor._version",
    "_C._AutoDispatchBelowAutograd",
    "_C._FunctionBase._register_hook_dict",
    "_C._FunctionBase._set_sequence_nr",
    "_C._are_functorch_transforms_active",
    "_C._current_graph_task_id",
    "_C._functorch.TransformType.Functionalize",
    "_C._functorch.TransformType.Jvp",
    "_C._functorch.TransformType.Vmap",
    "_C._functorch.get_interpreter_stack",
    "_C._functorch.is_dead_tensor_wrapper",
    "_C._functorch.is_legacy_batchedtensor",
    "_C._is_any_autocast_enabled",
    "_C._len_torch_dispatch_stack",
    "_C._vmapmode_decrement_nesting",
    "_C._vmapmode_increment_nesting",
    "_C._will_engine_execute_node",
    "_VF._unpack_dual",
    "_add_batch_dim",
    "_foreach_copy_",
    "_functorch.utils.enable_single_level_autograd_function",
    "_remove_batch_dim",
    "autograd.Function._backward_cls",
    "autograd.Variable._execution_engine.queue_callback",
    "autograd.forward_ad._current_level",
    "autograd.forward_ad._set_fwd_grad_enabled",
)


def require(names: Sequence[str] = NAMES) -> None:
    """Refuse a torch that lacks one of the names.

    Raises:
        ImportError: which names, and which torch has them.
    """
    missing = [name for name in names if not _has(name)]
    if missing:
        oldest, newest = TESTED
        raise ImportError(
            f"gatewise: expected torch {oldest} to {newest}, or one like them, got torch "
            f"{torch.__version__}, which has no torch.{', torch.'.join(missing)}; "
            f"pip install 'torch>={oldest},<={newest}'"
        )


def _has(name: str) -> bool:
    try:
        reduce(getattr, name.split("."), torch)
    except AttributeError:
        return False
    return True
