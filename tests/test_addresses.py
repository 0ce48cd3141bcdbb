"""Where names may lead: checked per address, against every disguise of a private one."""

from __future__ import annotations

import pytest

from cachefsm.addresses import AddressGuard, is_inside

PRIVATE = [
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "::127.0.0.1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_a_name_may_not_lead_to_an_address_that_is_not_public(address: str) -> None:
    assert not AddressGuard()("media.example", address)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "::ffff:8.8.8.8"])
def test_a_name_may_lead_to_a_public_address(address: str) -> None:
    assert AddressGuard()("media.example", address)


@pytest.mark.parametrize("host", [*PRIVATE, "localhost"])
def test_what_stands_for_this_machine_or_its_network_is_inside(host: str) -> None:
    assert is_inside(host)


@pytest.mark.parametrize("host", ["media.example", "93.184.216.34", "2606:2800:220:1::1", "lo"])
def test_what_is_elsewhere_or_has_to_be_looked_up_is_not_inside(host: str) -> None:
    assert not is_inside(host)


@pytest.mark.parametrize("address", ["127.0.0.1", "192.168.1.1", "::1", "::ffff:127.0.0.1"])
def test_an_address_that_is_written_out_is_meant(address: str) -> None:
    assert AddressGuard()(address, address)


def test_an_address_that_is_written_out_means_no_other() -> None:
    assert not AddressGuard()("127.0.0.1", "127.0.0.2")
    assert not AddressGuard()("2130706433", "127.0.0.1")
    assert not AddressGuard()("0x7f.1", "127.0.0.1")


def test_localhost_is_this_machine_and_no_other() -> None:
    guard = AddressGuard()
    assert guard("localhost", "127.0.0.1")
    assert guard("localhost", "::1")
    assert not guard("localhost", "192.168.1.1")


def test_hosts_that_are_named_private_may_lead_anywhere() -> None:
    guard = AddressGuard(["nas.example", "*.lan"])
    assert guard("nas.example", "192.168.1.1")
    assert guard("box.lan", "10.0.0.1")
    assert not guard("evil.example", "192.168.1.1")


def test_what_is_no_address_is_refused() -> None:
    assert not AddressGuard()("media.example", "/run/socket")
