"""A RabbitMQ of its own for tests that kill, freeze and starve it; only where HANDRAIL_TEST_RABBITMQ asks for real servers."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from rabbitmq_support import Bench

#: Read when the module is loaded, for tests run without the environment's own settings.
WANTED = os.environ.get("HANDRAIL_TEST_RABBITMQ", "")
SCRIPT = Path(__file__).parents[4] / "scripts" / "brokers" / "rabbitmq.py"


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Each coroutine test runs on a loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The module scripts/brokers/rabbitmq.py, with a server that belongs to these tests alone."""
    if not WANTED:
        pytest.skip("set HANDRAIL_TEST_RABBITMQ: these tests kill and freeze a RabbitMQ of their own")
    spec = importlib.util.spec_from_file_location("rabbitmq_server", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.FOLDER = tmp_path_factory.mktemp("rabbitmq")
    module.STATE = module.FOLDER / "state.json"
    try:
        module.up()
        yield module
    except module.UnavailableError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    finally:
        module.down()


@pytest.fixture
def bench(server: Any, tmp_path: Path) -> Bench:
    return Bench(server.up(), tmp_path)
