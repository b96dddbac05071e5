"""What the processes of these tests import, once for all of them: llm_core, with its shapes checked at every call."""

from __future__ import annotations

from shape_checks import check_shapes

check_shapes(["llm_core"])  # before the imports, which it changes


import llm_core.compression.quantize  # noqa: E402
import llm_core.distributed.checkpoint  # noqa: E402
import llm_core.distributed.data_parallel  # noqa: E402
import llm_core.distributed.parallelize  # noqa: E402
import llm_core.distributed.pipeline  # noqa: E402
import llm_core.distributed.sharded  # noqa: E402
import llm_core.distributed.tensor_parallel  # noqa: E402
import llm_core.models.bert  # noqa: E402
import llm_core.models.encoder_decoder  # noqa: E402
import llm_core.models.gpt  # noqa: E402
import llm_core.models.llama  # noqa: E402
import llm_core.training.optimizer  # noqa: E402
import llm_core.training.run  # noqa: E402
import llm_core.training.step  # noqa: E402, F401
