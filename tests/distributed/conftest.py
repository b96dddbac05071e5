"""Makes `processes`, with which tests start several processes, importable: `from processes import on, run_checks`.

The processes are forked from one that has imported `preloaded`: they are as separate as any, and there at once.
"""

from __future__ import annotations

import sys
from pathlib import Path

from llm_core.distributed import launch

sys.path.insert(0, str(Path(__file__).parent))
launch.PRELOAD.append("preloaded")
