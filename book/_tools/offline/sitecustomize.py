"""No network beyond this machine, for every Python process that has this folder on PYTHONPATH.

The notebooks of the book run without a network once the environment is installed. The tests hold them
to it: a connection to anything but the loopback address fails here, at once, on every system.
"""

import importlib.machinery
import importlib.util
import os
import socket
import sys

_here = os.path.dirname(os.path.abspath(__file__))


def _is_local(address):
    if not isinstance(address, tuple):
        return True  # a Unix socket's path, or a raw kernel address
    host = address[0]
    if isinstance(host, bytes):
        host = host.decode()
    host = str(host).partition("%")[0]
    return host in ("", "localhost", "::", "::1", "0.0.0.0") or host.startswith(("127.", "::ffff:127."))


def _refuse(address):
    raise OSError(f"the network is off while the book's notebooks run (a connection to {address} was tried)")


class _LocalSocket(socket.socket):
    def connect(self, address):
        if not _is_local(address):
            _refuse(address)
        return super().connect(address)

    def connect_ex(self, address):
        if not _is_local(address):
            _refuse(address)
        return super().connect_ex(address)

    def sendto(self, data, *rest):
        if not _is_local(rest[-1]):
            _refuse(rest[-1])
        return super().sendto(data, *rest)


_getaddrinfo = socket.getaddrinfo


def _local_getaddrinfo(host, *arguments, **keywords):
    name = host.decode() if isinstance(host, bytes) else host
    if name not in (None, socket.gethostname()) and not _is_local((name,)):
        _refuse(name)
    return _getaddrinfo(host, *arguments, **keywords)


socket.socket = _LocalSocket
socket.getaddrinfo = _local_getaddrinfo

# This file hides another sitecustomize (a distribution's, a coverage tool's); let it run as well.
_rest = [entry for entry in sys.path if os.path.abspath(entry or ".") != _here]
_next = importlib.machinery.PathFinder.find_spec("sitecustomize", _rest)
if _next is not None and _next.loader is not None:
    _next.loader.exec_module(importlib.util.module_from_spec(_next))
