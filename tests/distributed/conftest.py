"""Makes `processes`, with which tests start several processes, importable: `from processes import on, run_checks`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
