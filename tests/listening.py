"""Where processes listen."""

from __future__ import annotations

import ipaddress

import psutil


def beyond_loopback(pid: int) -> list[str]:
    """Return `PROGRAM ADDRESS:PORT` of what a process and its children listen at for other machines."""
    parent = psutil.Process(pid)
    return [
        f"{process.name()} {connection.laddr.ip}:{connection.laddr.port}"
        for process in (parent, *parent.children(recursive=True))
        for connection in process.net_connections("inet")
        if (connection.status == psutil.CONN_LISTEN or not connection.raddr) and not is_loopback(connection.laddr.ip)
    ]


def is_loopback(ip: str) -> bool:
    """Return whether an address is this machine's own."""
    address = ipaddress.ip_address(ip)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
