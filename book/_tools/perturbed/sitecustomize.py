"""Every matrix product of torch a few units off in its last place, in each Python process with this on PYTHONPATH.

Another processor adds a product's terms in another order, and so rounds otherwise; this stands in for all of them. It
replaces torch's kernels on the CPU, so it reaches whatever ends in one: `@`, einsum, linear layers, recurrent cells,
convolutions, fused attention, their gradients, and compiled code that calls them. Hooks and counters of the program
itself do not see it.

How far an element is moved depends on its value and its place alone. So the same product gives the same numbers, as
on any one processor, and no random state is touched.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import warnings

# Products of 16 bits are added up in 32 and rounded once: another processor seldom gives another number, and then a
# neighbouring one. One element in so many is moved.
SELDOM = 64

# torch's operators that multiply matrices, without those that call another one of them.
OPERATORS = (
    "mm",
    "mm.out",
    "bmm",
    "bmm.out",
    "addmm",
    "addmm.out",
    "addmm_",
    "_addmm_activation",
    "baddbmm",
    "baddbmm.out",
    "baddbmm_",
    "addmv",
    "addmv.out",
    "addmv_",
    "dot",
    "vdot",
    "mkldnn_convolution",
    "_slow_conv2d_forward",
    "mkldnn_rnn_layer",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
)


def disturb(torch):
    """Replace the kernels of the operators by ones that move what the old ones give."""
    size = 1 << 18
    generator = torch.Generator().manual_seed(0)
    salt = torch.randint(-(1 << 62), 1 << 62, (size,), generator=generator)
    # For each kind of bits: what is mixed in at a place, and an odd number near its range over the golden ratio.
    mixing = {
        torch.int64: (salt, -7046029254386353131),
        torch.int32: ((salt >> 20).to(torch.int32), -1640531527),
        torch.int16: ((salt >> 30).to(torch.int16), -25033),
    }
    kinds = {
        torch.float64: torch.int64,
        torch.float32: torch.int32,
        torch.float16: torch.int16,
        torch.bfloat16: torch.int16,
    }

    def move_part(part):
        kind = kinds[part.dtype]
        salt, odd = mixing[kind]
        bits = part.view(kind)
        drawn = bits.mul(odd).bitwise_xor_(salt[: len(bits)]).mul_(odd)
        if kind == torch.int16:
            drawn = (drawn >> 6) & 1023
            one = (drawn < 1024 // SELDOM) * (1 - 2 * (drawn & 1))
            # The neighbouring number has the neighbouring bits; 0 and what is not finite stay.
            stays = (part == 0) | ~torch.isfinite(part)
            bits.add_(one.masked_fill_(stays, 0))
        else:
            # The upper four bits, made odd: from -7 to 7 halves of eps.
            halves = drawn.bitwise_right_shift_(8 * bits.element_size() - 4).bitwise_or_(1)
            moved = torch.addcmul(part, part, halves.to(part.dtype), value=torch.finfo(part.dtype).eps / 2)
            part.copy_(moved.where(part.isfinite(), part))  # a mask's infinity, added up by baddbmm, stays

    def move(result):
        if isinstance(result, (tuple, list)):
            for one in result:
                move(one)
        elif isinstance(result, torch.Tensor) and result.dtype in kinds:
            flat = result.reshape(-1)  # the same memory, where it lies in one piece
            for part in flat.split(size) if len(flat) > size else [flat]:
                move_part(part)
            if not result.is_contiguous():
                result.copy_(flat.view(result.shape))

    library = torch.library.Library("aten", "IMPL")
    for name in OPERATORS:
        kernel = torch.library.get_kernel(f"aten::{name}", "CPU")

        def moved(keys, *arguments, kernel=kernel, **named):
            result = kernel.call_boxed(keys, *arguments, **named)
            move(result)
            return result

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that a kernel is replaced
            library.impl(name, moved, "CPU", with_keyset=True)
    torch._disturbed = library  # the kernels stand as long as somebody holds it


class _WhenTorchComes(importlib.abc.MetaPathFinder):
    """Finds torch as Python would, and disturbs it as soon as it is imported."""

    def find_spec(self, name, path=None, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                disturb(module)

            spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _WhenTorchComes())

# This file hides another sitecustomize, of a folder behind this one; let it run as well.
_here = os.path.dirname(os.path.abspath(__file__))
_places = [os.path.abspath(entry or ".") for entry in sys.path]
_rest = sys.path[_places.index(_here) + 1 :] if _here in _places else []
_next = importlib.machinery.PathFinder.find_spec("sitecustomize", _rest)
if _next is not None and _next.loader is not None:
    _next.loader.exec_module(importlib.util.module_from_spec(_next))
