"""Serve a model until the process is told to stop."""

from __future__ import annotations

import ipaddress
import logging
from contextlib import suppress

import uvicorn

from llm_core.serving.app import Service, application

log = logging.getLogger(__name__)


class AddressTaken(OSError):
    """Another program listens there already, or the system does not allow it."""


def serve(service: Service, *, host: str = "127.0.0.1", port: int = 8000, patience: float = 5.0) -> None:
    """Answer requests until SIGINT or SIGTERM comes; what is being written then has `patience` seconds to end.

    Raises:
        AddressTaken: nothing can listen at this address.
    """
    config = uvicorn.Config(
        application(service), host=host, port=port, log_level="info", timeout_graceful_shutdown=max(1, int(patience))
    )
    try:
        listening = config.bind_socket()
    except SystemExit:  # how uvicorn says that the address is taken; it has logged why
        service.engine.close()
        raise AddressTaken(f"nothing can listen at {host}:{port}: give another --port") from None
    if not _is_local(host):
        log.warning("%s can be reached from other machines, and nobody is asked who they are", host)
    try:
        with listening, suppress(KeyboardInterrupt):  # uvicorn raises it again after it has stopped
            uvicorn.Server(config).run(sockets=[listening])
    finally:
        service.engine.close()  # a second Ctrl-C leaves out the application's own end


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
