"""pytest with nbval, told what not to compare: notebook_runs.py starts it for one notebook.

The numbers of an interactive figure are not compared: rounded to their last digit, they may differ on another
processor. The figure's fingerprint is, beside them in the same output.
"""

import sys
from typing import Any

import pytest

# As in llm_core/figures/captioned.py.
UNCOMPARED = ("application/vnd.llm-core.interactive+json",)


class LessToCompare:
    """nbval asks each notebook for the types that it skips, and each cell for its options."""

    def pytest_addoption(self, parser: pytest.Parser) -> None:
        """Cells of one more tag whose output is not compared."""
        parser.addoption("--leave-out-tag", default=None)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[Any]) -> None:
        """Take the output of the cells with that tag as it is."""
        for item in items:
            if config.option.leave_out_tag in item.cell.metadata.get("tags", []):
                item.options["check"] = False

    def pytest_collectstart(self, collector: Any) -> None:
        """Add ours to its own."""
        if hasattr(collector, "skip_compare"):
            collector.skip_compare += UNCOMPARED


if __name__ == "__main__":
    # What checks international addresses for jsonschema compiles its grammar for two seconds; no notebook needs it.
    sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
    del sys.path[0]  # this folder: a notebook's own imports and pytest's have no business here
    sys.exit(pytest.main(sys.argv[1:], plugins=[LessToCompare()]))
