"""Programmatic dependent launch: a kernel starts while the one before it still runs, and waits where it must.

``release`` lets the next kernel start; ``depend`` waits until every kernel before this one has finished and its
writes are visible. A kernel calls both exactly once, ``depend`` before it reads or writes anything that is not
constant: so a chain of such kernels is ordered as if nothing overlapped. (CUDA programming guide, "Programmatic
Dependent Launch and Synchronization".)
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def release(PDL: tl.constexpr):
    if PDL:
        gdc_launch_dependents()


@triton.jit
def depend(PDL: tl.constexpr):
    if PDL:
        gdc_wait()


def with_pdl(pdl: bool) -> dict[str, Any]:
    """Launch options of a kernel that takes part."""
    return {"launch_pdl": True} if pdl else {}
