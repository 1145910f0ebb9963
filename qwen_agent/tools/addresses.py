"""Which network addresses a program may connect to when a stranger chose the name.

`ipaddress.is_global` is not enough: it lets through addresses that carry a private one inside (NAT64, 6to4), multicast,
and the metadata services of clouds; and it differs between versions of Python. So the networks are listed.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket

# What is not public, the narrower before the wider; _PRIVATE is what a user may mean.
_REFUSED = {
    "a cloud metadata service": "169.254.169.254/32 169.254.170.2/32 168.63.129.16/32 100.100.100.200/32 "
    "fd00:ec2::254/128 fd20:ce::254/128",
    "unspecified": "0.0.0.0/8 ::/128",
    "link-local": "169.254.0.0/16 fe80::/10",
    "multicast": "224.0.0.0/4 ff00::/8",
    "an IPv4 address in IPv6": "::ffff:0:0/96",
    "NAT64": "64:ff9b::/96 64:ff9b:1::/48",
    "6to4": "2002::/16 192.88.99.0/24",
    "Teredo": "2001::/32",
    "site-local": "fec0::/10",
    "reserved": "192.0.0.0/24 192.0.2.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 240.0.0.0/4 2001::/23 "
    "2001:db8::/32 3fff::/20",
}
_PRIVATE = {
    "loopback": "127.0.0.0/8 ::1/128",
    "private": "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7",
    "shared by a carrier": "100.64.0.0/10",
}
_GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")


def refusal(address: str, allow_private: bool = False) -> str:
    """Why nothing may connect to an address, as what it is ("loopback"); nothing for a public one."""
    found = ipaddress.ip_address(address)
    for word, network in _NETWORKS:
        if found.version == network.version and found in network:
            return "" if allow_private and word in _PRIVATE else word
    return "" if found.version == 4 or found in _GLOBAL_IPV6 else "reserved"


def written_out(host: str) -> str:
    """The address that a host is spelled as, in any of the ways systems read; nothing for a name."""
    if host == "localhost" or host.endswith(".localhost"):
        return "127.0.0.1"
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(host))
    with contextlib.suppress(OSError):
        return socket.inet_ntoa(socket.inet_aton(host))
    return ""


def _networks() -> tuple[tuple[str, ipaddress.IPv4Network | ipaddress.IPv6Network], ...]:
    both = [*_REFUSED.items(), *_PRIVATE.items()]
    return tuple((word, ipaddress.ip_network(each)) for word, networks in both for each in networks.split())


_NETWORKS = _networks()
