import sys
from pathlib import Path

# pytest imports tests without touching sys.path (importlib mode); `wrapped` is the helper beside this file.
sys.path.insert(0, str(Path(__file__).parent))
