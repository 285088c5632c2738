"""The program `sjc`, whose runs take no engine: made-up files and numbers, real documents."""

from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

from flows.prefect_server import environment

environment.apply(console_level="CRITICAL")  # before Prefect is imported

from stub_shard import no_devices, stub_pipeline  # noqa: E402

import flows.context  # noqa: E402
import flows.generate  # noqa: E402
from flows.commands.main import main  # noqa: E402

stubs: dict[str, Any] = {
    "run_context": no_devices,
    "run_pipeline": stub_pipeline,
}
with (
    patch.multiple(flows.generate, **stubs),
    patch.object(flows.context, "start_devices", lambda *_, **__: nullcontext()),
):
    main()
