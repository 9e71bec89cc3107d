"""A3PRVR: action-and-object aware alignment for partially relevant video retrieval."""

import os

__version__ = "0.1.0"

# PyTorch's threads (GNU OpenMP) look this often for more work before they sleep; read when torch is imported. By itself
# OpenMP looks for milliseconds, which keeps a core from our own threads and, where programs share few cores, makes each
# several times slower; threads that sleep at once wake late for the many short operations of a step.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "300")
