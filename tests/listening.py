"""Where processes listen."""

from __future__ import annotations

import ipaddress

import psutil


def listening(pid: int) -> set[str]:
    """Return `ADDRESS:PORT` of all that a process and its children listen at."""
    parent = psutil.Process(pid)
    connections = [
        connection
        for process in (parent, *parent.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN or not connection.raddr
    ]
    return {f"{connection.laddr.ip}:{connection.laddr.port}" for connection in connections if connection.laddr}


def beyond_loopback(pid: int) -> list[str]:
    """Return what of it other machines can reach."""
    return [address for address in listening(pid) if not _is_loopback(address.rpartition(":")[0])]


def _is_loopback(ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
