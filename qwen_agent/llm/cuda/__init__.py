"""The model on a CUDA device at the speed of its memory: fused kernels, replayed as CUDA graphs.

``CudaModel`` has the calls of ``llm.model.Model`` that a runtime needs and gives the same results; ``Model`` stays
the readable truth it is tested against. Nothing here is imported before there is a CUDA device.
"""

from qwen_agent.llm.cuda.choice import Choice
from qwen_agent.llm.cuda.model import CudaModel

__all__ = ["Choice", "CudaModel"]
